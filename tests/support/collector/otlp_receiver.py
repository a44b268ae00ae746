# SPDX-License-Identifier: Apache-2.0
"""A real OTLP receiver for tests, over gRPC or HTTP; it keeps in memory what it is sent.

The services are the ones that opentelemetry-proto generates. `mode` can change while it runs: it
then refuses everything for good, says that it is busy, or holds each request back.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb2
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc

from tidegate.telemetry.span import Context, Link, Moment

Mode = Literal["take", "refuse", "busy", "slow"]
Attributes = Mapping[str, Any]
SLOW_SECONDS: Final = 60.0
"""How long a slow receiver holds a request; closing it ends that."""
_MESSAGES: Final = {
    "/v1/traces": trace_pb2.ExportTraceServiceRequest,
    "/v1/metrics": metrics_pb2.ExportMetricsServiceRequest,
    "/v1/logs": logs_pb2.ExportLogsServiceRequest,
}


class ReceivedSpan(NamedTuple):
    """A span as it came in; `parent` is its parent's span id, 0 for none."""

    resource: Attributes
    name: str
    context: Context
    parent: int
    began: int
    ended: int
    attributes: Attributes
    events: tuple[Moment, ...]
    links: tuple[Link, ...]
    error: str
    kind: int


class ReceivedPoint(NamedTuple):
    """A metric's point; of a histogram `value` is the sum, and `count` and `buckets` are set."""

    resource: Attributes
    name: str
    unit: str
    kind: str
    attributes: Attributes
    value: float
    count: int = 0
    bounds: tuple[float, ...] = ()
    buckets: tuple[int, ...] = ()


class ReceivedLog(NamedTuple):
    """A log record; ids are 0 where it has none."""

    resource: Attributes
    severity: str
    body: str
    event: str
    attributes: Attributes
    trace_id: int
    span_id: int


@dataclass
class Received:
    """Everything that has come in, in its order."""

    spans: list[ReceivedSpan] = field(default_factory=list)
    points: list[ReceivedPoint] = field(default_factory=list)
    logs: list[ReceivedLog] = field(default_factory=list)
    headers: list[Attributes] = field(default_factory=list)

    def named(self, name: str) -> list[ReceivedSpan]:
        """Return the spans of one name."""
        return [span for span in self.spans if span.name == name]

    def trace(self, trace_id: int) -> list[ReceivedSpan]:
        """Return the spans of one trace."""
        return [span for span in self.spans if span.context.trace_id == trace_id]


