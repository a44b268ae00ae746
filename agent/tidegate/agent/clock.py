# SPDX-License-Identifier: Apache-2.0
"""Notices that the wall clock was stepped, by a clock that cannot be."""

import time
from collections.abc import Callable
from typing import Final

LEAST: Final = 2.0
"""Seconds; less is a clock that is being corrected slowly, or a comparison that came late."""


def steady() -> float:
    """Return the seconds since the machine started, including those while it was asleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class StepWatch:
    """Compares the wall clock with a steady one at each call."""

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float] = steady) -> None:
        self._wall = wall
        self._steady = steady
        self._offset = wall() - steady()

    def seconds_stepped(self) -> int:
        """Return by how much the wall clock was stepped since the last call; mostly 0."""
        offset = self._wall() - self._steady()
        step, self._offset = offset - self._offset, offset
        return round(step) if abs(step) >= LEAST else 0
