# SPDX-License-Identifier: Apache-2.0
"""The agent's door for operators of its host: HTTP/1.1 over a Unix socket, as curl speaks it.

A connection is one request, in a thread of its own. Whatever a client does is bounded: how many
there are at once, how long one may take, how much it may send. So the worst client keeps others
waiting, and never the agent's loop, which does not know this module. What the paths mean is in
`routes`; this module knows HTTP and files.

Only the socket's owner may connect (mode 0600), and the kernel tells who did.
"""

import json
import logging
import os
import pwd
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from tidegate.errors import AgentError

log = logging.getLogger(__name__)

MOST_CLIENTS: Final = 8
MOST_BODY: Final = 4096
"""Bytes of a request's body."""
IDLE_SECONDS: Final = 5.0
"""A client may be silent for this long while it is asked for something."""
LONGEST_SECONDS: Final = 40.0
"""A connection may last this long; orders are answered within less (`routes`)."""

_PEER: Final = struct.Struct("3i")


class Request(NamedTuple):
    """What a client asks; `user` is who runs it, as the kernel says."""

    query: Mapping[str, str]
    body: bytes
    user: str


class Answer(NamedTuple):
    """What it is told: a JSON value, or text if the kind says so."""

    status: HTTPStatus
    value: Any
    kind: str = "application/json"

    def encoded(self) -> bytes:
        """The bytes of the body."""
        if isinstance(self.value, bytes):
            return self.value
        return json.dumps(self.value).encode() + b"\n"


Routes: TypeAlias = Mapping[tuple[str, str], Callable[[Request], Answer]]
"""What answers a method and a path."""


class ControlSocket:
    """Listens from its creation until it is closed.

    Args:
        path: of the socket. A file that a dead agent left is replaced.
        routes: called in the client's thread.
    """

    def __init__(self, path: Path, routes: Routes) -> None:
        """Makes the socket.

        Raises:
            AgentError: it cannot be made there, or somebody answers on it.
        """
        self._path = path
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _make_room(path)
            self._server = _Server(path, routes)
        except OSError as error:
            raise AgentError(f"control_socket {path}: {error.strerror or error}") from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.5}, name="control-socket"
        )
        self._thread.start()

    def close(self) -> None:
        """Stops listening and removes the file; clients that are connected are cut off."""
        self._server.shutdown()
        self._thread.join()
        self._server.end_clients(older_than=0.0)
        self._server.server_close()
        self._path.unlink(missing_ok=True)


def _make_room(path: Path) -> None:
    """Removes a socket that nobody listens on.

    Raises:
        AgentError: somebody does, or it is no socket.
    """
    if not path.exists():
        return
    if not path.is_socket():
        raise AgentError(f"control_socket {path} is there and is no socket: give another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(IDLE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise AgentError(
        f"another agent answers on control_socket {path}: stop it, or give this one another path"
    )


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_CLIENTS

    def __init__(self, path: Path, routes: Routes) -> None:
        self.routes = routes
        self._since: dict[socket.socket, float] = {}
        self._guard = threading.Lock()
        # Bound under another name until its mode is right, so nobody slips in between.
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        super().__init__(str(fresh), _Handler)
        try:
            fresh.chmod(0o600)
            fresh.rename(path)
        except OSError:
            self.server_close()
            fresh.unlink(missing_ok=True)
            raise

    def verify_request(self, request: Any, _where: Any) -> bool:  # noqa: ANN401
        """Turns clients away while there are as many as may be."""
        with self._guard:
            if len(self._since) >= MOST_CLIENTS:
                return False
            self._since[request] = time.monotonic()
            return True

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        """Forgets a client that has gone."""
        with self._guard:
            self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: ends those who take too long."""
        self.end_clients(older_than=LONGEST_SECONDS)

    def end_clients(self, older_than: float) -> None:
        """Cuts off clients that have been connected for longer than this many seconds."""
        now = time.monotonic()
        with self._guard:
            for client, since in self._since.items():
                if now - since >= older_than:
                    with suppress(OSError):
                        client.shutdown(socket.SHUT_RDWR)

    def handle_error(self, _request: Any, _where: Any) -> None:  # noqa: ANN401
        """A client that goes away in the middle is its own business."""
        log.debug("control socket: a client failed: %s", sys.exception())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "tidegate"
    sys_version = ""
    timeout = IDLE_SECONDS
    server: _Server

    def do_GET(self) -> None:
        """A question."""
        self._handle("GET")

    def do_POST(self) -> None:
        """An order."""
        self._handle("POST")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401
        """Requests are logged by what they do."""
        log.debug("control socket: %s", format % args)

    def _handle(self, method: str) -> None:
        self.close_connection = True
        where = urlsplit(self.path)
        route = self.server.routes.get((method, where.path))
        length = self.headers.get("Content-Length", "0")
        if route is None:
            self._say(self._unknown(where.path))
        elif not length.isdigit() or "Transfer-Encoding" in self.headers:
            self._say(_error(HTTPStatus.LENGTH_REQUIRED, "a body needs its Content-Length"))
        elif int(length) > MOST_BODY:
            self._say(_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MOST_BODY} bytes"))
        else:
            body = self.rfile.read(int(length))
            self._say(route(Request(dict(parse_qsl(where.query)), body, self._user())))

    def _unknown(self, path: str) -> Answer:
        known = sorted(self.server.routes)
        if any(path == each for _, each in known):
            return _error(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} wants another method")
        listed = ", ".join(f"{method} {each}" for method, each in known)
        return _error(HTTPStatus.NOT_FOUND, f"there is no {path}; there are: {listed}")

    def _say(self, answer: Answer) -> None:
        body = answer.encoded()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _user(self) -> str:
        raw = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        uid = _PEER.unpack(raw)[1]
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return f"uid {uid}"

    def address_string(self) -> str:
        """A Unix socket's clients have no address."""
        return "local"


def _error(status: HTTPStatus, sentence: str) -> Answer:
    return Answer(status, {"error": sentence})
