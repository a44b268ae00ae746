# SPDX-License-Identifier: Apache-2.0
"""When the kernel is compared with what it has to hold, and what is told of it.

Shallow after each push, at most once a second, so that a storm of changes is not slowed down and
its last one is still looked at; deep at a set interval. What was put right is counted and logged;
what could not be is a refusal of stage `verify` until a later look finds it right.
"""

import logging
from typing import Final

from tidegate.dataplane.plane import DataPlane
from tidegate.dataplane.publish.audit import Finding
from tidegate.errors import DataplaneError
from tidegate.model.values import Rejection

log = logging.getLogger(__name__)

_SHALLOW_SECONDS: Final = 1.0


class Auditor:
    """Looks when it is time.

    Args:
        plane: what is compared.
        interval: seconds between deep looks.
        now: monotonic clock, s.
    """

    def __init__(self, plane: DataPlane, interval: float, now: float) -> None:
        self._plane = plane
        self._last = self._deep = now
        self._seen = plane.publisher.in_force.number
        self.interval = interval
        self.repairs = 0
        """Differences that were put right since the start."""
        self.damages: tuple[Rejection, ...] = ()

    @property
    def due(self) -> float:
        """Monotonic second of the next look."""
        deep = self._deep + self.interval
        is_pushed = self._plane.publisher.in_force.number != self._seen
        return min(deep, self._last + _SHALLOW_SECONDS) if is_pushed else deep

    def look(self, now: float) -> None:
        """Compares and repairs, if it is time.

        Raises:
            FenceError: the data plane is another agent's now.
        """
        if now < self.due:
            return
        is_deep = now >= self._deep + self.interval
        self._last = now
        self._deep = now if is_deep else self._deep
        self._seen = self._plane.publisher.in_force.number
        try:
            found = self._plane.audit(deep=is_deep)
        except DataplaneError as error:
            log.error("audit reason=%s", error)  # noqa: TRY400 - the sentence is for an operator
            return
        for finding in found:
            log.error("audit %s", finding)
        self.repairs += sum(not finding.failure for finding in found)
        revision = self._plane.publisher.in_force.revision
        self.damages = tuple(_damage(each, revision) for each in found if each.failure)


def _damage(finding: Finding, revision: int) -> Rejection:
    return Rejection("", "", str(finding), "verify", revision)
