# SPDX-License-Identifier: Apache-2.0
"""Keeps attachments and link facts up to date, at events and now and then without one."""

import time
from collections.abc import Callable
from typing import Final, Protocol

from tidegate.errors import DataplaneError
from tidegate.event_log import EventLog

log = EventLog(__name__)

_SECONDS: Final = 15.0
_ATTACHED_SECONDS: Final = 0.5
"""Between two looks at who is attached: a foreign program in our place forwards nothing, and some
ways to attach one send no message."""
_WOKEN_SECONDS: Final = 0.1
"""Between two such looks that messages ask for: a look takes some milliseconds."""
_REST: Final = 20.0
"""Times the duration of a reading, until the next: where routes change all the time (a host that
speaks BGP), reading takes no more than a twentieth of the loop's time."""


class Links(Protocol):
    """What is read: the data plane's links."""

    links_outdated: bool

    @property
    def attachments(self) -> "Attached":
        """Who is attached."""

    def follow(self) -> None:
        """Read them."""


class Attached(Protocol):
    """What is attached to the interfaces."""

    def differ(self) -> bool:
        """Return whether that is something else than when this was last asked."""


class LinkRefresh:
    """Reads the links when they, the backends or what is attached change, and every 15 s.

    Args:
        plane: whose links they are; they were just read.
        now: monotonic clock, s.
        clock: the same clock.
    """

    def __init__(
        self, plane: Links, now: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plane = plane
        self._clock = clock
        self._due = now + _SECONDS
        self._rested = now
        self._look_at = self._may_look = now

    def next_due(self) -> float:
        """Return the monotonic second at which time alone asks for it."""
        due = min(self._due, self._look_at)
        return min(due, self._rested) if self._plane.links_outdated else due

    def refresh(self, now: float, *, woken: bool) -> None:
        """Read the links if they changed or it is time.

        Raises:
            FenceError: another agent has taken over the data plane.
        """
        if woken or self._plane.links_outdated:
            self._due = min(self._due, max(now, self._rested))
        if woken:
            self._look_at = min(self._look_at, max(now, self._may_look))
        if now >= self._look_at:
            self._look_at, self._may_look = now + _ATTACHED_SECONDS, now + _WOKEN_SECONDS
            if self._plane.attachments.differ():
                self._due = now
        if now < self._due:
            return
        began = self._clock()
        try:
            self._plane.follow()
        except DataplaneError as error:
            log.error("interface", reason=error)
        ended = self._clock()
        self._due = ended + _SECONDS
        self._rested = ended + _REST * (ended - began)
