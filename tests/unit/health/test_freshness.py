# SPDX-License-Identifier: Apache-2.0
"""A finding that no probe confirms any more."""

from typing import Any

from support.documents.roster import backend, desired, vip
from tidegate.health.checker import Checker
from tidegate.health.freshness import Freshness, limit
from tidegate.health.result import Result
from tidegate.model.checks import Check, Health
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import BackendKey
from tidegate.planner import plan

B1, B2 = BackendKey("web", "b1"), BackendKey("web", "b2")
PASSED = Result("passed", "", 0.001)


def test_the_limit_follows_from_interval_and_timeout() -> None:
    """Three intervals with their jitter and a timeout more; short ones have two seconds."""
    assert limit(Check(type="tcp", interval=10, timeout=4, jitter_percent=0)) == 34
    assert limit(Check(type="tcp", interval=10, timeout=4, jitter_percent=50)) == 49
    assert limit(Check(type="tcp", interval=0.1, timeout=0.1)) == 2.1


def test_who_is_not_heard_of_is_late() -> None:
    """From the limit on, until heard of; one that is new has its time."""
    freshness = Freshness()
    freshness.follow({"web": 5.0}, [B1], 100.0)
    assert not freshness.late(105.0)
    assert freshness.late(105.1) == {B1: 5.0}
    freshness.follow({"web": 5.0}, [B1, B2], 106.0)
    assert freshness.late(107.0) == {B1: 5.0}
    freshness.heard(B1, 108.0)
    assert freshness.late(111.5) == {B2: 5.0}
    assert freshness.late(114.0) == {B1: 5.0, B2: 5.0}


def generation(**options: Any) -> Generation:
    check = Check(type="tcp", interval=2, timeout=1, rise=1, fall=1, jitter_percent=0)
    backends = [backend("b1"), backend("b2")]
    health = Health(check=check, **options)
    return plan(desired([vip("a", "127.0.0.1", 80)], backends, health=health), NOTHING, 1000)


def test_a_late_check_has_no_finding() -> None:
    """It is neither healthy nor unhealthy, says since when, and is what it was once probed."""
    now = [100.0]
    checker = Checker(lambda: None, clock=lambda: now[0])
    checker.follow(generation())
    for key, result in ((B1, PASSED), (B2, Result("timeout", "No answer.", 1.0))):
        checker._take(key, result)
    before = checker.standings()
    assert [before[key].state for key in (B1, B2)] == ["healthy", "unhealthy"]
    now[0] += 7.5
    assert set(checker.late()) == {B1, B2}
    late = checker.standings()
    assert {(each.state, each.code) for each in late.values()} == {("initial", "late")}
    assert late[B2].reason == "No check has ended for 7 s; it was unhealthy before that."
    assert checker.late(), "still"
    assert checker.standings()[B1] is late[B1], "nothing new to write"
    checker._take(B1, PASSED)
    assert set(checker.late()) == {B2}
    assert checker.standings()[B1] is before[B1]
    checker.start()
    assert checker.stop()
