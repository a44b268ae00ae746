# SPDX-License-Identifier: Apache-2.0
"""The guard over backends looks back: what leaves one by one leaves too."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from support.crash.restart import restarted
from support.documents.roster import backend, desired, vip, web
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import BackendKey, Desired, Fitness, Override
from tidegate.planner import after_step, guards, plan
from tidegate.planner.guards import Limits
from tidegate.planner.levels import MOST, WINDOW_SECONDS

LIFTED = (Override("x", "removal", "web", 10**9),)
WAYS: dict[str, Callable[[str], list[Any]]] = {
    "deleted": lambda _: [],
    "drained": lambda name: [backend(name, state="drain")],
    "disabled": lambda name: [backend(name, state="disabled")],
    "quarantined": lambda name: [backend(name, state="quarantine")],
    "without weight": lambda name: [backend(name, weight=0)],
    "not yet": lambda name: [backend(name, starts_at=10**8)],
}


def roster(count: int, gone: int = 0, way: str = "deleted", **options: Any) -> Desired:
    """Return a pool of so many backends of which the first ones have gone in this way."""
    names = [f"b{n}" for n in range(1, count + 1)]
    left = [each for name in names[:gone] for each in WAYS[way](name)]
    return web(*left, *(backend(name) for name in names[gone:]), **options)


def refused(
    wanted: Desired, previous: Generation, now: int, overrides: tuple[Override, ...] = ()
) -> str:
    found = guards.refusals(wanted, previous, Limits(), overrides, now)
    return found[0].reason if found else ""


def walk(steps: list[Desired], pause: int, *, restarts: bool = False) -> tuple[int, str]:
    """Make one change after another; return how many went through, and why the next did not."""
    now, previous = 1000, plan(steps[0], NOTHING, 1000, {})
    for done, step in enumerate(steps[1:]):
        now += pause
        previous = restarted(previous) if restarts else previous
        reason = refused(step, previous, now)
        if reason:
            return done, reason
        previous = plan(step, previous, now, {})
    return len(steps) - 1, ""


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_backends_that_go_one_by_one_are_held_at_the_share(way: str, *, restarts: bool) -> None:
    """Of eight four go; the fifth within the window is refused, however it goes."""
    steps = [roster(8, gone, way) for gone in range(8)]
    done, reason = walk(steps, 1, restarts=restarts)
    assert done == 4
    assert f"5 of 8 serving backends would have left service within {WINDOW_SECONDS} s" in reason
    assert "more than 50 %" in reason
    assert "tidegate override removal --pool web" in reason


@pytest.mark.parametrize(("count", "goes"), [(2, 1), (3, 2), (4, 2), (5, 2), (10, 5), (100, 50)])
def test_the_share_counts_whatever_the_size(count: int, goes: int) -> None:
    """Two of several may always go; the last one never does."""
    assert walk([roster(count, gone) for gone in range(count)], 2)[0] == goes


def test_a_pools_own_share_counts() -> None:
    """As it does for one change."""
    for percent, goes in ((80, 8), (10, 2), (0, 2)):
        steps = [roster(10, gone, max_removed_percent=percent) for gone in range(10)]
        assert walk(steps, 1)[0] == goes


def test_a_window_that_has_passed_is_forgotten() -> None:
    """At the second that the guard names, a change that it refused is allowed."""
    steps = [roster(8, gone) for gone in range(5)]
    previous = plan(steps[0], NOTHING, 1000)
    for second, step in enumerate(steps[1:], 1001):
        previous = plan(step, previous, second)
    wanted = roster(8, 5)
    assert refused(wanted, previous, 1005)
    moments, now = [], 1005
    while refused(wanted, previous, now):
        following = guards.next_relief(previous, now)
        assert following is not None
        moments.append(now := following)
    assert moments[-1] < 1001 + WINDOW_SECONDS + 4
    assert guards.next_relief(plan(wanted, previous, 2000), 2000) == 2000 + WINDOW_SECONDS


def test_slow_enough_is_allowed() -> None:
    """A pool that shrinks by one a window is scaled by somebody who looks."""
    assert walk([roster(8, gone) for gone in range(7)], WINDOW_SECONDS)[0] == 6


def test_a_rolling_replacement_is_no_removal() -> None:
    """Each new one makes up for an old one; so do leases that expire and are renewed."""
    names = [f"b{n}" for n in range(1, 9)]
    steps = [web(*map(backend, names))]
    for n in range(8):
        names.append(f"b{n + 20}")
        steps.append(web(*map(backend, names)))
        names.pop(0)
        steps.append(web(*map(backend, names)))
    assert walk(steps, 1)[1] == ""
    flapping = [roster(8, gone) for gone in (0, 1, 2, 0, 1, 2, 3, 0, 4, 0, 4, 1, 0, 3)]
    assert walk(flapping, 1)[1] == ""


def test_health_is_no_removal() -> None:
    """What checks take out is not counted, nor does it hide what documents take."""
    previous = plan(roster(8), NOTHING, 1000, {})
    out = {BackendKey("web", f"b{n}"): Fitness(is_out=True) for n in range(1, 5)}
    previous = plan(roster(8), previous, 1001, out)
    assert previous.pools["web"].levels == ()
    previous = plan(roster(8, 4), previous, 1002, {})  # the dead ones go
    assert [level.serving for level in previous.pools["web"].levels] == [8]
    assert "5 of 8" in refused(roster(8, 5), previous, 1003)


def test_an_override_lifts_the_window_too() -> None:
    """And what it let through counts from then on."""
    previous = plan(roster(8, 4), plan(roster(8), NOTHING, 1000), 1001)
    assert refused(roster(8, 5), previous, 1002)
    assert refused(roster(8, 5), previous, 1002, LIFTED) == ""


def test_additions_and_returns_are_never_refused() -> None:
    """The pool may have been as high as it likes."""
    low = plan(roster(8, 7), plan(roster(8), NOTHING, 1000), 1001)
    for gone in (6, 3, 0):
        assert refused(roster(8, gone), low, 1002) == ""
    assert refused(roster(8, 7), low, 1002) == ""


def test_a_storm_keeps_few_levels_and_the_highest() -> None:
    """The ledger has room for them, and merging only makes the guard look back for longer."""
    previous = plan(roster(200), NOTHING, 1000)
    for gone in range(1, 150):
        previous = plan(roster(200, gone), previous, 1000 + gone)
    levels = previous.pools["web"].levels
    assert len(levels) <= MOST
    assert levels[0].serving == 200
    assert restarted(previous).pools["web"].levels == levels


def test_a_step_of_the_clock_moves_the_window() -> None:
    """An hour back or forth makes the guard neither blind nor deaf."""
    previous = plan(roster(8, 4), plan(roster(8), NOTHING, 1000), 1001)
    for step in (3600, -900):
        moved = after_step(previous, step)
        assert refused(roster(8, 5), moved, 1002 + step)
        assert refused(roster(8, 5), moved, 1001 + WINDOW_SECONDS + step) == ""
        assert after_step(moved, -step).pools["web"].levels == previous.pools["web"].levels


def services(count: int, gone: int = 0) -> Desired:
    """Return so many VIPs of which the first ones have gone."""
    vips = [vip(f"v{n}", f"192.0.2.{n}") for n in range(gone + 1, count + 1)]
    return desired(vips, [backend("b1")])


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(("count", "goes"), [(2, 1), (4, 2), (8, 4), (20, 10)])
def test_vips_that_go_one_by_one_are_held_at_the_share(
    count: int, goes: int, *, restarts: bool
) -> None:
    """As backends of a pool are; after the window they may go on."""
    steps = [services(count, gone) for gone in range(count)]
    assert walk(steps, 1, restarts=restarts)[0] == goes
    assert walk(steps, WINDOW_SECONDS + 1, restarts=restarts)[0] == count - 1


def test_a_vip_that_comes_back_has_not_vanished() -> None:
    """Nor has one that got another name, in whatever order; and the relief has its moment."""
    renamed = replace(
        services(8), vips={f"w{n}": vip(f"w{n}", f"192.0.2.{n}") for n in range(1, 9)}
    )
    assert walk([services(8), services(8, 4), services(8), services(8, 4)], 1)[0] == 3
    assert walk([services(8), services(8, 4), renamed, services(8, 4)], 1)[0] == 3
    previous = plan(services(8, 2), plan(services(8), NOTHING, 1000, {}), 1010, {})
    assert guards.next_relief(previous, 1020) == 1010 + WINDOW_SECONDS
