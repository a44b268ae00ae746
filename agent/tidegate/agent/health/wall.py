# SPDX-License-Identifier: Apache-2.0
"""How far the wall clock is ahead of the monotonic one, which no step moves.

Health is judged by the monotonic clock. Two things are told in wall-clock time: since when a
verdict holds, and from when a slow start counts. Neither may waver by the moment at which the two
clocks are compared, so the difference that was found first holds until the wall clock is stepped.
"""

import time
from collections.abc import Callable

from tidegate.agent.clock import LEAST


class Wall:
    """The difference between two clocks.

    Args:
        clock: monotonic, s.
        wall: the wall clock, s.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._ahead = wall() - clock()

    def ahead(self) -> float:
        """Return the seconds by which the wall clock is ahead."""
        ahead = self._wall() - self._clock()
        if abs(ahead - self._ahead) >= LEAST:
            self._ahead = ahead
        return self._ahead
