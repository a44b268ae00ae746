# SPDX-License-Identifier: Apache-2.0
"""Decides when the kernel is compared with what it has to hold, and keeps what was found.

Shallow after each push, at most once a second, so that a storm of changes is not slowed down and
its last one is still checked; deep at a set interval. What was repaired is counted and logged; what
could not be is a refusal of stage `verify` until a later comparison finds it right.
"""

from collections.abc import Sequence
from typing import Final

from tidegate.dataplane.plane import DataPlane
from tidegate.dataplane.publish.audit import Finding
from tidegate.errors import DataplaneError
from tidegate.event_log import EventLog
from tidegate.model.values import Rejection

log = EventLog(__name__)

_SHALLOW_SECONDS: Final = 1.0


class Auditor:
    """Compares when it is time.

    Args:
        plane: what is compared.
        interval: seconds between deep comparisons.
        now: monotonic clock, s.
    """

    def __init__(self, plane: DataPlane, interval: float, now: float) -> None:
        self._plane = plane
        self._last = self._deep = now
        self._seen = plane.publisher.in_force.number
        self._interval = interval
        self.repairs = 0
        """Differences that were repaired since the start."""
        self.damages: tuple[Rejection, ...] = ()
        self.problem = ""
        """Why the kernel cannot be compared, as a sentence; empty if it can."""

    def set_interval(self, interval: float) -> None:
        """Leave other times between deep comparisons from now on."""
        self._interval = interval

    def next_due(self) -> float:
        """Return the monotonic second of the next comparison."""
        deep = self._deep + self._interval
        is_pushed = self._plane.publisher.in_force.number != self._seen
        return min(deep, self._last + _SHALLOW_SECONDS) if is_pushed else deep

    def audit(self, now: float) -> None:
        """Compare and repair, if it is time; take note of what was repaired meanwhile.

        Raises:
            FenceError: the data plane is another agent's now.
        """
        self._note(self._plane.probe_tunnel.take_findings())
        if now < self.next_due():
            return
        is_deep = now >= self._deep + self._interval
        self._last = now
        self._deep = now if is_deep else self._deep
        self._seen = self._plane.publisher.in_force.number
        try:
            found = self._plane.audit(deep=is_deep)
        except DataplaneError as error:
            log.error("audit_failed", reason=error)
            self.problem = f"The kernel cannot be compared with what it has to hold: {error}"
            return
        self.problem = ""
        self._note(found)
        revision = self._plane.publisher.in_force.revision
        self.damages = tuple(_damage(each, revision) for each in found if each.failure)

    def _note(self, found: Sequence[Finding]) -> None:
        for finding in found:
            log.error(
                "audit",
                map=finding.map,
                key=finding.key,
                fault=finding.fault,
                failure=finding.failure,
            )
        self.repairs += sum(not finding.failure for finding in found)


def _damage(finding: Finding, revision: int) -> Rejection:
    return Rejection("", "", str(finding), "verify", revision)
