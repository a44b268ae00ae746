# SPDX-License-Identifier: Apache-2.0
"""A connection to one backend for checks that talk: bytes in and out, bounded, with reasons.

What is said over it is for the modules that use it. Whatever ends it becomes a `Result`.

All probes share one thread, so no server may take more of it than its share. An answer is bounded
by its bytes, and by its pieces, since those are what costs time: reads, TLS records, chunks, lines
before an answer (1xx) and frames all count (`Stream.piece`). Whoever counts a piece also lets the
others run now and then. And a server that sends little at a time is read seldom: from the fifth
read on there is a pause before each, longer every time, in which the kernel gathers what comes.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Final

from tidegate.health.blame import failed, keep_errors, lacking, lacks_descriptors
from tidegate.health.deadline import Deadline
from tidegate.health.padding import full_segment, limit_segments
from tidegate.health.result import Code, Result
from tidegate.health.tcp import RESET_ON_CLOSE, Destination, heard_on, marked

MOST_BYTES: Final = 256 * 1024
"""Bytes of an answer, TLS and all, that are looked at; a check's answer has a few hundred."""
MOST_PIECES: Final = 512
"""Pieces of an answer that are looked at: 20 ms of the thread's time; a usual answer has ten."""
_TURN: Final = 16
"""Pieces after which others get their turn."""
_READ: Final = 16 * 1024
"""Bytes that one read takes."""
_FREE_READS: Final = 4
_PAUSE: Final = 0.001
"""Seconds by which each further pause is longer."""
_LONGEST_PAUSE: Final = 0.05
"""Seconds: 20 reads a second are what a server can get in the end."""
_SHOWN: Final = 300
"""Characters of a reason that has a parser's words."""


