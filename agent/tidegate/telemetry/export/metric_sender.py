# SPDX-License-Identifier: Apache-2.0
"""Sends all metrics to a collector at an interval, on a thread of its own.

What is collected is sent at once and never kept: values are cumulative, so the next export says
what one that is lost would have said. Points of a lost export are counted all the same, so that
a gap can be explained.

The last values are read by the thread that closes the sender, while their sources are still open,
and sent by the sender's own.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.resources import Resource

from tidegate.event_log import EventLog
from tidegate.telemetry import sdk
from tidegate.telemetry.export import metrics_data
from tidegate.telemetry.export.queue import NOT_EXPORTED, SHUTDOWN, Tally
from tidegate.telemetry.metrics.points import Family

log = EventLog(__name__)


class Measured(NamedTuple):
    """All values of a moment.

    Attributes:
        recorded: what goes through the SDK; None if there is nothing.
        families: all else.
    """

    recorded: MetricsData | None
    families: Sequence[Family]


class MetricSender:
    """From `start` to `begin_close` and `end_close`; a round of exports never overlaps the next.

    Args:
        exporter: may take its time, and never raises.
        resource: who sends them.
        interval: s, from the begin of a round to that of the next.
    """

    def __init__(self, exporter: MetricExporter, resource: Resource, interval: float) -> None:
        self._exporter = exporter
        self._resource = resource
        self._interval = interval
        self._taking = threading.RLock()  # nobody asks the sources when they are closed
        self._lock = threading.Lock()
        self._measure: Callable[[], Measured] | None = None
        self._last: Measured | None = None
        self._fault = ""
        self._exported = 0
        self._lost: Counter[str] = Counter()
        self._ended = threading.Event()
        self._given_up = False
        self._left = 0
        self._thread = threading.Thread(target=self._work, name="telemetry-metrics", daemon=True)
        self.cpu = 0.0
        """Seconds of CPU that the thread has taken; for any thread."""

    def start(self, measure: Callable[[], Measured]) -> None:
        """Begin; the first round is after one interval."""
        self._measure = measure
        self._thread.start()

    def tally(self) -> Tally:
        """Return what became of all points."""
        with self._lock:
            return Tally(self._exported, dict(self._lost))

    def begin_close(self) -> None:
        """Take the last values and send them; the sources may be closed when it returns."""
        if self._measure is None or self._ended.is_set():
            return
        with self._taking:
            self._take()
            self._ended.set()

    def end_close(self, deadline: float) -> None:
        """Wait until this monotonic second for the last export; what is left then is lost."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._taking, self._lock:
            self._given_up = True
            left = self._left + (0 if self._last is None else _size(self._last))
            if left:
                self._lost[SHUTDOWN] += left
        self._exporter.shutdown()

    def _work(self) -> None:
        due = time.monotonic() + self._interval
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due = max(due, time.monotonic()) + self._interval
            self._take()
            self._round()
        self._round()

    def _take(self) -> None:
        """Read the values for the next round, unless the sources are closed."""
        with self._taking:
            if self._measure is None or self._ended.is_set():
                return
            try:
                found, fault = self._measure(), ""
            except Exception as error:  # noqa: BLE001 - whatever it is, the next round may do better
                found, fault = None, str(error) or type(error).__name__
            self._last = found
            if fault and fault != self._fault:
                log.warning("metrics_not_read", reason=fault)
            self._fault = fault

    def _round(self) -> None:
        with self._taking, self._lock:
            if self._last is None or self._given_up:
                return
            found, self._last = self._last, None
            self._left = _size(found)
        for part in self._parts(found):
            # After one failure the others are not tried: each might take the whole timeout.
            if self._given_up or self._exporter.export(part) is not MetricExportResult.SUCCESS:
                break
            self._account(exported=_points(part))
        self._account(exported=0, is_over=True)
        self.cpu = time.thread_time()

    def _account(self, exported: int, *, is_over: bool = False) -> None:
        """Count what arrived, and at the end what did not; given up, it is counted as lost."""
        with self._lock:
            if self._given_up:
                return
            self._exported += exported
            self._left -= exported
            if is_over and self._left:
                self._lost[NOT_EXPORTED] += self._left
                self._left = 0

    def _parts(self, found: Measured) -> Iterator[MetricsData]:
        if found.recorded is not None:
            yield found.recorded
        now = time.time_ns()
        yield from metrics_data.exports(found.families, self._resource, sdk.SCOPE, now)


def _size(found: Measured) -> int:
    """Return the number of points that are to be sent."""
    recorded = 0 if found.recorded is None else _points(found.recorded)
    return recorded + metrics_data.size(found.families)


def _points(part: MetricsData) -> int:
    """Return the number of its points."""
    return sum(
        len(metric.data.data_points)
        for on in part.resource_metrics
        for scope in on.scope_metrics
        for metric in scope.metrics
    )
