# SPDX-License-Identifier: Apache-2.0
"""From single probes to a backend's state on this host: a pure function, no clock.

A state changes after enough equal results in a row: `rise` to become healthy, `fall` to become
unhealthy. A backend that keeps changing is held down: each time it fails again within a while, it
has to pass for twice as long before it counts as healthy, so that a flapping one does not move its
flows back and forth.

A probe that this host could not make is no result: it neither raises nor lowers a backend's
standing, and ends no run of results.
"""

from dataclasses import dataclass, replace
from typing import Final

from tidegate.health.result import Result
from tidegate.model.steering import Health, HealthCode

_DOUBLINGS: Final = 5
"""A backend is held down for at most 2^5 times the pool's `hold_down`."""

_MEMORY: Final = 10
"""A failure is forgotten after a healthy time of this many times the last hold."""


@dataclass(frozen=True, slots=True)
class Rules:
    """When a state changes.

    Attributes:
        rise: results in a row that make a backend healthy.
        fall: results in a row that make it unhealthy.
        hold_down: seconds for which a backend must pass after its second failure; doubled with each
            further one. 0 holds nothing down.
    """

    rise: int = 2
    fall: int = 3
    hold_down: float = 0.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What this host thinks of a backend. Times are seconds of a clock that is never stepped.

    Attributes:
        since: when the state began.
        streak: results in a row that speak against the state.
        passing_since: when the present run of passed probes began; None when the last one failed.
        failures: how often it became unhealthy lately.
        has_recovered: whether it was unhealthy before it was healthy.
    """

    state: Health
    code: HealthCode
    reason: str
    since: float
    streak: int = 0
    passing_since: float | None = None
    failures: int = 0
    has_recovered: bool = False


def unknown(now: float) -> Standing:
    """Return the standing of a backend that was never probed."""
    return Standing("initial", "checking", "Not checked yet.", now)


def after(before: Standing, result: Result, rules: Rules, now: float) -> Standing:
    """Return the standing after one more probe."""
    if not result.is_finding:
        if before.state != "initial" or before.reason == result.reason:
            return before
        return replace(before, code="host", reason=result.reason)
    if before.state == "initial" and before.code == "host":
        before = replace(before, code="checking", reason="Not checked yet.")
    return _passed(before, rules, now) if result.passed else _failed(before, result, rules, now)


def _passed(before: Standing, rules: Rules, now: float) -> Standing:
    passing = now if before.passing_since is None else before.passing_since
    if before.state == "healthy":
        forgiven = now - before.since >= _MEMORY * max(_hold(before.failures, rules), 1.0)
        failures = 0 if forgiven else before.failures
        if (before.streak, before.passing_since, before.failures) == (0, passing, failures):
            return before  # as nearly always: nothing to copy
        return replace(before, streak=0, passing_since=passing, failures=failures)
    streak = before.streak + 1 if before.passing_since is not None else 1
    missing = rules.rise - streak
    if missing > 0:
        reason = before.reason if before.state == "unhealthy" else f"{missing} more must pass."
        return replace(before, streak=streak, passing_since=passing, reason=reason)
    wait = passing + _hold(before.failures, rules) - now
    if wait > 0 and before.state == "unhealthy":
        reason = (
            f"Checks pass; held down for {wait:.0f} s more, since it failed "
            f"{before.failures} times lately."
        )
        return replace(
            before, code="held-down", reason=reason, streak=streak, passing_since=passing
        )
    recovered = before.state == "unhealthy"
    return Standing("healthy", "passed", "", now, 0, passing, before.failures, recovered)


def _failed(before: Standing, result: Result, rules: Rules, now: float) -> Standing:
    if before.state == "unhealthy":
        reason = f"The last check failed: {result.reason}"
        return replace(before, code=result.code, reason=reason, streak=0, passing_since=None)
    streak = before.streak + 1 if before.passing_since is None else 1
    if streak < rules.fall:
        return replace(before, streak=streak, passing_since=None)
    reason = f"{rules.fall} checks in a row failed; the last: {result.reason}"
    return Standing("unhealthy", result.code, reason, now, 0, None, before.failures + 1)


def _hold(failures: int, rules: Rules) -> float:
    """Return the seconds for which a backend must pass after this many failures."""
    if failures <= 1:
        return 0.0
    return rules.hold_down * 2.0 ** min(failures - 2, _DOUBLINGS)
