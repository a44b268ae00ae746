# SPDX-License-Identifier: Apache-2.0
"""A check with `packet_size` asks in one packet of that size, on loopback with real sockets."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import dns.message
import pytest

from tidegate.health import datagram, grpc_health, http
from tidegate.health.tcp import Destination

SIZE = 1400
HEADERS = {"127.0.0.1": (20 + 20, 20 + 8), "::1": (40 + 20, 40 + 8)}
"""Bytes of IP and TCP headers, and of IP and UDP headers, without TCP's options."""
STAMPS = 12
"""Bytes of the option that Linux puts in each segment (RFC 7323)."""


class Listener(NamedTuple):
    """A server that takes what comes, says nothing, and keeps it."""

    address: str
    port: int
    heard: list[bytes]


@pytest.fixture(params=HEADERS)
def address(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def listening(address: str, kind: socket.SocketKind) -> Iterator[Listener]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as server:
        server.settimeout(10)
        server.bind((address, 0))
        heard: list[bytes] = []

        def take() -> None:
            if kind is socket.SOCK_DGRAM:
                heard.append(server.recv(65536))
                return
            connection = server.accept()[0]
            with connection:
                heard.append(connection.recv(65536))

        if kind is socket.SOCK_STREAM:
            server.listen()
        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield Listener(address, server.getsockname()[1], heard)
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def stream(address: str) -> Iterator[Listener]:
    yield from listening(address, socket.SOCK_STREAM)


@pytest.fixture
def datagrams(address: str) -> Iterator[Listener]:
    yield from listening(address, socket.SOCK_DGRAM)


Ask = Callable[[Destination], object]


@pytest.mark.parametrize(
    "ask",
    [
        lambda to: asyncio.run(http.get(to, http.Ask("x"), 1)),
        lambda to: asyncio.run(grpc_health.check(to, grpc_health.Ask("", "x"), 1)),
    ],
    ids=["http", "grpc"],
)
def test_a_request_fills_one_segment(stream: Listener, ask: Ask) -> None:
    """The whole request is one packet of the size that is set."""
    ask(Destination(stream.address, stream.port, packet_size=SIZE))
    assert len(stream.heard[0]) == SIZE - HEADERS[stream.address][0] - STAMPS


def test_a_datagram_is_padded_with_zeros(datagrams: Listener) -> None:
    """The text comes first, as it is."""
    to = Destination(datagrams.address, datagrams.port, packet_size=SIZE)
    asyncio.run(datagram.ask(to, b"ping", b"", 0.2))
    assert datagrams.heard[0].rstrip(b"\0") == b"ping"
    assert len(datagrams.heard[0]) == SIZE - HEADERS[datagrams.address][1]


def test_a_query_is_padded_as_dns_has_it(datagrams: Listener) -> None:
    """The query is valid, and the padding is an option of EDNS."""
    to = Destination(datagrams.address, datagrams.port, packet_size=SIZE)
    asyncio.run(datagram.resolve(to, "www.example", "A", 0.2))
    query = datagrams.heard[0]
    assert len(query) == SIZE - HEADERS[datagrams.address][1]
    assert str(dns.message.from_wire(query).question[0].name) == "www.example."


def test_without_a_size_nothing_is_padded(datagrams: Listener) -> None:
    """What is sent is what the document says."""
    asyncio.run(datagram.ask(Destination(datagrams.address, datagrams.port), b"ping", b"", 0.2))
    assert datagrams.heard == [b"ping"]
