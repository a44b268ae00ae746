# SPDX-License-Identifier: Apache-2.0
"""Whose finding counts for a backend, and how much it may do."""

from typing import Any

from support.documents.roster import backend, web
from tidegate.agent.health.fitness import Judgement, Moment
from tidegate.agent.health.fitness import judge as judge_at
from tidegate.health.standing import Standing
from tidegate.health.verdict import Effective, Opinion
from tidegate.model.checks import Check, Health, HealthMode
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import BackendKey, Fitness
from tidegate.planner import plan

NAMES = ("b1", "b2", "b3", "b4")
B = [BackendKey("web", name) for name in NAMES]
OUT = Fitness(is_out=True)


def pool(mode: HealthMode = "fleet", **options: Any) -> Generation:
    """Return four backends of a pool that is checked every 2 seconds."""
    health = Health(mode=mode, check=Check(type="tcp", interval=2), **options)
    return plan(web(*(backend(name) for name in NAMES), health=health), NOTHING, 1000)


def fleet(*signs: str, since: int = 900, step: int = 10) -> Opinion:
    """Return opinions on b1, b2, …: `+` healthy, `-` unhealthy, `r` healthy again, `?` none."""
    found = {
        B[place]: Effective(
            "unhealthy" if sign == "-" else "healthy", since + step * place, 1, 0, sign == "r"
        )
        for place, sign in enumerate("".join(signs))
        if sign != "?"
    }
    return Opinion(found, frozenset())


def own(signs: str) -> dict[BackendKey, Standing]:
    return {
        B[place]: Standing(
            "healthy" if sign == "+" else "unhealthy", "passed", "", 900.0 + place * 10
        )
        for place, sign in enumerate(signs)
    }


def judge(
    generation: Generation, standings: dict[BackendKey, Standing], opinion: Opinion, now: float
) -> Judgement:
    """Judge at a moment of a wall clock that is equal to the monotonic one."""
    return judge_at(generation, standings, opinion, Moment(now))


NOBODY = Opinion({}, frozenset())


def test_the_fleets_opinion_counts_by_default() -> None:
    """What this host alone finds changes nothing; what the fleet finds does."""
    assert judge(pool(), own("-+++"), NOBODY, 1000) == Judgement({})
    assert judge(pool(), own("++++"), fleet("-+++"), 1000) == Judgement({B[0]: OUT})


def test_what_was_out_stays_out_while_no_finding_is_known() -> None:
    """Verdicts that expired with their leases let no backend in, whatever this host finds."""
    generation = pool()
    out = plan(
        web(*(backend(name) for name in NAMES), health=generation.pools["web"].pool.health),
        generation,
        1001,
        fitness={B[0]: OUT},
    )
    for found in ("-+++", "++++", ""):
        assert judge(out, own(found), NOBODY, 1002).fitness == {B[0]: OUT}
    assert judge(out, own("++++"), fleet("++++"), 1002).fitness == {}
    unused = {B[0]: Standing("unused", "no-check", "No VIP.", 900.0)}
    assert judge(out, unused, NOBODY, 1002).fitness == {}


def test_a_local_pool_takes_this_hosts_finding() -> None:
    """The fleet's opinion does not count there."""
    assert judge(pool("local"), own("-+++"), fleet("++++"), 1000).fitness == {B[0]: OUT}
    assert judge(pool("local"), own("++++"), fleet("-+++"), 1000).fitness == {}


def test_an_external_pool_takes_what_is_written() -> None:
    """A control system's verdicts count, though no host checks."""
    external = plan(
        web(*(backend(name) for name in NAMES), health=Health(mode="external")), NOTHING, 1000
    )
    assert judge(external, {}, fleet("-+++"), 1000).fitness == {B[0]: OUT}


def test_a_pool_without_health_is_left_alone() -> None:
    """Verdicts on its backends, left over or by mistake, do nothing."""
    plain = plan(web(*(backend(name) for name in NAMES)), NOTHING, 1000)
    assert judge(plain, own("----"), fleet("----"), 1000) == Judgement({})


def test_a_recovered_backend_says_when_it_joins() -> None:
    """The second of the fleet's verdict, which is the same on all hosts."""
    assert judge(pool(), own("++++"), fleet("r+++"), 1000).fitness == {
        B[0]: Fitness(is_out=False, joins_at=900)
    }


def test_a_panic_keeps_all() -> None:
    """Three of four dead: nothing is taken out, and the pool is named."""
    found = judge(pool(), own("---+"), fleet("---+"), 1000)
    assert found == Judgement({}, panics=("web",))


def test_velocity_waits_and_says_until_when() -> None:
    """One a minute: the second goes a minute after the first."""
    found = judge(pool(most_per_minute=1, panic_percent=0), own("--++"), fleet("--++"), 920)
    assert found == Judgement({B[0]: OUT}, waiting=1, next_moment=960)


