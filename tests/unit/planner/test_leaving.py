# SPDX-License-Identifier: Apache-2.0
"""What failed stays failed: a backend's health and its quarantine outlive its key."""

from dataclasses import replace
from typing import Any

import pytest

from support.crash.restart import restarted
from support.documents.roster import backend, vip, web
from tidegate.agent.health.fitness import Moment, judge
from tidegate.health.standing import Standing
from tidegate.health.verdict import Effective, Opinion
from tidegate.model.checks import Check, Health
from tidegate.model.document_types import BackendState
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Backend, BackendKey, Desired, Fitness
from tidegate.planner import plan

B1, B2 = BackendKey("web", "b1"), BackendKey("web", "b2")
OUT = {B1: Fitness(is_out=True)}
CHECKED = Health(check=Check(type="tcp", interval=2))


def want(*backends: Backend, **options: Any) -> Desired:
    return web(*backends, **{"health": CHECKED, **options})


BOTH = want(backend("b1"), backend("b2"), backend("b3"))
LEFT = want(backend("b2"), backend("b3"))
FIRST = plan(BOTH, NOTHING, 1000)


def fleet(**signs: str) -> Opinion:
    """Return the opinion on backends: healthy, unhealthy."""
    found = {
        BackendKey("web", name): Effective(
            "unhealthy" if sign == "unhealthy" else "healthy",
            900 + 50 * place,
            1,
            0,
            sign == "again",
        )
        for place, (name, sign) in enumerate(signs.items())
    }
    return Opinion(found, frozenset())


def can_be_reached(generation: Generation, key: BackendKey = B1) -> bool:
    return generation.backends[key].reachable


@pytest.mark.parametrize("is_known_before", [True, False])
def test_a_failure_outlives_a_key_that_goes_with_it(is_known_before: bool) -> None:
    """In the change that finds the failure, or in a later one; with or without a restart."""
    before = plan(BOTH, FIRST, 1001, OUT) if is_known_before else FIRST
    gone = plan(LEFT, before, 1002, OUT)
    assert gone.backends[B1].retire_at == 1302
    for found in (gone, restarted(gone)):
        for fitness in (OUT, {}, None):
            assert not can_be_reached(plan(LEFT, found, 1003, fitness))
    assert B1 not in plan(LEFT, gone, 1302, OUT).backends


@pytest.mark.parametrize("state", ["quarantine", "disabled"])
def test_a_quarantine_outlives_its_key(state: BackendState) -> None:
    """No finding lifts it; the delay ends as it does for others."""
    taken_out = plan(want(backend("b1", state=state), backend("b2"), backend("b3")), FIRST, 1001)
    gone = plan(LEFT, taken_out, 1002)
    for fitness in (None, {}, {B1: Fitness(joins_at=1002)}):
        assert not can_be_reached(plan(LEFT, restarted(gone), 1003, fitness))
    assert B1 not in plan(LEFT, gone, 1302).backends


def test_a_leaving_backend_fails_and_recovers_like_others() -> None:
    """It is taken out during its delay, and its last flows find it again if it is back."""
    leaving = plan(LEFT, FIRST, 1001)
    assert can_be_reached(leaving)
    failed = judge(leaving, {}, fleet(b1="unhealthy", b2="healthy", b3="healthy"), Moment(1010))
    out = plan(LEFT, leaving, 1010, failed.fitness)
    assert (can_be_reached(out), out.backends[B1].retire_at) == (False, 1301)
    undecided = judge(out, {}, fleet(b2="healthy", b3="healthy"), Moment(1020))
    assert not can_be_reached(plan(LEFT, out, 1020, undecided.fitness))
    back = judge(out, {}, fleet(b1="again", b2="healthy", b3="healthy"), Moment(1030))
    again = plan(LEFT, out, 1030, back.fitness)
    assert (can_be_reached(again), again.backends[B1].weight) == (True, 0)


def test_a_host_that_just_started_may_find_it_healthy_too() -> None:
    """Its checks have not seen the failure, but they pass."""
    out = plan(LEFT, plan(BOTH, FIRST, 1001, OUT), 1002, OUT)
    own = {B1: Standing("healthy", "passed", "", 1010.0)}
    found = judge(out, own, None, Moment(1011))
    assert can_be_reached(plan(LEFT, out, 1011, found.fitness))


