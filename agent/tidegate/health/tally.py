# SPDX-License-Identifier: Apache-2.0
"""Counts probes by pool: how they ended, and how long they took.

It costs a microsecond a probe, less than an SDK's instruments take. Its owner has the lock.
"""

from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from tidegate.health.result import Result

BOUNDS: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
"""Upper bounds of the classes of durations, s; one more class has what is longer."""


@dataclass(slots=True)
class PoolTally:
    """A pool's probes since it is checked.

    Attributes:
        by_code: how they ended.
        by_duration: how many were in each class of `BOUNDS`, each alone.
        seconds: of all of them.
    """

    by_code: dict[str, int] = field(default_factory=dict)
    by_duration: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0


class Tally:
    """All pools' probes."""

    def __init__(self) -> None:
        self._pools: dict[str, PoolTally] = {}

    def add(self, pool: str, result: Result) -> None:
        """Count one more probe."""
        found = self._pools.get(pool)
        if found is None:
            found = self._pools[pool] = PoolTally()
        found.by_code[result.code] = found.by_code.get(result.code, 0) + 1
        found.by_duration[bisect_left(BOUNDS, result.seconds)] += 1
        found.seconds += result.seconds

    def keep(self, pools: Collection[str]) -> None:
        """Forget the pools that are not checked any more."""
        self._pools = {name: found for name, found in self._pools.items() if name in pools}

    def pools(self) -> Mapping[str, PoolTally]:
        """Return a copy of the counts by name of the pool."""
        return {
            name: replace(each, by_code=dict(each.by_code), by_duration=list(each.by_duration))
            for name, each in self._pools.items()
        }
