# SPDX-License-Identifier: Apache-2.0
"""Keeps attachments and link facts up to date, at events and now and then without one."""

from typing import Final

from tidegate.dataplane.plane import DataPlane
from tidegate.errors import DataplaneError
from tidegate.event_log import EventLog

log = EventLog(__name__)

_SECONDS: Final = 15.0


class LinkRefresh:
    """Reads the links when they changed, and every 15 s.

    Args:
        plane: whose links they are; they were just read.
        now: monotonic clock, s.
    """

    def __init__(self, plane: DataPlane, now: float) -> None:
        self._plane = plane
        self._due = now + _SECONDS

    def next_due(self) -> float:
        """Return the monotonic second at which time alone asks for it."""
        return self._due

    def refresh(self, now: float, *, woken: bool) -> None:
        """Read the links if they changed or it is time.

        Raises:
            FenceError: another agent has taken over the data plane.
        """
        if not woken and now < self._due:
            return
        self._due = now + _SECONDS
        try:
            self._plane.follow()
        except DataplaneError as error:
            log.error("interface", reason=error)