def test_if_everything_fails_at_once_the_checker_is_broken() -> None:
    """Within two intervals of each other: nothing is taken out. Later it is a panic."""
    at_once = judge(pool(), own("----"), fleet("----", step=1), 1000)
    assert at_once == Judgement({}, is_checker_broken=True)
    in_turn = judge(pool(), own("----"), fleet("----", step=10), 1000)
    assert in_turn == Judgement({}, panics=("web",))


def test_a_dead_backend_that_drains_is_taken_out_too() -> None:
    """Its flows are better off elsewhere, and it does not count in the share of healthy ones."""
    health = Health(check=Check(type="tcp"))
    draining = plan(
        web(backend("b1", state="drain"), backend("b2"), backend("b3"), health=health),
        NOTHING,
        1000,
    )
    assert judge(draining, own("-++"), fleet("-++"), 1000).fitness == {B[0]: OUT}


def test_a_judgement_leads_to_a_generation() -> None:
    """Fitness is what the planner takes: the flag is set, and the others have the slots."""
    generation = pool()
    judged = judge(generation, own("-+++"), fleet("-+++"), 1000)
    what = web(*(backend(n) for n in NAMES), health=generation.pools["web"].pool.health)
    after = plan(what, generation, 1001, judged.fitness)
    assert not after.backends[B[0]].reachable
    slots = after.pools["web"].table.current
    assert after.backends[B[0]].identity.id not in slots


def generation_with(fitness: dict[BackendKey, Fitness]) -> Generation:
    """Return the pool as it is in force after health has made that of it."""
    before = pool()
    what = web(*(backend(n) for n in NAMES), health=before.pools["web"].pool.health)
    return plan(what, before, 1001, fitness)


def test_who_serves_begins_no_slow_start() -> None:
    """A vote that is read anew has a later date; a backend in service joined when it joined."""
    joined = judge_at(generation_with({B[0]: OUT}), own("++++"), fleet("r+++"), Moment(905))
    assert joined.fitness == {B[0]: Fitness(is_out=False, joins_at=900)}
    serving = generation_with(dict(joined.fitness))
    for found in (fleet("r+++", since=5000), fleet("++++"), NOBODY):
        again = judge_at(serving, own("++++"), found, Moment(5001), joined)
        assert again.fitness == joined.fitness


def test_who_was_out_again_begins_another_slow_start() -> None:
    """It counts from when it was found healthy the last time."""
    joined = judge_at(generation_with({B[0]: OUT}), own("++++"), fleet("r+++"), Moment(905))
    out = judge_at(pool(), own("-+++"), fleet("-+++", since=1000), Moment(1000), joined)
    assert out.fitness == {B[0]: OUT}
    back = judge_at(generation_with({B[0]: OUT}), {}, fleet("r+++", since=1100), Moment(1101), out)
    assert back.fitness == {B[0]: Fitness(is_out=False, joins_at=1100)}


def test_a_slow_start_goes_on_over_a_step_of_the_clock() -> None:
    """It is counted by a clock that is never stepped, and told in wall-clock time."""
    joined = judge_at(pool(), own("++++"), fleet("r+++"), Moment(905, ahead=1e9))
    assert joined.fitness[B[0]].joins_at == 1e9 + 900
    serving = generation_with(dict(joined.fitness))
    stepped = judge_at(serving, own("++++"), fleet("r+++"), Moment(906, ahead=1e9 - 3600), joined)
    assert stepped.fitness[B[0]].joins_at == 1e9 + 900 - 3600


def test_verdicts_from_before_bring_nobody_back() -> None:
    """While they may be, what is out and this host finds dead stays out; the others do not."""
    out = generation_with({B[0]: OUT, B[1]: OUT})
    unsure, sure = Moment(1000, is_unsure=True), Moment(1000)
    assert judge_at(out, own("-+++"), fleet("++++"), unsure).fitness == {B[0]: OUT}
    assert judge_at(out, own("-+++"), fleet("++++"), sure).fitness == {}
    late = {B[0]: Standing("initial", "late", "", 900.0)}
    assert judge_at(out, late, fleet("++++"), unsure).fitness == {B[0]: OUT}, "nor alive"
    assert judge_at(pool(), own("-+++"), fleet("++++"), unsure).fitness == {}, "it was not out"


def test_what_failed_in_turn_does_not_fail_at_once_when_read() -> None:
    """Votes of one date, as after a loss of contact: own probes know that it was in turn."""
    found = judge(pool(), own("----"), fleet("----", since=5000, step=0), 5001)
    assert found == Judgement({}, panics=("web",))
