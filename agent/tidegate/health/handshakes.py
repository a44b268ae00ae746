# SPDX-License-Identifier: Apache-2.0
"""TCP handshakes by the thousand, on one epoll descriptor, for the thread of one event loop.

Most checks are this one, and each system call of it counts. So each target has a socket that stays:
its mark, its source and its place in epoll are set once. A handshake is one connect; it ends by
connecting to AF_UNSPEC, which resets the connection (no TIME_WAIT, here or there) and makes the
socket as good as new, with another port next time (connect(2)). Only a socket whose last handshake
passed is used again: after a failure the next one begins on a new socket, so what a failure leaves
behind in the kernel cannot make the next probe fail.

There is no timer for each handshake either. Those with the same limit began in the order in which
they run out, so a look at the first of each limit is enough (`expire`). Answers are taken first,
then the clock: a loop that was held up takes no answer that has come for one that has not.
"""

import asyncio
import ctypes
import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tidegate.health.blame import failed
from tidegate.health.result import Result
from tidegate.health.tcp import RESET_ON_CLOSE, Destination, heard_on, marked

# Unlike CDLL, PyDLL keeps the interpreter's lock. These calls do not wait; to get the lock back
# after each, from a thread that computes, takes up to 5 ms (sys.getswitchinterval).
_connect = ctypes.PyDLL(None, use_errno=True).connect
_connect.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)

_NOWHERE: Final = ctypes.create_string_buffer(struct.pack("=H14x", socket.AF_UNSPEC))
_AT_ONCE: Final = 1024
"""Events that one look takes."""
_PASSED: Final = select.EPOLLOUT
"""What a socket is whose handshake was answered; any other bit beside it is a failure."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """One TCP handshake, as it is wanted.

    Attributes:
        to: destination.
        limit: seconds for the answer.
    """

    to: Destination
    limit: float


class Line:
    """One target's socket and what is under way on it."""

    __slots__ = ("began", "ended", "fd", "handshake", "peer", "sock", "waiting")

    def __init__(self, handshake: Handshake, ended: Callable[[Result], None]) -> None:
        self.handshake = handshake
        self.ended = ended
        self.peer = ctypes.create_string_buffer(_packed(handshake.to))
        self.sock: socket.socket | None = None
        self.fd = -1
        self.began = 0.0
        self.waiting: dict[int, Line] = {}
        """Lines of the same limit that wait for an answer, this one among them if it does."""


class Handshakes:
    """All lines of one loop. All of it happens on the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._lines: dict[int, Line] = {}
        self._waiting: dict[float, dict[int, Line]] = {}
        loop.add_reader(self._epoll.fileno(), self.answered)

    def begin(self, line: Line) -> None:
        """Begin a handshake; `line.ended` is called once, maybe before this returns."""
        line.began = self._loop.time()
        try:
            if line.sock is None:
                self._open(line)
        except OSError as error:
            self.drop(line)
            line.ended(failed(error, 0.0))
            return
        waiting = self._waiting.get(line.handshake.limit)
        if waiting is None:
            waiting = self._waiting[line.handshake.limit] = {}
        line.waiting = waiting
        waiting[line.fd] = line
        if _connect(line.fd, line.peer, len(line.peer)):
            number = ctypes.get_errno()
            if number != errno.EINPROGRESS:
                self._fail(line, self._failed(line, number))

    def answered(self) -> None:
        """End the handshakes that have an answer."""
        while True:
            found = self._epoll.poll(0, _AT_ONCE)
            for fd, events in found:
                line = self._lines.get(fd)
                # A socket that was reset becomes readable once more: nothing waits on it.
                if line is not None and line.waiting.pop(fd, None) is not None:
                    self._answer(line, events)
            if len(found) < _AT_ONCE:
                return

    def expire(self) -> None:
        """End the handshakes whose limit has passed."""
        self.answered()
        now = self._loop.time()
        for limit, waiting in self._waiting.items():
            while waiting:
                line = next(iter(waiting.values()))
                seconds = now - line.began
                if seconds < limit:
                    break
                reason = f"No answer to the handshake within {limit:g} s."
                self._fail(line, Result("timeout", reason, seconds))

    def drop(self, line: Line) -> None:
        """Close a line's socket; what was under way on it is not reported."""
        if line.sock is not None:
            line.waiting.pop(line.fd, None)
            self._lines.pop(line.fd, None)
            line.sock.close()  # which takes it out of epoll
            line.sock = None

    @property
    def open(self) -> int:
        """Sockets that are open."""
        return len(self._lines)

    def close(self) -> None:
        """Close everything."""
        for line in list(self._lines.values()):
            self.drop(line)
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _open(self, line: Line) -> None:
        line.sock = sock = marked(line.handshake.to, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        line.fd = sock.fileno()
        self._lines[line.fd] = line
        self._epoll.register(line.fd, select.EPOLLOUT | select.EPOLLET)

    def _answer(self, line: Line, events: int) -> None:
        if events != _PASSED:
            self._fail(line, self._why(line))
            return
        seconds = self._loop.time() - line.began
        if _connect(line.fd, _NOWHERE, len(_NOWHERE)):
            self.drop(line)
        line.ended(Result("passed", "", seconds))

    def _fail(self, line: Line, result: Result) -> None:
        self.drop(line)
        line.ended(result)

    def _why(self, line: Line) -> Result:
        assert line.sock is not None  # noqa: S101 - it waited
        number = line.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        # Answered, and reset before we looked.
        return self._failed(line, number or errno.ECONNRESET)

    def _failed(self, line: Line, number: int) -> Result:
        assert line.sock is not None  # noqa: S101 - it waited
        known = heard_on(line.sock, line.handshake.to)
        return failed(OSError(number, os.strerror(number)), self._loop.time() - line.began, known)


def _packed(to: Destination) -> bytes:
    """Return a destination as sockaddr_in or sockaddr_in6."""
    address = socket.inet_pton(to.family, to.address)
    head = struct.pack("=H", to.family) + struct.pack("!H", to.port)
    if to.family == socket.AF_INET:
        return head + address + bytes(8)
    return head + bytes(4) + address + bytes(4)
