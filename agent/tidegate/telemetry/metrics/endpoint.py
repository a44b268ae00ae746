# SPDX-License-Identifier: Apache-2.0
"""Where Prometheus scrapes: HTTP on a TCP address of this host, loopback unless somebody insists.

It serves one path to few clients at once, each in a thread of its own and for a bounded time, and
knows nothing of what it serves. There is no authentication and no TLS: beyond loopback both are a
proxy's task. The control socket serves the same text to its owner.
"""

import contextlib
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from msgspec import Struct

from tidegate.errors import AgentError, ConfigError
from tidegate.telemetry.metrics.exposition import CONTENT_TYPE

log = logging.getLogger(__name__)

PATH: Final = "/metrics"
MOST_CLIENTS: Final = 4
IDLE_SECONDS: Final = 5.0
"""A client may be silent, or not take what it is sent, for this long."""


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
    """Where to listen; None for nowhere.

    Raises:
        ConfigError: it is no address, or one that other hosts reach and nobody allowed that.
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
            "backends would be open to whoever reaches it: use 127.0.0.1, or set "
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
        """Binds the address.

        Raises:
            AgentError: it cannot be bound.
        """
        try:
            self._server = _Server(where, text)
        except OSError as error:
            raise AgentError(
                f"telemetry.prometheus.listen {where.host} port {where.port}: "
                f"{error.strerror or error}"
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.5}, name="prometheus"
        )
        self._thread.start()

    def close(self) -> None:
        """Stops listening; scrapes that are under way are cut off."""
        self._server.shutdown()
        self._thread.join()
        self._server.end_clients()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = MOST_CLIENTS

    def __init__(self, where: Place, text: Callable[[], bytes]) -> None:
        self.address_family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
        self.text = text
        self._clients: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(where, _Handler)

    def verify_request(self, request: Any, _where: Any) -> bool:  # noqa: ANN401
        """Turns clients away while there are as many as may be."""
        with self._guard:
            if len(self._clients) >= MOST_CLIENTS:
                return False
            self._clients.add(request)
            return True

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        """Forgets a client that has gone."""
        with self._guard:
            self._clients.discard(request)
        super().shutdown_request(request)

    def end_clients(self) -> None:
        """Cuts off everybody."""
        with self._guard:
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def handle_error(self, _request: Any, _where: Any) -> None:  # noqa: ANN401
        """A client that goes away in the middle is its own business."""
        log.debug("prometheus endpoint: a client failed: %s", sys.exception())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "tidegate"
    sys_version = ""
    timeout = IDLE_SECONDS
    server: _Server

    def do_GET(self) -> None:
        """One scrape."""
        self.close_connection = True
        if self.path.partition("?")[0] != PATH:
            self._say(HTTPStatus.NOT_FOUND, f"there is only {PATH}\n".encode())
            return
        try:
            text = self.server.text()
        except Exception as error:  # noqa: BLE001 - the reason is for who scrapes
            log.warning("metrics reason=%s", error)
            self._say(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode())
            return
        self._say(HTTPStatus.OK, text, CONTENT_TYPE)

    def _say(self, status: HTTPStatus, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401
        """Scrapes come every few seconds."""
        log.debug("prometheus endpoint: %s", format % args)
