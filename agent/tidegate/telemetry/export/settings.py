# SPDX-License-Identifier: Apache-2.0
"""The `[telemetry]` table of the agent's file: whether and where telemetry leaves the host.

Holds paths of secrets, never secrets. Opens no file and no connection.
"""

from ipaddress import ip_address
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from tidegate.errors import ConfigError
from tidegate.telemetry.flows.settings import FlowSettings
from tidegate.telemetry.metrics.endpoint import PrometheusSettings

Signal = Literal["traces", "metrics", "logs"]
SIGNALS: Final[tuple[Signal, ...]] = ("traces", "metrics", "logs")
PositiveSeconds = Annotated[float, Meta(gt=0, le=3600)]
QueueSize = Annotated[int, Meta(ge=64, le=1 << 20)]


class MetricsSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is measured.

    Attributes:
        program_stats: have the kernel measure the time of each run of the program. It does so for
            every BPF program of the host, which costs some 20 ns a run.
    """

    program_stats: bool = False


class TelemetrySettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where telemetry goes; without an endpoint none leaves the host.

    Attributes:
        endpoint: URL of a collector, such as `http://127.0.0.1:4317`; https is TLS.
        protocol: OTLP over gRPC, or over HTTP with binary protobuf.
        signals: which of traces, metrics and logs are sent.
        ca: PEM file of the authorities that sign the collector's certificate; by default those that
            the host trusts.
        cert, key: PEM files of this host's certificate and its key.
        headers_file: file with a header a line, as `name: value`; for tokens.
        timeout: seconds for which one export may be tried.
        interval: seconds between two exports of metrics.
        span_queue, log_queue: how many wait for export; what comes on top is dropped and counted.
        flush: seconds for which the end of the agent waits for what is queued.
        flows: what traces of flows may cost.
        metrics: what is measured.
        prometheus: where Prometheus may scrape.
    """

    endpoint: str = ""
    protocol: Literal["grpc", "http"] = "grpc"
    signals: Annotated[tuple[Signal, ...], Meta(min_length=1)] = SIGNALS
    ca: str = ""
    cert: str = ""
    key: str = ""
    headers_file: str = ""
    timeout: PositiveSeconds = 10.0
    interval: PositiveSeconds = 60.0
    span_queue: QueueSize = 8192
    log_queue: QueueSize = 2048
    flush: Annotated[float, Meta(ge=0, le=60)] = 3.0
    flows: FlowSettings = FlowSettings()
    metrics: MetricsSettings = MetricsSettings()
    prometheus: PrometheusSettings = PrometheusSettings()

    def sends(self, signal: Signal) -> bool:
        """Return whether this signal leaves the host over OTLP."""
        return bool(self.endpoint) and signal in self.signals

    @property
    def is_secure(self) -> bool:
        """Whether the connection to the collector is encrypted."""
        return self.endpoint.startswith("https://")


def check(settings: TelemetrySettings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigError: names the key and says what is allowed.
    """
    if bool(settings.cert) != bool(settings.key):
        missing = "cert" if settings.key else "key"
        raise ConfigError(
            f"telemetry.{missing} is missing: telemetry.cert and telemetry.key go together"
        )
    if not settings.endpoint:
        return
    _check_endpoint(settings)
    if not settings.is_secure and (settings.ca or settings.cert):
        key = "ca" if settings.ca else "cert"
        raise ConfigError(f"telemetry.{key} is used with TLS only: write the endpoint as https://…")


def _check_endpoint(settings: TelemetrySettings) -> None:
    try:
        url = urlsplit(settings.endpoint)
        host, port = url.hostname, url.port
    except ValueError:
        host, port, url = None, None, urlsplit("")
    if url.scheme not in {"http", "https"} or not host or port is None:
        raise ConfigError(
            f"telemetry.endpoint is {_safe(settings.endpoint)!r}; it must be a URL with a port, "
            "such as http://127.0.0.1:4317, or https://… for TLS"
        )
    if url.username is not None or url.password is not None or url.query or url.fragment:
        raise ConfigError(
            "telemetry.endpoint must not have a user, a query or a fragment; "
            "credentials go into telemetry.headers_file"
        )
    if settings.protocol == "grpc" and url.path not in {"", "/"}:
        raise ConfigError(
            f"telemetry.endpoint has the path {url.path!r}, and gRPC has none: leave it out, "
            'or set telemetry.protocol = "http"'
        )
    if settings.headers_file and not settings.is_secure and not _is_loopback(host):
        raise ConfigError(
            "telemetry.headers_file would go out in plain text: use https://… (without TLS, "
            "headers are accepted on loopback only)"
        )


def _safe(endpoint: str) -> str:
    """Return the endpoint without what may be a password."""
    return f"…@{endpoint.rpartition('@')[2]}" if "@" in endpoint else endpoint


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