class Receiver:
    """As a context manager it is reachable at `endpoint` inside, and gone after.

    Attributes:
        endpoint: URL for the agent's file; the same after stop() and start().
        requests: how many came in, taken or not.
    """

    def __init__(
        self,
        protocol: Literal["grpc", "http"] = "grpc",
        mode: Mode = "take",
        *,
        address: str = "127.0.0.1",
        certificate: Path | None = None,
    ) -> None:
        """`certificate` is a PEM file with key and certificate; it makes the receiver use TLS."""
        self.mode: Mode = mode
        self.received = Received()
        self.requests = 0
        self._address = address
        self._certificate = certificate
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._port = 0
        self._start = self._start_grpc if protocol == "grpc" else self._start_http
        self._end: Callable[[], None] = lambda: None

    @property
    def endpoint(self) -> str:
        """Where it is."""
        scheme = "https" if self._certificate else "http"
        return f"{scheme}://{self._address}:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; a second time on the same port."""
        self._closing.clear()
        self._start()

    def stop(self) -> None:
        """Listen no more; requests that are held end."""
        self._closing.set()
        self._end()

    def wait_for(self, predicate: Callable[[Received], object], seconds: float = 30.0) -> Received:
        """Wait until it holds of what has come in.

        Raises:
            AssertionError: it did not in time; with what there is.
        """
        with self._changed:
            if self._changed.wait_for(lambda: predicate(self.received), seconds):
                return self.received
            names = [span.name for span in self.received.spans[-50:]]
            raise AssertionError(
                f"not received within {seconds} s; there are {len(self.received.spans)} spans "
                f"(the last: {names}), {len(self.received.points)} points, "
                f"{len(self.received.logs)} log records, {self.requests} requests"
            )

    def _take(self, request: Any, headers: Attributes) -> Mode:
        """Keep a request, or not; return what is to be answered."""
        with self._changed:
            self.requests += 1
            mode = self.mode
        if mode == "slow":
            self._closing.wait(SLOW_SECONDS)
        if mode in {"refuse", "busy"}:
            return mode
        with self._changed:
            self.received.headers.append(headers)
            if isinstance(request, trace_pb2.ExportTraceServiceRequest):
                self.received.spans += _spans(request)
            elif isinstance(request, metrics_pb2.ExportMetricsServiceRequest):
                self.received.points += _points(request)
            else:
                self.received.logs += _logs(request)
            self._changed.notify_all()
        return mode

    def _start_grpc(self) -> None:
        pool = ThreadPoolExecutor(8)
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        answers = (
            (trace_grpc, "Trace", trace_pb2.ExportTraceServiceResponse),
            (metrics_grpc, "Metrics", metrics_pb2.ExportMetricsServiceResponse),
            (logs_grpc, "Logs", logs_pb2.ExportLogsServiceResponse),
        )
        for module, name, response in answers:
            servicer = getattr(module, f"{name}ServiceServicer")()
            servicer.Export = self._grpc_export(response)
            getattr(module, f"add_{name}ServiceServicer_to_server")(servicer, server)
        target = f"{self._address}:{self._port}"
        if self._certificate is None:
            self._port = server.add_insecure_port(target)
        else:
            pem = self._certificate.read_bytes()
            self._port = server.add_secure_port(target, grpc.ssl_server_credentials([(pem, pem)]))
        server.start()

        def end() -> None:
            server.stop(0).wait()
            pool.shutdown()

        self._end = end

    def _grpc_export(self, response: Callable[[], Any]) -> Callable[[Any, Any], Any]:
        codes = {
            "refuse": (grpc.StatusCode.INVALID_ARGUMENT, "not taken here"),
            "busy": (grpc.StatusCode.UNAVAILABLE, "busy"),
        }

        def export(request: Any, context: Any) -> Any:
            mode = self._take(request, dict(context.invocation_metadata()))
            if mode in codes:
                context.abort(*codes[mode])
            return response()

        return export

    def _start_http(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                """Take one export."""
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = 404
                if self.path in _MESSAGES:
                    request = _MESSAGES[self.path].FromString(body)
                    headers = {key.lower(): value for key, value in self.headers.items()}
                    mode = receiver._take(request, headers)
                    code = {"refuse": 400, "busy": 503}.get(mode, 200)
                self.send_response(code)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = _HttpServer((self._address, self._port), Handler)
        self._port = server.server_port
        if self._certificate is not None:
            context = SSLContext(PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()

        def end() -> None:
            server.shutdown()
            thread.join()
            server.server_close()

        self._end = end


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no fault of the receiver."""


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


def _attributes(pairs: Iterable[Any]) -> Attributes:
    return {pair.key: _value(pair.value) for pair in pairs}


def _context(message: Any) -> Context:
    return Context(int.from_bytes(message.trace_id), int.from_bytes(message.span_id))


def _spans(request: Any) -> list[ReceivedSpan]:
    return [
        ReceivedSpan(
            resource=_attributes(part.resource.attributes),
            name=span.name,
            context=_context(span),
            parent=int.from_bytes(span.parent_span_id),
            began=span.start_time_unix_nano,
            ended=span.end_time_unix_nano,
            attributes=_attributes(span.attributes),
            events=tuple(
                Moment(event.name, event.time_unix_nano, _attributes(event.attributes))
                for event in span.events
            ),
            links=tuple(Link(_context(link), _attributes(link.attributes)) for link in span.links),
            error=(span.status.message or "error")
            if span.status.code == span.status.STATUS_CODE_ERROR
            else "",
            kind=span.kind,
        )
        for part in request.resource_spans
        for scope in part.scope_spans
        for span in scope.spans
    ]


def _points(request: Any) -> list[ReceivedPoint]:
    return [
        _point(_attributes(part.resource.attributes), metric, point)
        for part in request.resource_metrics
        for scope in part.scope_metrics
        for metric in scope.metrics
        for point in getattr(metric, metric.WhichOneof("data")).data_points
    ]


def _point(resource: Attributes, metric: Any, point: Any) -> ReceivedPoint:
    kind = metric.WhichOneof("data")
    about = (resource, metric.name, metric.unit, kind, _attributes(point.attributes))
    if kind == "histogram":
        bounds, buckets = tuple(point.explicit_bounds), tuple(point.bucket_counts)
        return ReceivedPoint(*about, point.sum, point.count, bounds, buckets)
    return ReceivedPoint(*about, getattr(point, point.WhichOneof("value")))


def _logs(request: Any) -> list[ReceivedLog]:
    return [
        ReceivedLog(
            resource=_attributes(part.resource.attributes),
            severity=record.severity_text,
            body=str(_value(record.body)),
            event=record.event_name,
            attributes=_attributes(record.attributes),
            trace_id=int.from_bytes(record.trace_id),
            span_id=int.from_bytes(record.span_id),
        )
        for part in request.resource_logs
        for scope in part.scope_logs
        for record in scope.log_records
    ]
