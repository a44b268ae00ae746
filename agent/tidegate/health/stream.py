# SPDX-License-Identifier: Apache-2.0
"""A connection to one backend for checks that talk: bytes in and out, bounded, with reasons.

What is said over it is for the modules that use it. Whatever ends it becomes a `Result`.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Final, TypeVar

from tidegate.health.padding import full_segment, limit_segments
from tidegate.health.result import Code, Result
from tidegate.health.tcp import RESET_ON_CLOSE, Destination, failed, marked

T = TypeVar("T")

MOST_BYTES: Final = 256 * 1024
"""Bytes of an answer that are looked at; a check's answer has a few hundred."""


class CheckError(Exception):
    """The backend answered otherwise than it should; becomes a Result with this code and reason."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code: Code = code
        self.reason = reason


class Stream:
    """One connection. `doing` says what is under way, for the reason of a timeout."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._received = 0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.doing = "the handshake"
        self.full = 0
        """Bytes to which the request is to be padded, so that it fills one packet; 0 is any."""

    async def open(self, context: ssl.SSLContext | None, server_name: str) -> None:
        """Connect, with a TLS handshake if there is a context."""
        sock = marked(self._destination, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            limit_segments(sock, self._destination.packet_size)
            address = (self._destination.address, self._destination.port)
            await asyncio.get_running_loop().sock_connect(sock, address)
            if self._destination.packet_size is not None:
                self.full = full_segment(sock, is_tls=context is not None)
            self.doing = "the TLS handshake" if context else "the request"
            self._reader, self._writer = await asyncio.open_connection(
                sock=sock, ssl=context, server_hostname=server_name if context else None
            )
        except BaseException:
            sock.close()
            raise
        self.doing = "the request"

    def send(self, data: bytes) -> None:
        """Send; what the system does not take at once is sent in the background."""
        assert self._writer is not None  # noqa: S101 - opened before
        self._writer.write(data)

    async def receive(self) -> bytes:
        """Return the next bytes, or none at the end.

        Raises:
            CheckError: there were more than a check looks at.
        """
        assert self._reader is not None  # noqa: S101 - opened before
        data = await self._reader.read(65536)
        self._received += len(data)
        if self._received > MOST_BYTES:
            raise CheckError("mismatch", f"The answer has more than {MOST_BYTES} bytes.")
        return data

    def close(self) -> None:
        """End the connection by a reset: no TIME_WAIT on this host."""
        if self._writer is not None:
            self._writer.transport.abort()


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
    stream = Stream(destination)
    try:
        async with asyncio.timeout(limit):
            await talk(stream)
    except CheckError as failure:
        return Result(failure.code, failure.reason, loop.time() - began)
    except TimeoutError:
        reason = f"No answer to {stream.doing} within {limit:g} s."
        return Result("timeout", reason, loop.time() - began)
    except ssl.SSLCertVerificationError as error:
        reason = f"The certificate is not accepted: {error.verify_message}."
        return Result("certificate", reason, loop.time() - began)
    except ssl.SSLError as error:
        reason = f"The TLS handshake failed: {error.reason or error}."
        return Result("error", reason, loop.time() - began)
    except OSError as error:
        return failed(error, loop.time() - began)
    finally:
        stream.close()
    return Result("passed", "", loop.time() - began)


@cache
def tls_context(*, verify: bool, protocol: str) -> ssl.SSLContext:
    """Return a TLS context for this application protocol (ALPN), with the system's CAs or none."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context
