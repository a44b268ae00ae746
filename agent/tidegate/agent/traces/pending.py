# SPDX-License-Identifier: Apache-2.0
"""Traces of changes that are over, and wait for their end: status in etcd, and first packet.

Nothing is held up by it. Whoever brings the last thing that a trace waits for has its spans made,
on their own thread; what does not come within LIMIT seconds is left out.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from tidegate.keyspace.status.document import StatusDocument
from tidegate.telemetry import changes
from tidegate.telemetry.changes import Change
from tidegate.telemetry.span import Sink, Span

LIMIT: Final = 30.0
"""Seconds for which a trace waits for its end."""
_MOST_PENDING: Final = 64


@dataclass(slots=True)
class _Pending:
    """A change that is over, and what its trace waits for."""

    change: Change
    generation: int
    revision: int
    deadline: float
    for_status: bool
    for_packet: bool

    def is_over(self, now: float) -> bool:
        return self.deadline <= now or not (self.for_status or self.for_packet)


class PendingTraces:
    """Completes traces. Any thread may call it.

    Args:
        sink: gets the spans; None has none made.
        observe: gets the seconds that each stage of a generation took.
        clock: nanoseconds since 1970.
    """

    def __init__(
        self, sink: Sink | None, observe: Callable[[str, float], None], clock: Callable[[], int]
    ) -> None:
        self._sink = sink
        self._observe = observe
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: list[_Pending] = []
        self._packets: deque[tuple[int, int]] = deque(maxlen=_MOST_PENDING)

    def add(
        self,
        change: Change,
        generation: int,
        revision: int,
        *,
        for_status: bool,
        for_packet: bool,
    ) -> None:
        """Let a change's trace wait for its end.

        Args:
            change: what the trace is made of, so far.
            generation: number of the generation in force at its end.
            revision: latest etcd revision that it looked at.
            for_status: it ends when etcd has a status of that generation and revision.
            for_packet: and when a sampled packet has met that generation's tables.
        """
        deadline = time.monotonic() + LIMIT
        pending = _Pending(change, generation, revision, deadline, for_status, for_packet)
        with self._lock:
            self._meet(pending)
            self._pending.append(pending)
            for each in self._pending[:-_MOST_PENDING]:
                each.deadline = float("-inf")

    def acknowledged(self, status: StatusDocument) -> None:
        """Take note that etcd has this status."""
        now = self._clock()
        with self._lock:
            for each in self._pending:
                is_seen = each.revision <= status.revision and each.generation <= status.generation
                if each.for_status and is_seen:
                    each.for_status = False
                    each.change = replace(each.change, acknowledged=now)
        self.complete(time.monotonic())

    def first_packet(self, generation: int, at: int) -> None:
        """Take note that a sampled packet met a table of this generation at this moment."""
        with self._lock:
            self._packets.append((generation, at))
            for each in self._pending:
                self._meet(each)
        self.complete(time.monotonic())

    def complete(self, now: float) -> None:
        """End the traces that have what they wait for, or have waited for long enough."""
        with self._lock:
            over = [each for each in self._pending if each.is_over(now)]
            self._pending = [each for each in self._pending if not each.is_over(now)]
        for each in over:
            self._emit_change(each.change)

    def next_due(self) -> float | None:
        """Return the monotonic second at which a trace has waited for long enough, or None."""
        with self._lock:
            return min((each.deadline for each in self._pending), default=None)

    def emit(self, spans: Iterable[Span]) -> None:
        """Hand spans to the sink, those that are sampled."""
        if self._sink is not None:
            for span in spans:
                if span.context.is_sampled:
                    self._sink.emit(span)

    def close(self) -> None:
        """End all traces as they are."""
        self.complete(float("inf"))

    def _meet(self, pending: _Pending) -> None:
        """Give it the first packet that met its tables or later ones, if there was one."""
        met = [at for number, at in self._packets if number >= pending.generation]
        if pending.for_packet and met:
            pending.for_packet = False
            pending.change = replace(pending.change, first_packet=min(met))

    def _emit_change(self, change: Change) -> None:
        self.emit(changes.spans(change))
        if change.outcome == "applied":
            for stage, seconds in changes.durations(change).items():
                self._observe(stage, seconds)
