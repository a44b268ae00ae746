# SPDX-License-Identifier: Apache-2.0
"""Logs what is refused: each thing once, and not more than a log can bear.

The status has everything that is refused now. The log has what happened, and a control system that
writes the same fault a hundred times a second, or ten thousand faults at once, must not fill a disk
with it. So a fault that is written again is not logged again within REMEMBERED seconds of the last
time that it was there, and at most LINES are logged in any PERIOD; what is left out is counted.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from tidegate.event_log import EventLog
from tidegate.model.values import Rejection

log = EventLog(__name__)

REMEMBERED: Final = 60.0
LINES: Final = 50
PERIOD: Final = 10.0


class _Fault(NamedTuple):
    """What makes two refusals the same for a reader; the revision does not."""

    key: str
    field: str
    reason: str


class RefusalLog:
    """Remembers what it has logged."""

    def __init__(self) -> None:
        self._last: dict[_Fault, float] = {}
        self._began = float("-inf")
        self._logged = 0

    def write(self, rejections: Iterable[Rejection], now: float) -> None:
        """Log what is new among everything that is refused at this monotonic second."""
        if now >= self._began + PERIOD:
            self._began, self._logged = now, 0
        left_out = 0
        for rejection in rejections:
            fault = _Fault(rejection.key, rejection.field, rejection.reason)
            is_new = fault not in self._last
            self._last[fault] = now
            if is_new and self._logged < LINES:
                self._logged += 1
                log.warning(
                    "refused",
                    key=rejection.key,
                    field=rejection.field,
                    stage=rejection.stage,
                    reason=rejection.reason,
                )
            elif is_new:
                left_out += 1
        if left_out:
            log.warning("refused_more", count=left_out, reason="too many; the status lists them")
        self._last = {fault: at for fault, at in self._last.items() if at > now - REMEMBERED}
