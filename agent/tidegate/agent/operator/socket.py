# SPDX-License-Identifier: Apache-2.0
"""The control socket, for operators of the agent's host: HTTP/1.1 over a Unix socket, as for curl.

Its clients are bounded by `http_server` and never keep the agent's loop waiting, which does not
know this module. What the paths mean is in `routes`; this module knows the socket's file.

Only the socket's owner may connect (mode 0600), and the kernel says who did.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from tidegate.errors import AgentError
from tidegate.http_server import HttpServer, Limits, Routes

LIMITS: Final = Limits(clients=8, body=4096, idle_seconds=5.0, longest_seconds=40.0)
"""Orders are answered within less than the longest connection (`routes`)."""


class ControlSocket:
    """Listens from its creation until it is closed.

    Args:
        path: of the socket. A file that a dead agent left is replaced.
        routes: called in the client's thread.
    """

    def __init__(self, path: Path, routes: Routes, limits: Limits = LIMITS) -> None:
        """Make the socket.

        Raises:
            AgentError: it cannot be made there, or a process listens on it.
        """
        self._path = path
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _make_room(path)
            listening = _listen(path, limits.clients)
            self._inode = path.lstat().st_ino
        except OSError as error:
            raise AgentError(f"control_socket {path}: {error.strerror or error}") from error
        self._server = HttpServer(listening, routes, limits, name="control-socket")

    def close(self) -> None:
        """Stop listening and remove the file, if it is still ours; clients are cut off."""
        self._server.close()
        with suppress(OSError):  # what is left there stops no start
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()


def _make_room(path: Path) -> None:
    """Remove a socket that no process listens on.

    Raises:
        AgentError: a process does, or it is not a socket.
    """
    if not path.exists():
        return
    if not path.is_socket():
        raise AgentError(f"control_socket {path} exists and is not a socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(LIMITS.idle_seconds)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise AgentError(
        f"another agent answers on control_socket {path}; stop it, or choose another path"
    )


def _listen(path: Path, backlog: int) -> socket.socket:
    """Bind under another name until the mode is set, so that no client connects before."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(fresh))
        listening.listen(backlog)
        fresh.chmod(0o600)
        fresh.rename(path)
    except OSError:
        listening.close()
        fresh.unlink(missing_ok=True)
        raise
    return listening
