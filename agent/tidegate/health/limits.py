# SPDX-License-Identifier: Apache-2.0
"""How much health checks alone may do to a pool: never make it worse than it is.

Pure functions of what the fleet thinks. All times are of one clock that cannot be stepped, so no
wall clock, of this host or of another, decides anything here. Three rules, for each pool:

* **Panic.** If fewer than a set share of the backends are healthy, all are kept: either the checks
  are wrong, or the few that are left would fall under the load of all. Where that share is 0, all
  may be out if a sorry pool serves in their place, and else not the last ones.
* **Velocity.** Health alone takes out at most a set number within a minute. Backends that failed
  earlier go first, the others in turn, a minute after the one whose place they take. It limits who
  goes and brings nobody back: who is out and still found dead stays out, whatever the dates.
* **Broken checker.** If all of a fleet's backends failed within one interval of their checks, it is
  not believed: nothing is taken out until a person looks, or one of them passes.
"""

from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tidegate.health.verdict import Effective
from tidegate.model.values import BackendKey

_MINUTE: Final = 60


@dataclass(frozen=True, slots=True)
class Limits:
    """What health may do to one pool.

    Attributes:
        panic_percent: share of healthy backends below which all are kept, 0 to 100.
        most_per_minute: backends that may be taken out within a minute.
        may_empty: whether all backends may be out, since another pool serves then.
    """

    panic_percent: int = 50
    most_per_minute: int = 10
    may_empty: bool = False


@dataclass(frozen=True, slots=True)
class Ejection:
    """What becomes of one pool.

    Attributes:
        out: backends that are to be taken out now.
        waiting: backends that are to follow, with the second of each.
        panic: whether unhealthy backends are kept because too few are healthy.
    """

    out: frozenset[BackendKey]
    waiting: Mapping[BackendKey, float]
    panic: bool


def eject(
    members: Collection[BackendKey],
    health: Mapping[BackendKey, Effective],
    limits: Limits,
    now: float,
    gone: Container[BackendKey] = frozenset(),
) -> Ejection:
    """Return which backends of a pool health takes out.

    Args:
        members: backends of the pool that would serve if they were healthy.
        health: what the fleet thinks; a backend that is not in it counts as healthy.
        limits: of the pool.
        now: the clock of `health`, s.
        gone: backends that are out already.
    """
    failed = sorted(
        (found.since, key)
        for key in members
        if (found := health.get(key)) is not None and found.state == "unhealthy"
    )
    healthy = len(members) - len(failed)
    is_emptied = healthy == 0 and not limits.may_empty
    if failed and (is_emptied or 100 * healthy < limits.panic_percent * len(members)):
        return Ejection(frozenset(), {}, panic=True)
    moments: list[float] = []
    for place, (since, key) in enumerate(failed):
        earliest = since
        if place >= limits.most_per_minute:
            earliest = max(since, moments[place - limits.most_per_minute] + _MINUTE)
        moments.append(min(earliest, now) if key in gone else earliest)
    planned = {key: moment for (_, key), moment in zip(failed, moments, strict=True)}
    return Ejection(
        frozenset(key for key, moment in planned.items() if moment <= now),
        {key: moment for key, moment in planned.items() if moment > now},
        panic=False,
    )


def is_checker_broken(failed: Iterable[float | None], interval: float) -> bool:
    """Return whether all backends, two or more, failed so close together that the checks did it.

    Args:
        failed: of each backend that is checked, when it failed, s; None if it has not.
        interval: the longest interval of their checks, s.
    """
    times = list(failed)
    moments = [moment for moment in times if moment is not None]
    return len(times) == len(moments) > 1 and max(moments) - min(moments) <= interval
