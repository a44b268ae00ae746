# SPDX-License-Identifier: Apache-2.0
"""A wall clock that is stepped: it is noticed, and what a host has begun lasts as long."""

import numpy as np
import pytest

from support.documents.roster import backend, desired, vip
from tidegate.agent.clock import StepWatch
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import BackendKey, Desired
from tidegate.planner import after_step, next_moment, plan

BEFORE = desired([vip("web", "10.99.0.1")], [backend(f"b{n}") for n in (1, 2, 3)])
AFTER = desired([vip("web", "10.99.0.1")], [backend(f"b{n}") for n in (1, 2)], revision=2)
GONE = BackendKey("web", "b3")


def draining(now: int) -> Generation:
    """Return a pool in transition, with a backend whose key was deleted at this second."""
    return plan(AFTER, plan(BEFORE, NOTHING, now - 10), now)


@pytest.mark.parametrize("step", [3600, -3600])
def test_windows_and_drains_last_as_long_after_a_step(step: int) -> None:
    """A generation that is moved with the clock ends everything at the same moments of the day."""
    moved = after_step(draining(1000), step)
    undisturbed = draining(1000 + step)
    assert next_moment(moved) == next_moment(undisturbed)
    for seconds in (0, 299, 300):
        now = 1000 + step + seconds
        ours, theirs = plan(AFTER, moved, now), plan(AFTER, undisturbed, now)
        assert (GONE in ours.backends) == (GONE in theirs.backends) == (seconds < 300)
        mine, other = ours.pools["web"].table, theirs.pools["web"].table
        assert np.array_equal(mine.fallback, other.fallback)
        assert ours.digest == theirs.digest


def test_a_step_is_a_generation_of_its_own() -> None:
    """Its tables and records are written under a new number, and no owner changes."""
    before = draining(1000)
    after = plan(AFTER, after_step(before, 3600), 4601)
    assert after.number == before.number + 1
    table = after.pools["web"].table
    assert table.generation == after.number
    assert np.array_equal(table.current, before.pools["web"].table.current)
    assert np.array_equal(table.fallback, before.pools["web"].table.fallback)
    assert table.windows != before.pools["web"].table.windows


def test_a_step_in_calm_changes_nothing() -> None:
    """Without a window and a drain there is nothing to write."""
    calm = plan(BEFORE, NOTHING, 1000)
    moved = after_step(calm, 3600)
    assert moved == calm
    assert plan(BEFORE, moved, 4600).number == calm.number


def test_freed_ids_rest_as_long_after_a_step() -> None:
    """A clock that was an hour slow must not give an id away early."""
    early = plan(AFTER, draining(1000), 1300)
    (freed,) = early.freed.backends
    back = plan(with_fourth(), after_step(early, 3600), 1301 + 3600)
    assert back.backends[BackendKey("web", "b4")].identity.id != freed


def with_fourth() -> Desired:
    backends = [backend(f"b{n}") for n in (1, 2, 4)]
    return desired([vip("web", "10.99.0.1")], backends, revision=3)


def test_a_step_is_not_the_passing_of_time() -> None:
    """Only what the steady clock does not show counts, and each step once."""
    wall, steady = 1000.0, 5.0
    watch = StepWatch(lambda: wall, lambda: steady)
    wall, steady = wall + 900, steady + 900
    assert watch.seconds_stepped() == 0
    wall += 3600
    assert watch.seconds_stepped() == 3600
    assert watch.seconds_stepped() == 0
    wall -= 3600
    assert watch.seconds_stepped() == -3600
    for _ in range(100):
        wall += 0.5  # a clock that is slewed
        assert watch.seconds_stepped() == 0
