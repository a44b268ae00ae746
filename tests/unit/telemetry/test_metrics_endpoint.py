# SPDX-License-Identifier: Apache-2.0
"""The endpoint that Prometheus scrapes, on a real socket, while others misuse it."""

import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tidegate.telemetry.metrics.endpoint import LIMITS, Endpoint, Place

TEXT = b"# a metric\n" * 400_000
"""More than a socket's buffers take."""


def scrape(endpoint: Endpoint) -> tuple[bytes, float]:
    """Return what a scrape gets, and the seconds that it takes."""
    begun = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics", timeout=10) as answer:
        return answer.read(), time.monotonic() - begun


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with closing(Endpoint(Place("127.0.0.1", 0), lambda: TEXT)) as made:
        yield made


@pytest.mark.parametrize(
    "head",
    [b"", b"GET /metrics HTTP/1.1\r\nX: ", b"GET /metrics HTTP/1.1\r\n\r\n"],
    ids=["silent", "asking", "not-reading"],
)
def test_slow_clients_do_not_block_a_scrape(endpoint: Endpoint, head: bytes) -> None:
    """Silent, amid a request, or not reading: three times as many as there are places."""
    with ExitStack() as stack:
        for _ in range(3 * LIMITS.clients):
            client = socket.create_connection(("127.0.0.1", endpoint.port), timeout=10)
            stack.enter_context(client)
            client.sendall(head)
        for _ in range(5):
            text, took = scrape(endpoint)
            assert text == TEXT
            assert took < 2
