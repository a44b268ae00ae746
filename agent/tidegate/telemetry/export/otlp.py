# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry's exporters for gRPC and HTTP, from the agent's settings.

An exporter is made when it is first used, and made anew after a failure with its files read again:
so a certificate or a token that is replaced, or that comes later, takes no restart. Exports happen
on threads of their own; each may take `timeout` seconds and never raises.
"""

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan

from tidegate.telemetry.export import faults as faulty
from tidegate.telemetry.export.faults import Faults
from tidegate.telemetry.export.settings import Signal, TelemetrySettings

Batch = TypeVar("Batch")
_LARGEST_HEADERS: Final = 65536


class _Exporter(Protocol):
    """What OpenTelemetry's exporters have in common."""

    def export(self, batch: Any, /) -> Any:  # noqa: ANN401 - each signal has its own types
        """Send a batch."""

    def shutdown(self) -> Any:  # noqa: ANN401 - the result is of no use
        """End it, and with it an export that is under way."""


class Export(Generic[Batch]):
    """Sends the batches of one signal; one thread at a time."""

    def __init__(self, settings: TelemetrySettings, signal: Signal, faults: Faults) -> None:
        self._settings = settings
        self._signal = signal
        self._faults = faults
        self._exporter: _Exporter | None = None
        self._closed = False
        faulty.listen()

    def send(self, batch: Batch) -> bool:
        """Send it, and return whether it arrived; if not, the faults have the reason."""
        with faulty.heard() as lines:
            is_sent = self._try(batch, lines)
            if not is_sent:
                self._discard()
        if is_sent:
            self._faults.worked(self._signal)
        elif not self._closed:
            self._faults.failed(self._signal, faulty.explain(lines))
        return is_sent

    def _try(self, batch: Batch, lines: list[str]) -> bool:
        try:
            if self._exporter is None:
                self._exporter = _make(self._settings, self._signal)
            return bool(self._exporter.export(batch).name == "SUCCESS")
        except OSError as error:  # ssl.SSLError is one
            name = f"cannot read {error.filename}: " if error.filename else ""
            lines.append(f"{name}{error.strerror or error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the thread
            lines.append(f"{type(error).__name__}: {error}")
        return False

    def _discard(self) -> None:
        exporter, self._exporter = self._exporter, None
        if exporter is not None:
            exporter.shutdown()

    def close(self) -> None:
        """End it; from any thread."""
        self._closed = True
        with faulty.heard():
            self._discard()


class _Metrics(MetricExporter):
    """An Export as the SDK's metric readers want it."""

    def __init__(self, export: Export[MetricsData]) -> None:
        super().__init__()
        self._send = export

    def export(
        self,
        metrics_data: MetricsData,
        *_: object,  # the settings say how long
        **__: object,
    ) -> MetricExportResult:
        """Send it; a failure is counted by the reader's owner."""
        is_sent = self._send.send(metrics_data)
        return MetricExportResult.SUCCESS if is_sent else MetricExportResult.FAILURE

    def force_flush(self, *_: object, **__: object) -> bool:
        """Keep nothing back."""
        return True

    def shutdown(self, *_: object, **__: object) -> None:
        """End it, and with it an export that is under way."""
        self._send.close()


def span_export(settings: TelemetrySettings, faults: Faults) -> Export[Sequence[ReadableSpan]]:
    """Return what sends spans."""
    return Export(settings, "traces", faults)


def log_export(settings: TelemetrySettings, faults: Faults) -> Export[Sequence[ReadableLogRecord]]:
    """Return what sends log records."""
    return Export(settings, "logs", faults)


def metric_exporter(settings: TelemetrySettings, faults: Faults) -> MetricExporter:
    """Return what a metric reader of the SDK sends with."""
    return _Metrics(Export(settings, "metrics", faults))


def read_headers(path: Path) -> dict[str, str]:
    """Read `name: value` lines; empty ones and those with # are left out.

    Raises:
        OSError: it cannot be read, or a line is not a header. Values are never in the text.
    """
    headers = {}
    with path.open("rb") as file:
        text = file.read(_LARGEST_HEADERS).decode("ascii", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not line.strip() or line.startswith("#"):
            continue
        if not colon or not name or not value.isprintable() or not value.isascii() or " " in name:
            raise OSError(f"{path} line {number} is not a header; it has to be name: value")
        headers[name.lower()] = value
    return headers


def _make(settings: TelemetrySettings, signal: Signal) -> _Exporter:
    """Make the exporter; read all files."""
    headers = read_headers(Path(settings.headers_file)) if settings.headers_file else {}
    _check_files(settings)
    make = _grpc if settings.protocol == "grpc" else _http
    made = make(settings, signal, headers)
    faulty.unmute()
    return made


def _check_files(settings: TelemetrySettings) -> None:
    """Read certificates as both transports do, since what these say of a bad one is no help."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.ca:
        with _naming("ca", settings.ca):
            context.load_verify_locations(settings.ca)
    if settings.cert:
        with _naming("cert", settings.cert):
            context.load_cert_chain(settings.cert, settings.key)


@contextmanager
def _naming(key: str, path: str) -> Iterator[None]:
    """Name the key whose file cannot be used."""
    try:
        yield
    except ssl.SSLError as error:
        reason = error.reason or "it has none"
        raise OSError(f"telemetry.{key}: {path} is no PEM file to use: {reason}") from error
    except OSError as error:
        raise OSError(f"telemetry.{key}: cannot read {path}: {error.strerror}") from error


def _grpc(settings: TelemetrySettings, signal: Signal, headers: dict[str, str]) -> _Exporter:
    import grpc  # noqa: PLC0415 - one protocol is used, and each takes its time to import
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import (  # noqa: PLC0415
        OTLPLogExporter,
    )
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (  # noqa: PLC0415
        OTLPMetricExporter,
    )
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )

    kinds: dict[Signal, Callable[..., Any]] = {
        "traces": OTLPSpanExporter,
        "metrics": OTLPMetricExporter,
        "logs": OTLPLogExporter,
    }
    credentials = None
    if settings.is_secure:
        files = (settings.ca, settings.key, settings.cert)
        credentials = grpc.ssl_channel_credentials(
            *(Path(file).read_bytes() if file else None for file in files)
        )
    made = kinds[signal](
        endpoint=settings.endpoint,
        insecure=not settings.is_secure,
        credentials=credentials,
        headers=tuple(headers.items()) or None,
        timeout=settings.timeout,
        # Each channel a connection of its own: one that is closed must not take another's with it.
        channel_options=(("grpc.use_local_subchannel_pool", 1),),
    )
    return cast("_Exporter", made)


def _noting(request: Callable[..., Any]) -> Callable[..., Any]:
    """Note why a request failed: the exporter does not, where no time is left to try again."""

    def send(*arguments: object, **options: object) -> Any:  # noqa: ANN401 - requests has no types
        try:
            response = request(*arguments, **options)
        except Exception as error:
            faulty.note(str(error))
            raise
        if not response.ok:
            faulty.note(f"code: {response.status_code}, reason: {response.reason}")
        return response

    return send


def _http(settings: TelemetrySettings, signal: Signal, headers: dict[str, str]) -> _Exporter:
    import requests  # noqa: PLC0415 - as above
    from opentelemetry.exporter.otlp.proto.http._log_exporter import (  # noqa: PLC0415 - as above
        OTLPLogExporter,
    )
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415
        OTLPMetricExporter,
    )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )

    kinds: dict[Signal, Callable[..., Any]] = {
        "traces": OTLPSpanExporter,
        "metrics": OTLPMetricExporter,
        "logs": OTLPLogExporter,
    }
    session: Any = requests.Session()
    session.request = _noting(session.request)
    session.trust_env = False  # REQUESTS_CA_BUNDLE would win over telemetry.ca, .netrc over headers
    made = kinds[signal](
        session=session,
        endpoint=f"{settings.endpoint.rstrip('/')}/v1/{signal}",
        certificate_file=settings.ca or None,
        client_key_file=settings.key or None,
        client_certificate_file=settings.cert or None,
        headers=headers,
        timeout=settings.timeout,
    )
    return cast("_Exporter", made)
