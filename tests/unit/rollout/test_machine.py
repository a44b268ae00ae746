# SPDX-License-Identifier: Apache-2.0
"""A rollout's state machine: waves, failures, edits by others, and every state after a restart."""

import json
from typing import Any

import pytest

from support.fleet.world import ALL, HOSTS, REFUSAL, START, World, failing, moved, unchanged, world
from tidegate.errors import ConfigError
from tidegate.model.rollout import CriteriaDocument
from tidegate.rollout import orders


def test_waves_go_on_to_the_whole_fleet() -> None:
    """Canary first, then half of all, then all; in the end pointers name the release, as one."""
    made = world()
    made.run(lambda r: r.wave == 1)
    assert moved(made) == ["lb1"]
    made.run(lambda r: r.wave == 2)
    assert moved(made) == ["lb1", "lb2", "lb3"]
    assert set(made.releases().values()) == {"old", "new"}
    assert made.run().state == "done"
    assert set(made.releases().values()) == {"new"}
    assert made.host_values() == HOSTS
    assert made.value("tracks/rollout-new") is None
    for track in ("stable", "canary"):
        assert json.loads(made.value(f"tracks/{track}") or "") == {"release": "new"}


def test_what_is_to_come_is_said_at_the_start() -> None:
    """Each wave with its hosts, as things stand."""
    made = world(waves="canary,1,4,100%")
    expected = ["  canary: lb1", "  1: no more", "  4: lb2, lb3, lb4", "  100%: lb5, lb6"]
    assert made.lines[1:] == expected


def test_pointers_flip_together_before_hosts_go_back() -> None:
    """At no moment is a host that was good with the release taken back from it."""
    made = world()
    made.run(lambda r: r.state == "restoring")
    revisions = {made.documents[f"tracks/{name}"].mod_revision for name in ("stable", "canary")}
    assert len(revisions) == 1
    while made.tick():
        assert set(made.releases().values()) == {"new"}


def test_each_wave_is_baked_in_full() -> None:
    """Time passes between a wave's acknowledgement and the next wave, and no less than asked."""
    made = world(bake=30)
    made.run(lambda r: r.state == "baking")
    began = made.now
    made.run(lambda r: r.wave == 1)
    assert 30 <= made.now - began < 33


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (failing(state="degraded", refusals=[REFUSAL]), "lb1 refuses vips/a: port: port is 0."),
        (failing(state="degraded", reason="No gateway."), "lb1 is degraded: No gateway."),
        (lambda release: None if release == "new" else {}, "lb1 has had no status for 15 s"),
        (failing(state="starting"), "1 host late, not acknowledged in 60 s: lb1 is starting"),
    ],
)
def test_a_bad_canary_is_put_back(answer: Any, told: str) -> None:
    """Nothing but the canary was touched, all is as it was, and the reason is kept."""
    made = world()
    made.answers["lb1"] = answer
    ended = made.run()
    assert ended.state == "failed"
    assert told in ended.reason
    assert moved(made) == ["lb1"]
    unchanged(made)


def test_a_failure_late_puts_back_all_waves() -> None:
    """A host that gets bad while the last wave is baked takes the whole rollout back."""
    made = world()
    made.run(lambda r: r.wave == 2 and r.state == "baking")
    made.answers["lb2"] = failing(state="degraded", reason="later")
    assert made.run().reason == "lb2 is degraded: later"
    assert len(made.rollout.moved) == 6
    unchanged(made)


def test_a_restarted_agent_is_no_failure() -> None:
    """A status that is away for less than a lease's time does not count."""
    made = world(bake=60)
    made.run(lambda r: r.state == "baking")
    made.answers["lb1"] = lambda _release: None
    for _ in range(12):
        made.tick()
    del made.answers["lb1"]
    assert made.run().state == "done"


def test_hosts_that_disagree_fail_it_once_that_lasts() -> None:
    """Two digests of one release are a fault, unless they are those of a moment."""
    made = world(waves="100%", bake=60)
    made.run(lambda r: r.state == "baking")
    made.answers["lb3"] = failing(digest="other")
    made.tick()
    made.tick()
    made.answers.clear()
    made.tick()
    made.answers["lb3"] = failing(digest="other")
    ended = made.run()
    assert ended.reason.startswith("lb3 built tables of the same release that differ")
    unchanged(made)


def traffic(drops: float = 0.0, rate: float = 1000.0, unhealthy: int = 0) -> dict[str, Any]:
    return {
        "traffic": {"packets_per_second": rate, "drops": drops, "misses": 0.0},
        "backends": {"total": 20, "unhealthy": unhealthy},
    }


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        (traffic(), traffic(0.002), "lb1 has drops of 0.2%"),
        (traffic(), traffic(0.0009), ""),
        (traffic(0.01), traffic(0.0109), ""),  # the others have as many
        (traffic(), traffic(0.5, rate=1), ""),  # two packets prove nothing
        (traffic(unhealthy=1), traffic(unhealthy=2), ""),
        (traffic(unhealthy=1), traffic(unhealthy=3), "lb1 has unhealthy of 15%"),
    ],
)
def test_moved_hosts_are_compared_with_the_others(good: Any, bad: Any, reason: str) -> None:
    """A limit is in percentage points above the hosts that were not moved."""
    limits = CriteriaDocument(drops=0.1, unhealthy=5.0)
    made = World(dict(HOSTS))
    for name in HOSTS:
        made.answers[name] = lambda _release: good
    made.answers["lb1"] = lambda release: bad if release == "new" else good
    made.settle()
    made.start(abort_on=limits)
    made.run(lambda r: r.wave == 1)
    assert made.rollout.reason.startswith(reason)
    assert (made.rollout.state in ("failed", "putting-back")) == bool(reason)