@pytest.mark.parametrize(
    "after",
    [
        web(backend("b2"), backend("b3")),
        replace(LEFT, pools={}, backends={}, vips={}),
        want(backend("b2"), backend("b3"), delay=0),
    ],
    ids=["no check any more", "no pool any more", "no delay any more"],
)
def test_nobody_who_looks_brings_nobody_back(after: Desired) -> None:
    """Without a check that finds it healthy, one that is out stays out for its delay."""
    out = plan(after, plan(LEFT, plan(BOTH, FIRST, 1001, OUT), 1002, OUT), 1003, OUT)
    judgement = judge(out, {}, Opinion({}, frozenset()), Moment(1004))
    assert not can_be_reached(plan(after, out, 1004, judgement.fitness))


def test_a_panic_brings_nobody_back_who_leaves() -> None:
    """They keep members that the pool needs, and it needs none that leaves."""
    out = plan(LEFT, plan(BOTH, FIRST, 1001, OUT), 1002, OUT)
    panic = judge(out, {}, fleet(b1="unhealthy", b2="unhealthy", b3="unhealthy"), Moment(1100))
    assert panic.panics == ("web",)
    assert not can_be_reached(plan(LEFT, out, 1100, panic.fitness))
    found = {k: Effective("unhealthy", 1100, 0, 1) for k in out.backends}
    own = {k: Standing("unhealthy", "timeout", "", 1100.0) for k in out.backends}
    broken = judge(out, own, Opinion(found, frozenset()), Moment(1101))
    assert broken.is_checker_broken
    assert not can_be_reached(plan(LEFT, out, 1101, broken.fitness))
    assert can_be_reached(plan(LEFT, out, 1101, broken.fitness), B2)


def test_a_key_that_comes_back_brings_no_health_with_it() -> None:
    """The server is as dead as it was before its key went; checks let it in again."""
    out = plan(LEFT, plan(BOTH, FIRST, 1001, OUT), 1002, OUT)
    judged = judge(out, {}, Opinion({}, frozenset()), Moment(1003))
    for fitness in (judged.fitness, {}, None):
        back = plan(BOTH, out, 1003, fitness)
        assert not can_be_reached(back)
        assert back.backends[B1].identity == FIRST.backends[B1].identity
    still = judge(back, {}, Opinion({}, frozenset()), Moment(1004))
    assert not can_be_reached(plan(BOTH, back, 1004, still.fitness))
    healthy = judge(back, {}, fleet(b1="again", b2="healthy", b3="healthy"), Moment(1005))
    assert can_be_reached(plan(BOTH, back, 1005, healthy.fitness))


def test_another_name_brings_no_health_with_it_either() -> None:
    """A failed server that is renamed stays out; an operator's quarantine was of the old name."""
    renamed = want(backend("c1", "10.1.0.1"), backend("b2"), backend("b3"))
    new = BackendKey("web", "c1")
    for before in (plan(BOTH, FIRST, 1001, OUT), FIRST, plan(LEFT, FIRST, 1001, OUT)):
        after = plan(renamed, before, 1002, OUT)
        assert not can_be_reached(after, new)
        assert after.backends[new].identity == FIRST.backends[B1].identity
        undecided = judge(after, {}, Opinion({}, frozenset()), Moment(1003))
        assert not can_be_reached(plan(renamed, after, 1003, undecided.fitness), new)
    quarantined = want(backend("b1", state="quarantine"), backend("b2"), backend("b3"))
    assert can_be_reached(plan(renamed, plan(quarantined, FIRST, 1001), 1002), new)


def test_without_a_delay_a_failed_backend_is_gone_at_once() -> None:
    """There is nothing to wait for."""
    both = want(backend("b1"), backend("b2"), delay=0)
    out = plan(both, plan(both, NOTHING, 1000), 1001, OUT)
    assert B1 not in plan(want(backend("b2"), delay=0), out, 1002, OUT).backends


def test_a_vip_that_goes_too_leaves_the_failed_one_out() -> None:
    """Its check has no way any more, so nobody finds it healthy."""
    out = plan(BOTH, FIRST, 1001, OUT)
    other = replace(LEFT, vips={"x": vip("x", "10.99.0.9", pool="web", protocol="udp")})
    gone = plan(other, out, 1002, OUT)
    unused = {B1: Standing("unused", "no-check", "No VIP.", 1003.0)}
    judgement = judge(gone, unused, Opinion({}, frozenset()), Moment(1003))
    assert not can_be_reached(plan(other, gone, 1003, judgement.fitness))
