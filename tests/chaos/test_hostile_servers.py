# SPDX-License-Identifier: Apache-2.0
"""Servers that answer checks in the way that costs most, and those that are checked beside them."""

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from support.collector.certificates import self_signed
from support.etcd.server import Received
from support.health import hostile
from tidegate.health import datagram, grpc_health, http
from tidegate.health.engine import Engine, Target
from tidegate.health.handshakes import Handshake
from tidegate.health.result import Result
from tidegate.health.tcp import Destination

HERE = "127.0.0.1"
LIMIT = 0.9
"""Seconds that a check may take."""

Probe = Callable[[], Awaitable[Result]]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a certificate that nobody signed, with its key, in one file."""
    return self_signed(tmp_path_factory.mktemp("tls"), "shop.example", "DNS:shop.example")


def probe(way: str, port: int) -> Probe:
    """Return the check that a hostile server is for."""
    to = Destination(HERE, port)
    match way.partition(":")[0]:
        case "http":
            return partial(http.get, to, http.Ask("x", body="never said"), LIMIT)
        case "https":
            ask = http.Ask("x", body="never said", tls=True, verify=False)
            return partial(http.get, to, ask, LIMIT)
        case "grpc":
            return partial(grpc_health.check, to, grpc_health.Ask("", "x"), LIMIT)
        case "dns":
            return partial(datagram.resolve, to, "www.example", "A", LIMIT)
        case _:
            return partial(datagram.ask, to, b"hello", b"never said", LIMIT)


@pytest.mark.parametrize("way", [*hostile.WAYS, *hostile.DATAGRAMS])
def test_a_server_costs_a_check_little(way: str, certificate: Path) -> None:
    """However it answers, one check takes 40 ms of CPU at most, and fails."""
    with hostile.running(way, certificate) as port:
        once = probe(way, port)

        async def twice() -> tuple[Result, float]:
            await once()  # imports and caches
            before = time.thread_time()
            return await once(), time.thread_time() - before

        result, used = asyncio.run(twice())
    assert result.code in ("mismatch", "timeout", "error", "reset"), result
    assert used < 0.04, result


@pytest.fixture
def healthy() -> Iterator[int]:
    """Give the port of a server that answers as it should."""
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    with socket.create_server((HERE, 0), backlog=512) as server:

        def serve() -> None:
            while True:
                try:
                    peer = server.accept()[0]
                except OSError:
                    return
                with peer:
                    peer.settimeout(5)
                    try:
                        peer.recv(65536)
                        peer.sendall(page)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_hostile_servers_do_not_have_others_ejected(healthy: int, certificate: Path) -> None:
    """While all of them are checked at full rate, a check of a healthy server never fails."""
    seen: Received[tuple[str, Result]] = Received()
    engine: Engine[str] = Engine(lambda key, result: seen((key, result)))
    engine.start()
    with ExitStack() as servers:
        targets = {
            f"{way} {copy}": Target(probe(way, port), 1.0)
            for way in (*hostile.WAYS, *hostile.DATAGRAMS)
            for port in [servers.enter_context(hostile.running(way, certificate))]
            for copy in range(3)
        }
        good = Destination(HERE, healthy)
        targets["tcp"] = Target(Handshake(good, LIMIT), 1.0)
        targets["page"] = Target(partial(http.get, good, http.Ask("x"), LIMIT), 1.0)
        engine.probe(targets)
        before, began = time.process_time(), time.monotonic()
        for key in ("tcp", "page"):
            seen.wait(lambda _, key=key: sum(k == key for k, _ in seen.items) >= 6, timeout=60)
        took, used = time.monotonic() - began, time.process_time() - before
        assert engine.stop()
    pace = len(seen.items) / took
    sys.stdout.write(f"{pace:.0f} checks a second took {used / took:.0%} of a core\n")
    assert {result.code for key, result in seen.items if key in ("tcp", "page")} == {"passed"}
    assert len({key for key, _ in seen.items}) > len(targets) / 2
