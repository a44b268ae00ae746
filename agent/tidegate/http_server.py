# SPDX-License-Identifier: Apache-2.0
"""A small HTTP/1.1 server whose clients are bounded in all that they do.

A connection is one request, in a thread of its own. How many clients there are at once, how long
each may be silent, send its request and take in all, and how much it may send have limits. So the
worst client keeps other clients waiting, and nobody else. When all places are taken, a newcomer
gets that of the client that has been sending its request, or has not taken its answer, for the
longest: those who dawdle cannot keep out one who does not. A request that is being answered is
never ended for another. This module knows HTTP; its owners know where it listens and what it
serves.
"""

import json
import pwd
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from tidegate.event_log import EventLog

log = EventLog(__name__)

_POLL_SECONDS: Final = 0.5
_PEER: Final = struct.Struct("3i")


class Limits(NamedTuple):
    """What clients may do.

    Attributes:
        clients: that are connected at once.
        body: bytes of a request's body.
        idle_seconds: for which a client may be silent, or take nothing of its answer.
        longest_seconds: that a connection may last.
        asking_seconds: until a request must be there, whole.
    """

    clients: int
    body: int
    idle_seconds: float
    longest_seconds: float
    asking_seconds: float = 2.0


class _Turn(Enum):
    """What a connection waits for: the client's request, our answer, or the client to take it."""

    ASKING = "asking"
    SERVED = "served"
    TAKING = "taking"


@dataclass(slots=True)
class _Client:
    """A client that is connected; times are monotonic seconds."""

    since: float
    turn: _Turn
    turn_since: float


class Request(NamedTuple):
    """What a client asks; `user` is who runs it, as the kernel says, and empty over TCP."""

    query: Mapping[str, str]
    body: bytes
    user: str


class Answer(NamedTuple):
    """What the client gets: a JSON value, or bytes as they are."""

    status: HTTPStatus
    value: Any
    kind: str = "application/json"

    def encoded(self) -> bytes:
        """Return the bytes of the body."""
        if isinstance(self.value, bytes):
            return self.value
        return json.dumps(self.value).encode() + b"\n"


Routes: TypeAlias = Mapping[tuple[str, str], Callable[[Request], Answer]]
"""What answers a method and a path."""


class HttpServer:
    """Serves from its creation until it is closed.

    Args:
        listening: a socket that is bound and listens, TCP or Unix; closed with the server.
        routes: called in the client's thread.
        name: of the server's thread, and in the log.
    """

    def __init__(self, listening: socket.socket, routes: Routes, limits: Limits, name: str) -> None:
        self._server = _Server(listening, routes, limits, name)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": _POLL_SECONDS}, name=name
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; clients that are connected are cut off."""
        self._server.shutdown()
        self._thread.join()
        self._server.end_clients(older_than=0.0)
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listening: socket.socket, routes: Routes, limits: Limits, name: str) -> None:
        self.routes = routes
        self.limits = limits
        self.name = name
        self._clients: dict[socket.socket, _Client] = {}
        self._guard = threading.Lock()
        # TCPServer's own would make a socket; all else of it works with any that listens.
        socketserver.BaseServer.__init__(self, listening.getsockname(), _Handler)
        self.socket = listening

    def verify_request(self, request: Any, _where: Any) -> bool:  # noqa: ANN401
        """Give a client a place, at the cost of one who dawdles if need be; else turn it away."""
        with self._guard:
            if len(self._clients) >= self.limits.clients and not self._make_room():
                return False
            now = time.monotonic()
            self._clients[request] = _Client(now, _Turn.ASKING, now)
            return True

    def _make_room(self) -> bool:
        """Cut off who has dawdled for the longest; say whether there was one. Under the guard."""
        idle = [(c.turn_since, s) for s, c in self._clients.items() if c.turn is not _Turn.SERVED]
        if not idle:
            return False
        _, slowest = min(idle, key=lambda each: each[0])
        del self._clients[slowest]
        _cut_off(slowest)
        return True

    def enter(self, client: socket.socket, turn: _Turn) -> None:
        """Note what a connection waits for now."""
        with self._guard:
            if client in self._clients:
                self._clients[client].turn = turn
                self._clients[client].turn_since = time.monotonic()

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        """Forget a client that has gone."""
        with self._guard:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut off, twice a second, those who take too long."""
        self.end_clients(older_than=self.limits.longest_seconds)

    def end_clients(self, older_than: float) -> None:
        """Cut off clients that are connected for so many seconds, and whose request is overdue."""
        now = time.monotonic()
        with self._guard:
            for connection, client in self._clients.items():
                asking = client.turn is _Turn.ASKING
                overdue = asking and now - client.since >= self.limits.asking_seconds
                if overdue or now - client.since >= older_than:
                    _cut_off(connection)

    def handle_error(self, _request: Any, _where: Any) -> None:  # noqa: ANN401
        """Log at most that a client went away in the middle: that is its own business."""
        log.debug("http_client_failed", server=self.name, reason=sys.exception())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "tidegate"
    sys_version = ""
    server: _Server

    def setup(self) -> None:
        """Bound how long the client may be silent."""
        super().setup()
        self.connection.settimeout(self.server.limits.idle_seconds)

    def do_GET(self) -> None:
        """Answer a question."""
        self._handle("GET")

    def do_POST(self) -> None:
        """Answer an order."""
        self._handle("POST")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401
        """Log a request: what it does is logged by whoever does it."""
        log.debug("http_request", server=self.server.name, request=format % args)

    def _handle(self, method: str) -> None:
        self.close_connection = True
        where = urlsplit(self.path)
        route = self.server.routes.get((method, where.path))
        length = self.headers.get("Content-Length", "0")
        most = self.server.limits.body
        if route is None:
            self._send(self._unknown(where.path))
        elif not length.isdigit() or "Transfer-Encoding" in self.headers:
            self._send(_error(HTTPStatus.LENGTH_REQUIRED, "a body needs its Content-Length"))
        elif int(length) > most:
            self._send(_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {most} bytes"))
        else:
            body = self.rfile.read(int(length))
            self.server.enter(self.connection, _Turn.SERVED)
            self._send(route(Request(dict(parse_qsl(where.query)), body, self._user())))

    def _unknown(self, path: str) -> Answer:
        known = sorted(self.server.routes)
        if any(path == each for _, each in known):
            return _error(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} wants another method")
        listed = ", ".join(f"{method} {each}" for method, each in known)
        return _error(HTTPStatus.NOT_FOUND, f"there is no {path}; there are: {listed}")

    def _send(self, answer: Answer) -> None:
        body = answer.encoded()
        self.server.enter(self.connection, _Turn.TAKING)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _user(self) -> str:
        if self.connection.family != socket.AF_UNIX:
            return ""
        raw = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        uid = _PEER.unpack(raw)[1]
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return f"uid {uid}"

    def address_string(self) -> str:
        """Return a name for the client, which over a Unix socket has no address."""
        return str(self.client_address[0]) if self.client_address else "local"


def _cut_off(client: socket.socket) -> None:
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def _error(status: HTTPStatus, sentence: str) -> Answer:
    return Answer(status, {"error": sentence})
