# SPDX-License-Identifier: Apache-2.0
"""The agent's metrics: collected on request, beside the loop and never by it.

The loop leaves the values that it has, which takes microseconds. Counters are read from the kernel
by the thread that asks. A thread of its own counts the connection table now and then, as that takes
a while: never more than a hundredth of a core. A request within a second of another gets the same
text.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from tidegate.agent.metrics import host_points
from tidegate.agent.metrics.host_points import CheckPoints, LastTurn, StateClock
from tidegate.agent.metrics.packet_points import PacketPoints
from tidegate.agent.report import Facts
from tidegate.agent.traces.flows import FlowCounts
from tidegate.dataplane.inspect.counter_reader import Census, CounterReader
from tidegate.errors import AgentError, CapabilityError, DataplaneError
from tidegate.event_log import EventLog
from tidegate.health.standing import Standing
from tidegate.health.tally import PoolTally
from tidegate.keyspace.status.document import StatusDocument
from tidegate.model.values import BackendKey
from tidegate.telemetry.export.metric_sender import Measured, MetricSender
from tidegate.telemetry.export.settings import TelemetrySettings
from tidegate.telemetry.metrics import exposition
from tidegate.telemetry.metrics.endpoint import Endpoint, place
from tidegate.telemetry.metrics.points import ALONE, Family, Points, Series
from tidegate.telemetry.metrics.recorder import Recorder
from tidegate.telemetry.names import health_metrics as health_names
from tidegate.telemetry.names import metrics as names

log = EventLog(__name__)

_SAME: Final = 1.0
"""Seconds for which a text is given again."""
_SHARE: Final = 0.01
"""Of a core, that counting entries may take."""
_CENSUS_SECONDS: Final = 15.0
"""Between two counts of entries, at least."""


class Checks(Protocol):
    """What the health checks find and did."""

    def standings(self) -> Mapping[BackendKey, Standing]:
        """Return the standing of each backend in force."""

    def tallies(self) -> Mapping[str, PoolTally]:
        """Return the tally of each pool that is checked."""

    @property
    def left_out(self) -> int:
        """Probes that were due and not made."""


class Contact(Protocol):
    """What follows etcd."""

    @property
    def last_contact(self) -> float:
        """Monotonic second."""


class Flows(Protocol):
    """What traces flows."""

    @property
    def is_active(self) -> bool:
        """Whether it does."""

    counts: FlowCounts


@dataclass(frozen=True)
class Sources:
    """Where values come from, for any thread."""

    counter_reader: CounterReader
    checks: Checks
    etcd: Contact
    flows: Flows


class MetricCollector:
    """Collects metrics, from `start` to `close`.

    Args:
        sources: read at each request.
        recorder: has what is recorded one by one.
        settings: checked.
        sender: sends them over OTLP, if that is asked for.
    """

    def __init__(
        self,
        sources: Sources,
        recorder: Recorder,
        settings: TelemetrySettings,
        sender: MetricSender | None = None,
    ) -> None:
        self._sources = sources
        self._settings = settings
        self._endpoint: Endpoint | None = None
        self.problems: tuple[str, ...] = ()
        """What cannot be done, as sentences."""
        self._recorder = recorder
        self._sender = sender
        self._began = time.time_ns()
        self._packets = PacketPoints(sources.counter_reader.began, time.time_ns)
        self._checks = CheckPoints(self._began)
        self._states = StateClock(time.monotonic())
        self._turn: LastTurn | None = None
        self._census: Census | None = None
        self._cpu = 0.0
        self._lock = threading.Lock()
        self._text = (float("-inf"), b"")
        self._end = threading.Event()
        self._counter = threading.Thread(target=self._count, name="census", daemon=True)

    def start(self) -> None:
        """Start counting entries, and listening and sending if the settings say so."""
        self._counter.start()
        if self._sender is not None:
            self._sender.start(self._measured)
        where = place(self._settings.prometheus)
        try:
            if self._settings.metrics.program_stats:
                self._sources.counter_reader.measure_run_times()
            if where is not None:
                self._endpoint = Endpoint(where, self.text)
                log.info("prometheus", listen=where.host, port=self._endpoint.port)
        except (AgentError, CapabilityError) as error:
            self.problems = (str(error),)
            log.warning("metrics_unavailable", reason=error)

    def close(self) -> None:
        """End counting, and leave the last values to the sender; no request may follow."""
        if self._sender is not None:
            self._sender.begin_close()
        if self._endpoint is not None:
            self._endpoint.close()
        self._end.set()
        if self._counter.is_alive():
            self._counter.join()
        self._recorder.close()

    def update(self, facts: Facts, document: StatusDocument) -> None:
        """Take what the loop has at the end of a turn."""
        self._states.enter(document.state, time.monotonic())
        self._turn = LastTurn(facts, document, self._states.times, self._states.since)

    def text(self) -> bytes:
        """Return all metrics as Prometheus' text.

        Raises:
            DataplaneError: the kernel's counters cannot be read.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._text[0] >= _SAME:
                began = time.thread_time()
                text = exposition.rendered(self._collect()) + self._recorder.text()
                self._text = (now, text.encode())
                self._cpu += time.thread_time() - began
            return self._text[1]

    def _measured(self) -> Measured:
        """Return all metrics as points; raise as `text`."""
        with self._lock:
            return Measured(self._recorder.collect(), self._collect())

    def _collect(self) -> list[Family]:
        sources, turn = self._sources, self._turn
        counter_reader, checks = sources.counter_reader, sources.checks
        families: list[Family] = [*self._packets.points(counter_reader.read())]
        if self._census is not None:
            families += self._packets.live(self._census)
        families += host_points.of_maps(
            counter_reader.written(), self._census, counter_reader.limits
        )
        families += host_points.of_program(counter_reader.times, self._began)
        if turn is not None:
            contact = sources.etcd.last_contact
            families += host_points.of_host(turn, contact, time.monotonic(), self._began)
            families += host_points.of_health(turn, self._began)
        families += self._checks.points(checks.standings(), checks.tallies(), time.monotonic())
        left_out = Series((), ALONE, self._began)
        families.append(Points(health_names.PROBES_LEFT_OUT, left_out, [checks.left_out]))
        if sources.flows.is_active:
            families += host_points.of_flows(sources.flows.counts, self._began)
        cpu = self._cpu + (0.0 if self._sender is None else self._sender.cpu)
        families.append(Points(names.METRICS_TIME, Series((), ALONE, self._began), [cpu]))
        return families

    def _count(self) -> None:
        pause = 0.0
        while not self._end.wait(pause):
            began = time.thread_time()
            try:
                self._census = self._sources.counter_reader.census()
            except (OSError, DataplaneError) as error:
                if self._end.is_set():
                    return
                log.warning("census_failed", reason=error)
            spent = time.thread_time() - began
            with self._lock:
                self._cpu += spent
            pause = max(_CENSUS_SECONDS, spent / _SHARE)
