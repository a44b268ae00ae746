# SPDX-License-Identifier: Apache-2.0
"""From spans, log lines and metrics to a collector: one thread and one exporter per signal.

Emitting never blocks: what a queue has no room for is dropped and counted. Without an
endpoint there is no thread, and emitting does nothing.
"""

import time
from collections.abc import Mapping

from opentelemetry.sdk.metrics.export import MetricExporter

from tidegate.telemetry import sdk
from tidegate.telemetry.export import otlp
from tidegate.telemetry.export.faults import Faults
from tidegate.telemetry.export.metric_sender import MetricSender
from tidegate.telemetry.export.queue import Queue, Tally
from tidegate.telemetry.export.settings import Signal, TelemetrySettings
from tidegate.telemetry.sdk import Identity, Line
from tidegate.telemetry.span import Sink, Span


class Pipeline:
    """Everything that this agent sends over OTLP. It is a Sink of spans.

    Attributes:
        resource: what is on all that is sent.
        faults: why something does not arrive, now.
        metrics: sends the values that it reads; None where metrics are not sent.
    """

    def __init__(self, settings: TelemetrySettings, identity: Identity) -> None:
        self._settings = settings
        self.resource = sdk.resource(identity)
        self.faults = Faults(settings.endpoint)
        self._spans: Queue[Span] | None = None
        self._lines: Queue[Line] | None = None
        if settings.sends("traces"):
            self._to_traces = otlp.span_export(settings, self.faults)
            self._spans = Queue("traces", settings.span_queue, self._send_spans)
        if settings.sends("logs"):
            self._to_logs = otlp.log_export(settings, self.faults)
            self._lines = Queue("logs", settings.log_queue, self._send_lines)
        self.metrics: MetricSender | None = None
        if (exporter := self.metric_exporter()) is not None:
            self.metrics = MetricSender(exporter, self.resource, settings.interval)

    @property
    def sink(self) -> Sink | None:
        """Where spans go; None where none are sent."""
        return None if self._spans is None else self

    @property
    def takes_lines(self) -> bool:
        """Whether log lines are sent."""
        return self._lines is not None

    def emit(self, span: Span) -> None:
        """Take a span; never block and never raise. One that is not sampled goes nowhere."""
        if self._spans is not None and span.context.is_sampled:
            self._spans.offer(span)

    def write(self, line: Line) -> None:
        """Take a log line; never block and never raise."""
        if self._lines is not None:
            self._lines.offer(line)

    def metric_exporter(self) -> MetricExporter | None:
        """Return a new exporter of metrics; None where metrics are not sent."""
        if not self._settings.sends("metrics"):
            return None
        return otlp.metric_exporter(self._settings, self.faults)

    def tallies(self) -> Mapping[Signal, Tally]:
        """Return what became of what was emitted, for each signal that is sent."""
        queues: dict[Signal, Queue[Span] | Queue[Line] | MetricSender | None] = {
            "traces": self._spans,
            "metrics": self.metrics,
            "logs": self._lines,
        }
        return {signal: queue.tally() for signal, queue in queues.items() if queue is not None}

    def close(self) -> None:
        """Send what is left for at most `flush` seconds, and end."""
        deadline = time.monotonic() + self._settings.flush
        signals = (self._spans, self.metrics, self._lines)
        queues = [queue for queue in signals if queue is not None]
        for queue in queues:
            queue.begin_close()
        for queue in queues:
            queue.end_close(deadline)
        if self._spans is not None:
            self._to_traces.close()
        if self._lines is not None:
            self._to_logs.close()

    def _send_spans(self, spans: list[Span]) -> bool:
        return self._to_traces.send([sdk.readable_span(span, self.resource) for span in spans])

    def _send_lines(self, lines: list[Line]) -> bool:
        return self._to_logs.send([sdk.readable_line(line, self.resource) for line in lines])
