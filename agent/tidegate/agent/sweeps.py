# SPDX-License-Identifier: Apache-2.0
"""Decides when the connection table is tidied: about once a minute, a large one in several turns.

A turn of the loop looks at some million lines at the most, which takes tens of milliseconds.
"""

from typing import Final

from tidegate.dataplane.sweep import Sweeper, Swept
from tidegate.event_log import EventLog

log = EventLog(__name__)

SECONDS: Final = 60.0


class Sweeps:
    """Tidies when it is time.

    Args:
        sweeper: of the open data plane.
        now: monotonic clock, s.
    """

    def __init__(self, sweeper: Sweeper, now: float) -> None:
        self._sweeper = sweeper
        self._due = now + SECONDS
        self._swept = Swept()

    def next_due(self) -> float:
        """Return the monotonic second of the next look."""
        return self._due

    def sweep(self, now: float) -> None:
        """Take note of the generation in force, and tidy a part if it is time.

        Raises:
            FenceError: the data plane is another agent's now.
        """
        self._sweeper.follow()
        if now < self._due:
            return
        self._swept = self._swept.more(*self._sweeper.sweep())
        if self._sweeper.is_under_way:
            return
        if any(self._swept):
            log.debug("sweep", ended=self._swept.ended, emptied=self._swept.emptied)
        self._swept, self._due = Swept(), now + SECONDS
