# SPDX-License-Identifier: Apache-2.0
"""Connects to a VIP through the tunnel to one backend, and says how that went.

The socket's mark names the backend (bpf/healthcheck.c), so what answers is the process that clients
would reach. The connection is closed by a reset: otherwise every probe would leave this host a
socket in TIME_WAIT for a minute.
"""

import asyncio
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from tidegate.health.result import Code, Result

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

_CODES: Final[dict[int, Code]] = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ETIMEDOUT: "timeout",
}


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a probe goes.

    Attributes:
        mark: socket mark that names the backend; 0 sends it as any packet.
        source: address that it comes from; None leaves it to the routes.
    """

    address: str
    port: int
    mark: int = 0
    source: str | None = None

    @property
    def family(self) -> socket.AddressFamily:
        """Of its address."""
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET


def marked(destination: Destination, kind: socket.SocketKind) -> socket.socket:
    """A non-blocking socket whose packets take the tunnel.

    Raises:
        OSError: the mark is not allowed (CAP_NET_ADMIN), or the source is not an address of ours.
    """
    sock = socket.socket(destination.family, kind | socket.SOCK_NONBLOCK)
    try:
        if destination.mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, destination.mark)
        if destination.source is not None:
            sock.bind((destination.source, 0))
    except OSError:
        sock.close()
        raise
    return sock


def failed(error: OSError, seconds: float) -> Result:
    """The result of a probe that the system ended after this long."""
    code = _CODES.get(error.errno or 0, "error")
    said = os.strerror(error.errno) if error.errno else str(error)
    return Result(code, f"{said}.", seconds)


def connect(destination: Destination, timeout: float) -> "asyncio.Future[Result]":
    """One TCP handshake, begun at once. The future has no need of a task of its own.

    Args:
        destination: where to.
        timeout: seconds.
    """
    return _Handshake(destination, timeout).outcome


class _Handshake:
    """One handshake: callbacks of the loop, as coroutines cost three times as much here."""

    __slots__ = ("_began", "_loop", "_sock", "_timeout", "_timer", "outcome")

    def __init__(self, destination: Destination, timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._timeout = timeout
        self.outcome: asyncio.Future[Result] = self._loop.create_future()
        try:
            self._sock = marked(destination, socket.SOCK_STREAM)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        except OSError as error:
            self.outcome.set_result(failed(error, 0.0))
            return
        number = self._sock.connect_ex((destination.address, destination.port))
        if number == errno.EINPROGRESS:
            self._loop.add_writer(self._sock.fileno(), self._ready)
            self._timer = self._loop.call_later(timeout, self._late)
            self.outcome.add_done_callback(self._ended)
        else:
            self._sock.close()
            self.outcome.set_result(self._result(number))

    def _ready(self) -> None:
        self._end(self._result(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))

    def _late(self) -> None:
        reason = f"No answer to the handshake within {self._timeout:g} s."
        self._end(Result("timeout", reason, self._loop.time() - self._began))

    def _end(self, result: Result) -> None:
        # Answer and timer may come in one round of the loop; the first one counts.
        if not self.outcome.done():
            self.outcome.set_result(result)

    def _ended(self, _outcome: "asyncio.Future[Result]") -> None:
        """However it ended, by cancelling too."""
        self._timer.cancel()
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    def _result(self, number: int) -> Result:
        seconds = self._loop.time() - self._began
        if number:
            return failed(OSError(number, os.strerror(number)), seconds)
        return Result("passed", "", seconds)
