# SPDX-License-Identifier: Apache-2.0
"""Where Prometheus scrapes: HTTP on a TCP address of this host, loopback unless configured else.

It serves one path, with the bounds of `http_server`, and knows nothing of what it serves. There is
no authentication and no TLS: beyond loopback both are a proxy's task. The control socket
serves the same text to its owner.
"""

import socket
from collections.abc import Callable
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final, NamedTuple

from msgspec import Struct

from tidegate.errors import AgentError, ConfigError
from tidegate.event_log import EventLog
from tidegate.http_server import Answer, HttpServer, Limits, Request
from tidegate.telemetry.metrics.exposition import CONTENT_TYPE

log = EventLog(__name__)

PATH: Final = "/metrics"
LIMITS: Final = Limits(clients=4, body=0, idle_seconds=5.0, longest_seconds=15.0)


class PrometheusSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where Prometheus may scrape; docs/metrics.md.

    Attributes:
        listen: address and port, such as `127.0.0.1:9470` or `[::1]:9470`; empty is nowhere.
        allow_remote: whether the address may be another than loopback.
    """

    listen: str = ""
    allow_remote: bool = False


class Place(NamedTuple):
    """An address to listen on."""

    host: str
    port: int


def place(settings: PrometheusSettings) -> Place | None:
    """Return where to listen; None for nowhere.

    Raises:
        ConfigError: it is no address, or one that other hosts reach, without allow_remote.
    """
    if not settings.listen:
        return None
    host, _, port = settings.listen.rpartition(":")
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 16 or (":" in host) != host.startswith("["):
        raise ConfigError(
            "telemetry.prometheus.listen: must be an IP address and a port, such as "
            f"127.0.0.1:9470 or [::1]:9470, got {settings.listen!r}"
        )
    if not address.is_loopback and not settings.allow_remote:
        raise ConfigError(
            f"telemetry.prometheus.listen: {address} is not loopback, and names of VIPs and "
            "backends would be open to all who reach it: use 127.0.0.1, or set "
            "telemetry.prometheus.allow_remote = true"
        )
    return Place(str(address), number)


class Endpoint:
    """Listens from its creation until it is closed.

    Args:
        where: port 0 takes any.
        text: makes what is served, in the client's thread.
    """

    def __init__(self, where: Place, text: Callable[[], bytes]) -> None:
        """Bind the address.

        Raises:
            AgentError: it cannot be bound.
        """
        try:
            listening = _listen(where)
        except OSError as error:
            raise AgentError(
                f"telemetry.prometheus.listen {where.host} port {where.port}: "
                f"{error.strerror or error}"
            ) from error
        self.port: int = listening.getsockname()[1]
        self._text = text
        routes = {("GET", PATH): self._scrape}
        self._server = HttpServer(listening, routes, LIMITS, name="prometheus")

    def close(self) -> None:
        """Stop listening; scrapes that are under way are cut off."""
        self._server.close()

    def _scrape(self, _: Request) -> Answer:
        try:
            return Answer(HTTPStatus.OK, self._text(), CONTENT_TYPE)
        except Exception as error:  # noqa: BLE001 - the reason is for who scrapes
            log.warning("metrics_not_served", reason=error)
            body = f"{error}\n".encode()
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, body, "text/plain")


def _listen(where: Place) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in where.host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(LIMITS.clients)
    except OSError:
        listening.close()
        raise
    return listening
