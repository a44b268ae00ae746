# SPDX-License-Identifier: Apache-2.0
"""One question in a UDP datagram, and what its answer must be; DNS (RFC 1035) is one such."""

import asyncio
import secrets
import socket
from collections.abc import Callable

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from tidegate.health.padding import forbid_fragments, padded, room
from tidegate.health.result import Result
from tidegate.health.stream import CheckError
from tidegate.health.tcp import Destination, failed, marked


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
        try:
            response = dns.message.from_wire(answer, ignore_trailing=True)
        except dns.exception.DNSException as error:
            raise CheckError("mismatch", f"The answer is not DNS: {error}.") from error
        if not query.is_response(response):
            raise CheckError("mismatch", "The answer is to another question.")
        if response.rcode() != dns.rcode.NOERROR:
            code = dns.rcode.to_text(response.rcode())
            raise CheckError("mismatch", f"The answer to {name} {kind} is {code}.")
        if not response.answer and not response.flags & dns.flags.TC:
            raise CheckError("mismatch", f"The answer to {name} {kind} has no records.")

    return await _exchange(destination, query.to_wire(max_size=65535), check, limit)


async def _exchange(
    destination: Destination, send: bytes, check: Callable[[bytes], None], limit: float
) -> Result:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        with marked(destination, socket.SOCK_DGRAM) as sock:
            # Connected: answers of others do not arrive, and ICMP errors do.
            sock.connect((destination.address, destination.port))
            if destination.packet_size is not None:
                forbid_fragments(sock)
            async with asyncio.timeout(limit):
                await loop.sock_sendall(sock, send)
                check(await loop.sock_recv(sock, 65535))
    except CheckError as failure:
        return Result(failure.code, failure.reason, loop.time() - began)
    except TimeoutError:
        return Result("timeout", f"No answer within {limit:g} s.", loop.time() - began)
    except OSError as error:
        return failed(error, loop.time() - began)
    return Result("passed", "", loop.time() - began)