class CheckError(Exception):
    """The backend answered otherwise than it should; becomes a Result with this code and reason."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code: Code = code
        self.reason = reason


class Stream:
    """One connection. `doing` says what is under way, for the reason of a timeout."""

    def __init__(self, destination: Destination, deadline: Deadline) -> None:
        self._destination = destination
        self._deadline = deadline
        self._sock: socket.socket | None = None
        self._tls: ssl.SSLObject | None = None
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._reads = self._pieces = 0
        self.received = 0
        """Bytes that came in, TLS and all."""
        self.doing = "the handshake"
        self.full = 0
        """Bytes to which the request is to be padded, so that it fills one packet; 0 is any."""

    async def open(self, context: ssl.SSLContext | None, server_name: str) -> None:
        """Connect, with a TLS handshake if there is a context."""
        self._sock = sock = marked(self._destination, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        limit_segments(sock, self._destination.packet_size)
        try:
            await self._connect(sock)
        except TimeoutError:
            raise
        except OSError as error:
            result = failed(error, 0.0, heard_on(sock, self._destination))
            raise CheckError(result.code, result.reason) from error
        keep_errors(sock, keep=False)
        if self._destination.packet_size is not None:
            self.full = full_segment(sock, is_tls=context is not None)
        if context is not None:
            self.doing = "the TLS handshake"
            self._tls = context.wrap_bio(self._in, self._out, server_hostname=server_name)
            await self._shake_hands(self._tls)
        self.doing = "the request"

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        if self._tls is None:
            await self._send_raw(data)
        elif data:
            self._tls.write(data)
            await self._send_raw(self._out.read())

    async def receive(self) -> bytes:
        """Return the next bytes, or none at the end.

        Raises:
            CheckError: there were more than a check looks at.
            TimeoutError: the probe's time is over.
        """
        while self._tls is not None:
            try:
                data = self._tls.read(_READ)
            except ssl.SSLWantReadError:
                raw = await self._receive_raw()
                if not raw:
                    return b""
                self._in.write(raw)
                continue
            await self.piece()
            return data
        return await self._receive_raw()

    async def piece(self) -> None:
        """Count a piece of the answer, and let others run now and then.

        Raises:
            CheckError: there were more than a check looks at.
        """
        self._pieces += 1
        if self._pieces > MOST_PIECES:
            raise CheckError("mismatch", f"The answer has more than {MOST_PIECES} pieces.")
        if self._pieces % _TURN == 0:
            await asyncio.sleep(0)

    def close(self) -> None:
        """End the connection by a reset: no TIME_WAIT on this host."""
        if self._sock is not None:
            self._sock.close()

    async def _connect(self, sock: socket.socket) -> None:
        try:
            sock.connect((self._destination.address, self._destination.port))
        except BlockingIOError:
            await self._deadline.writable(sock.fileno())
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, "connect") from None

    async def _shake_hands(self, tls: ssl.SSLObject) -> None:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send_raw(self._out.read())
                data = await self._receive_raw()
                if not data:
                    reason = "The connection ended during the TLS handshake."
                    raise CheckError("reset", reason) from None
                self._in.write(data)
            else:
                await self._send_raw(self._out.read())
                return

    async def _receive_raw(self) -> bytes:
        assert self._sock is not None  # noqa: S101 - opened before
        self._reads += 1
        if self._reads > _FREE_READS:
            slow = (self._reads - _FREE_READS) * _PAUSE
            await self._deadline.pause(min(slow, _LONGEST_PAUSE))
        await self.piece()
        while True:
            try:
                data = self._sock.recv(_READ)
                break
            except BlockingIOError:
                await self._deadline.readable(self._sock.fileno())
        self._deadline.check()
        self.received += len(data)
        if self.received > MOST_BYTES:
            raise CheckError("mismatch", f"The answer has more than {MOST_BYTES} bytes.")
        return data

    async def _send_raw(self, data: bytes) -> None:
        assert self._sock is not None  # noqa: S101 - opened before
        while data:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                await self._deadline.writable(self._sock.fileno())
            self._deadline.check()


async def judged(
    destination: Destination, limit: float, talk: Callable[[Stream], Awaitable[None]]
) -> Result:
    """Return the result of a conversation over a new connection; a CheckError is a failure.

    Args:
        destination: where to.
        limit: seconds for all of it.
        talk: opens the stream and uses it.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    stream = Stream(destination, Deadline(limit))
    try:
        await talk(stream)
    except TimeoutError:
        reason = f"No answer to {stream.doing} within {limit:g} s."
        return Result("timeout", reason, loop.time() - began)
    except Exception as error:
        result = _ended(error, loop.time() - began)
        if result is None and stream.received:
            # A parser's fault, which what was sent has found: this backend's, and no other's.
            reason = f"The answer cannot be read: {error!r}."[:_SHOWN]
            return Result("error", reason, loop.time() - began)
        if result is None:
            raise
        return result
    finally:
        stream.close()
    return Result("passed", "", loop.time() - began)


def _ended(error: Exception, seconds: float) -> Result | None:
    """Return what an exception says of the backend or of this host; None if it is a fault."""
    match error:
        case CheckError(code=code, reason=reason):
            return Result(code, reason, seconds)
        case ssl.SSLError():
            return _refused(error, seconds)
        case OSError():
            return failed(error, seconds)
        case MemoryError():
            return Result("host", "Out of memory: give the agent more (MemoryMax).", seconds)
        case _:
            return None


def _refused(error: ssl.SSLError, seconds: float) -> Result:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return Result("error", f"The TLS handshake failed: {error.reason or error}.", seconds)
    # OpenSSL opens the CAs' files when it needs them.
    if (lack := lacks_descriptors()) is not None:
        return lacking(lack, seconds)
    return Result(
        "certificate", f"The certificate is not accepted: {error.verify_message}.", seconds
    )


@cache
def tls_context(*, verify: bool, protocol: str) -> ssl.SSLContext:
    """Return a TLS context for this application protocol (ALPN), with the system's CAs or none.

    Raises:
        CheckError: this host cannot make one.
    """
    # OpenSSL says nothing of a CA file that it could not open, and the context is kept.
    if (lack := lacks_descriptors()) is not None:
        raise lack
    try:
        context = ssl.create_default_context()
    except ssl.SSLError as error:
        raise CheckError("host", f"Cannot prepare TLS on this host: {error}.") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    # A server that asks for handshakes over and over would cost us one each time (TLS 1.2).
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([protocol])
    return context
