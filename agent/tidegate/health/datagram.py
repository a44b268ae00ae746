# SPDX-License-Identifier: Apache-2.0
"""One question in a UDP datagram, and what its answer must be; DNS (RFC 1035) is one such."""

import asyncio
import secrets
import socket
import struct
from collections.abc import Callable
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from tidegate.health.blame import failed
from tidegate.health.deadline import Deadline
from tidegate.health.padding import forbid_fragments, padded, room
from tidegate.health.result import Result
from tidegate.health.stream import CheckError
from tidegate.health.tcp import Destination, heard_on, marked

_DNS_HEAD: Final = 12
"""Bytes of a DNS message's head, which ends with the number of records in each section."""
_MOST_RECORDS: Final = 128


async def ask(destination: Destination, send: bytes, expect: bytes, limit: float) -> Result:
    """Send a datagram and require an answer that contains `expect`, which may be empty."""

    def check(answer: bytes) -> None:
        if expect not in answer:
            raise CheckError("mismatch", f"The answer does not contain {expect!r}.")

    return await _exchange(destination, padded(send, room(destination)), check, limit)


async def resolve(destination: Destination, name: str, kind: str, limit: float) -> Result:
    """Ask a DNS server for a name and require NOERROR with at least one answer.

    Args:
        destination: the server.
        name: to ask for.
        kind: record type, such as `A`.
        limit: seconds.
    """
    # Padded by an option of EDNS (RFC 7830), which servers that do not know it ignore.
    size = room(destination)
    query = dns.message.make_query(
        name,
        dns.rdatatype.from_text(kind),
        id=secrets.randbits(16),
        use_edns=0 if size else None,
        pad=size,
    )

    def check(answer: bytes) -> None:
        _check_size(answer)
        try:
            response = dns.message.from_wire(answer, ignore_trailing=True)
        except dns.exception.DNSException as error:
            raise CheckError("mismatch", f"The answer is not DNS: {error}.") from error
        except Exception as error:
            # A parser's fault, which what was sent has found: this backend's, and no other's.
            raise CheckError("error", f"The answer cannot be read: {error!r}.") from error
        if not query.is_response(response):
            raise CheckError("mismatch", "The answer is to another question.")
        if response.rcode() != dns.rcode.NOERROR:
            code = dns.rcode.to_text(response.rcode())
            raise CheckError("mismatch", f"The answer to {name} {kind} is {code}.")
        if not response.answer and not response.flags & dns.flags.TC:
            raise CheckError("mismatch", f"The answer to {name} {kind} has no records.")

    return await _exchange(destination, query.to_wire(max_size=65535), check, limit)


def _check_size(answer: bytes) -> None:
    """Raise CheckError for what would take long to parse: all probes share a thread."""
    records = sum(struct.unpack_from("!4H", answer, 4)) if len(answer) >= _DNS_HEAD else 0
    if records > _MOST_RECORDS:
        raise CheckError("mismatch", f"The answer has more than {_MOST_RECORDS} records.")


async def _exchange(
    destination: Destination, send: bytes, check: Callable[[bytes], None], limit: float
) -> Result:
    """Send one datagram and take one: who answers by the thousand is heard once."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    answer = b""
    try:
        with marked(destination, socket.SOCK_DGRAM) as sock:
            try:
                answer = await _ask(sock, destination, send, Deadline(limit))
            except TimeoutError:
                return Result("timeout", f"No answer within {limit:g} s.", loop.time() - began)
            except OSError as error:
                return failed(error, loop.time() - began, heard_on(sock, destination))
        check(answer)
    except CheckError as failure:
        return Result(failure.code, failure.reason, loop.time() - began)
    except OSError as error:
        return failed(error, loop.time() - began)
    return Result("passed", "", loop.time() - began)


async def _ask(
    sock: socket.socket, destination: Destination, send: bytes, deadline: Deadline
) -> bytes:
    # Connected: answers of others do not arrive, and ICMP errors do.
    sock.connect((destination.address, destination.port))
    if destination.packet_size is not None:
        forbid_fragments(sock)
    while True:
        try:
            sock.send(send)
            break
        except BlockingIOError:
            await deadline.writable(sock.fileno())
    while True:
        await deadline.readable(sock.fileno())
        try:
            return sock.recv(65535)
        except BlockingIOError:  # a datagram with a wrong checksum
            deadline.check()