def test_the_last_wave_is_compared_with_what_the_others_were() -> None:
    """With no host left, the figures of before the wave stand for the others."""
    made = World(dict(HOSTS))
    for name in HOSTS:
        made.answers[name] = lambda release: traffic(0.05 if release == "new" else 0.0)
    made.settle()
    made.start(waves="100%", abort_on=CriteriaDocument(drops=0.1))
    assert made.run().reason.startswith("lb1 has drops of 5% of its packets")
    unchanged(made)


def test_a_large_wave_takes_several_steps() -> None:
    """A transaction holds so many hosts; a wave of more is moved in several, and put back so."""
    made = World({f"lb{number:03}": None for number in range(250)})
    made.start(waves="100%")
    made.run(lambda r: r.state == "waiting")
    assert len(moved(made)) == 250
    made.answers["lb007"] = failing(state="degraded")
    assert made.run().state == "failed"
    assert not any(made.host_values().values())


def test_a_fleet_without_tracks_gets_one() -> None:
    """Where nothing named a release, `stable` does so in the end; a failure leaves no key."""
    for answer, release in ((failing(state="degraded"), None), ({}, '{"release":"new"}')):
        made = World({"lb1": None, "lb2": None}, tracks={"other": "x"})
        if answer:
            made.answers["lb1"] = answer
        made.start(waves="1,100%")
        made.run()
        assert made.value("tracks/stable") == release
        assert made.host_values() == {"lb1": None, "lb2": None}


def test_a_wave_that_earlier_ones_went_past_is_passed_over() -> None:
    """Nobody waits for a wave without hosts."""
    made = world(waves="3,50%,100%", bake=100)
    made.run(lambda r: r.wave == 1)
    began = made.now
    made.run(lambda r: r.wave == 2)
    assert made.now == began
    assert any(
        "wave 2 of 3 (50%): earlier waves moved as many hosts" in line for line in made.lines
    )


def test_a_canary_that_cannot_move_is_not_spread_to_more_hosts() -> None:
    """If nothing is left to try it on, it pauses; the next wave was to come after a trial."""
    made = world()
    made.answers["lb1"] = lambda _release: {"state": "frozen"}
    assert "none of its hosts can be moved now" in made.run().reason
    assert moved(made) == []
    made.make(orders.resume(made.rollout, made.seen(), "test", made.now))
    assert made.run().state == "done"  # an operator has said so


def test_a_host_that_is_away_when_baking_ends_is_waited_for() -> None:
    """It is well again before the next wave begins, or the rollout fails."""
    made = world(bake=30)
    made.run(lambda r: r.state == "baking")
    while made.now < START + 28:
        made.tick()
    made.answers["lb1"] = lambda _release: None
    made.run(lambda r: r.state == "waiting")
    assert made.rollout.wave == 0
    del made.answers["lb1"]
    assert made.run().state == "done"


def test_a_pause_does_not_hide_why_hosts_are_put_back() -> None:
    """The reason of the failure is there in the end."""
    made = world()
    made.answers["lb1"] = failing(state="degraded", reason="bad")
    made.run(lambda r: r.state == "putting-back")
    made.make(orders.pause(made.rollout, "wait", made.now))
    made.make(orders.resume(made.rollout, made.seen(), "test", made.now))
    assert made.run().reason == "lb1 is degraded: bad"


def test_an_abort_is_too_late_once_pointers_have_flipped() -> None:
    """Then it is a rollout of the release before that takes it back, and the refusal says so."""
    made = world()
    made.run(lambda r: r.state == "restoring")
    with pytest.raises(ConfigError, match="roll out the previous release"):
        orders.abort(made.rollout, "test", "ann", made.now)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hosts/lb3": "{"}, "hosts/lb3 cannot be read"),
        ({"tracks/stable": "{}"}, "tracks/stable cannot be read"),
        ({"tracks/canary": None}, "tracks/canary first"),
        ({"tracks/rollout-new": '{"release": "x"}'}, "track of an earlier rollout"),
        (
            {"hosts/lb1": '{"track": "stable"}'},
            "no host that could be moved is on the track canary",
        ),
        ({"tracks/stable": '{"release": "new"}', "tracks/canary": '{"release": "new"}'}, "on new"),
    ],
)
def test_what_could_not_be_put_back_is_not_begun(change: dict[str, str | None], part: str) -> None:
    """The refusal names the key and what to do."""
    made = World(dict(HOSTS))
    for key, value in change.items():
        made.put(key, value)
    made.look()
    with pytest.raises(ConfigError, match=part):
        made.start()


def test_a_host_that_has_not_read_its_key_is_not_moved_yet() -> None:
    """Its status tells the track of before, which would be the wrong one to come back to."""
    made = World(dict(HOSTS))
    made.put("hosts/lb1", "{}")
    with pytest.raises(ConfigError, match="no host that could be moved is on the track canary"):
        made.start()


def test_one_rollout_at_a_time() -> None:
    """A second one is refused while the first goes on, and begun when it is over."""
    made = world()
    with pytest.raises(ConfigError, match="a rollout of new is under way"):
        made.start("newer")
    made.run()
    made.start("newer")
    assert made.run().state == "done"
    assert set(made.releases().values()) == {"newer"}


def test_names_of_tracks_are_names() -> None:
    """A long release's track is shortened, and two of them do not meet."""
    tracks = {orders.track_of("r" * 62 + last) for last in "ab"}
    assert len(tracks) == 2
    assert all(len(track) == 63 for track in tracks)


def test_everything_is_a_criterion_by_default() -> None:
    """The criteria that these tests use are those of a rollout without options."""
    from tidegate.rollout.waves import DEFAULT_CRITERIA, parse_criteria  # noqa: PLC0415

    assert parse_criteria(DEFAULT_CRITERIA) == ALL
