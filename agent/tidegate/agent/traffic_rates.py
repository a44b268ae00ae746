# SPDX-License-Identifier: Apache-2.0
"""How the host's packets fare, for its status: rates over the last seconds, from kernel counters.

What is reported is rounded, and stays until it has changed by more than noise: a status is read
by the whole fleet, and must not be written anew because of the third digit of a rate. This is no
telemetry; it is for comparing hosts.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.event_log import EventLog
from tidegate.keyspace.status.parts import TrafficStatus

log = EventLog(__name__)

INTERVAL: Final = 5.0
"""Seconds between two samples of the counters."""
_NOISE: Final = 0.2
"""Part of a rate by which it may differ from the one that is reported."""
_FEW: Final = 10.0
"""Packets per second: two rates below differ by nothing that matters."""
_SMALL: Final = 1e-4
"""Two shares that differ by less are reported as one."""

_MERGED_SECONDS: Final = 60.0
_MERGED: Final = (
    "frames longer than the link's MTU are dropped: the host merges packets before the program "
    "sees them (GRO, LRO); turn that off on the interface and its ports (docs/network.md)"
)

Totals = npt.NDArray[np.uint64]
"""Shape (VIP ids, 4): packets, drops, misses and merged frames since the maps were made."""


class _Sample(NamedTuple):
    at: float
    totals: Totals


def rates(before: Totals, after: Totals, seconds: float) -> TrafficStatus:
    """Return what happened between two samples; `seconds` lie between them.

    An id that is new counts from 0. One whose counters went back was given to another VIP, and is
    left out this once.
    """
    packets, drops, misses, _ = _grown(before, after)
    return TrafficStatus(
        packets_per_second=round_to(packets / seconds),
        drops=round_to(drops / packets) if packets else 0.0,
        misses=round_to(misses / packets) if packets else 0.0,
    )


def _grown(before: Totals, after: Totals) -> list[int]:
    rows = min(len(before), len(after))
    grown = after.astype(np.int64)
    grown[:rows] -= before[:rows].astype(np.int64)
    found: list[int] = np.clip(grown, 0, None).sum(axis=0).tolist()
    return found


def round_to(value: float) -> float:
    """Return a value with three significant digits."""
    return float(f"{value:.3g}")


def steady(reported: TrafficStatus | None, now: TrafficStatus) -> TrafficStatus:
    """Return what to report: what was reported, unless that is not true any more."""
    if reported is None:
        return now
    rate = abs(now.packets_per_second - reported.packets_per_second)
    close = rate <= max(_FEW, _NOISE * reported.packets_per_second)
    for name in ("drops", "misses"):
        old, new = getattr(reported, name), getattr(now, name)
        close = close and abs(new - old) <= max(_SMALL, _NOISE * old)
    return reported if close else now


class TrafficSampler:
    """Samples the counters every `INTERVAL` seconds."""

    def __init__(self, read: Callable[[], Totals]) -> None:
        """Prepare it; nothing is read yet."""
        self._read = read
        self._last: _Sample | None = None
        self._due = 0.0
        self.traffic: TrafficStatus | None = None
        """What to report; None until two samples were taken."""
        self._merged_at = -_MERGED_SECONDS
        self.problem = ""
        """Which packets are lost though the host could forward them, and what to do."""

    def next_due(self) -> float:
        """Return the monotonic second of the next sample."""
        return self._due

    def sample(self, now: float) -> None:
        """Take a sample if one is due.

        Raises:
            DataplaneError: the counters cannot be read.
        """
        if now < self._due:
            return
        self._due = now + INTERVAL  # also if reading fails
        sample = _Sample(now, self._read())
        if self._last is not None:
            fresh = rates(self._last.totals, sample.totals, now - self._last.at)
            self.traffic = steady(self.traffic, fresh)
            self._look_for_merged(now, _grown(self._last.totals, sample.totals)[-1])
        self._last = sample

    def _look_for_merged(self, now: float, frames: int) -> None:
        """Report merged frames until none has come for a while."""
        if frames:
            self._merged_at = now
            if not self.problem:
                log.warning("merged_frames_dropped", frames=frames)
        is_recent = now - self._merged_at < _MERGED_SECONDS
        self.problem = _MERGED if is_recent else ""
