# SPDX-License-Identifier: Apache-2.0
"""Our plain values as the SDK's: the resource, spans, log records. Sends nothing."""

import os
import platform
from typing import TYPE_CHECKING, Final, NamedTuple

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from tidegate import __version__
from tidegate.telemetry.names import resource as names
from tidegate.telemetry.span import NONE, Attributes, Context, Span

if TYPE_CHECKING:
    from tidegate.telemetry.registry import Attribute

SCOPE: Final = InstrumentationScope("tidegate", __version__)
_KINDS: Final = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "consumer": SpanKind.CONSUMER,
}
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
"""The kernel's names and the semantic conventions'."""


class Identity(NamedTuple):
    """Whose telemetry it is: the fleet and the host, as the keyspace calls them."""

    fleet: str
    host: str


class Line(NamedTuple):
    """A log record; `severity` is of logging's scale, `at` in nanoseconds since 1970.

    Attributes:
        event: OpenTelemetry's name of the event; None for a record that is text alone.
    """

    at: int
    severity: int
    body: str
    attributes: Attributes = NONE
    context: Context | None = None
    event: str | None = None


def resource(identity: Identity) -> Resource:
    """Return what is on everything that this agent sends; OTEL_RESOURCE_ATTRIBUTES adds to it."""
    kernel = platform.uname()
    values: dict[Attribute, str | int] = {
        names.SERVICE_NAME: "tidegate",
        names.SERVICE_NAMESPACE: identity.fleet,
        names.SERVICE_INSTANCE: f"{identity.fleet}/{identity.host}",
        names.SERVICE_VERSION: __version__,
        names.HOST_NAME: identity.host,
        names.HOST_ARCH: _ARCHITECTURES.get(kernel.machine, kernel.machine),
        names.OS_TYPE: "linux",
        names.OS_VERSION: kernel.release,
        names.PROCESS_PID: os.getpid(),
        names.FLEET: identity.fleet,
    }
    return Resource.create({attribute.key: value for attribute, value in values.items()})


def readable_span(span: Span, on: Resource) -> ReadableSpan:
    """Return a span as exporters take it."""
    return ReadableSpan(
        name=span.name,
        context=_context(span.context),
        parent=None if span.parent is None else _context(span.parent),
        resource=on,
        attributes=dict(span.attributes),
        events=[Event(name, dict(attributes), at) for name, at, attributes in span.events],
        links=[Link(_context(context), dict(attributes)) for context, attributes in span.links],
        kind=_KINDS[span.kind],
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
        start_time=span.began,
        end_time=span.ended,
        instrumentation_scope=SCOPE,
    )


def readable_line(line: Line, on: Resource) -> ReadableLogRecord:
    """Return a log record as exporters take it."""
    context = _context(line.context) if line.context else None
    record = LogRecord(
        timestamp=line.at,
        observed_timestamp=line.at,
        context=set_span_in_context(NonRecordingSpan(context)) if context else None,
        severity_text=_severity(line.severity)[0],
        severity_number=_severity(line.severity)[1],
        body=line.body,
        attributes=dict(line.attributes),
        event_name=line.event,
    )
    return ReadableLogRecord(record, on, SCOPE)


def _severity(level: int) -> tuple[str, SeverityNumber]:
    for least, text, number in (
        (50, "FATAL", SeverityNumber.FATAL),
        (40, "ERROR", SeverityNumber.ERROR),
        (30, "WARN", SeverityNumber.WARN),
        (20, "INFO", SeverityNumber.INFO),
    ):
        if level >= least:
            return text, number
    return "DEBUG", SeverityNumber.DEBUG


def _context(context: Context) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.is_sampled else TraceFlags.DEFAULT)
    return SpanContext(context.trace_id, context.span_id, is_remote=False, trace_flags=flags)
