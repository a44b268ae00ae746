# SPDX-License-Identifier: Apache-2.0
"""Servers that answer a check in the way that costs it most, in processes of their own.

They have their own process so that what the checker costs can be told from what they cost. Each
closes a connection when its peer does.
"""

import contextlib
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

Way = Callable[[socket.socket], None]

_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_MANY = 43_000


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def _dripping(head: bytes, part: bytes) -> Way:
    def answer(peer: socket.socket) -> None:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.sendall(head)
        for _ in range(_MANY):
            peer.sendall(part)

    return answer


def _gushing(head: bytes, part: bytes) -> Way:
    def answer(peer: socket.socket) -> None:
        peer.sendall(head + part * _MANY)
        peer.recv(1)

    return answer


def _h2(*frames: bytes) -> Way:
    """Say one's settings, then these frames over and over."""
    return _gushing(_frame(4, 0, 0) + _frame(4, 1, 0), b"".join(frames))


def _secured(record: bytes) -> Way:
    """Send many TLS records of one byte; the certificate's path is the second argument."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2])

    def answer(peer: socket.socket) -> None:
        with context.wrap_socket(peer, server_side=True) as secured:
            secured.recv(65536)
            secured.sendall(_HEAD)
            for _ in range(_MANY):
                secured.sendall(record)

    return answer


_HEADERS = _frame(1, 4, 1, b"\x88")
"""The head of an answer: `:status: 200`, by HPACK's static table."""

WAYS: dict[str, Callable[[], Way]] = {
    "http: chunks dripped": lambda: _dripping(_HEAD, b"1\r\nx\r\n"),
    "http: chunks at once": lambda: _gushing(_HEAD, b"1\r\nx\r\n"),
    "http: bytes dripped": lambda: _dripping(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "http: a head dripped": lambda: _dripping(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "http: many headers": lambda: _gushing(b"HTTP/1.1 200 OK\r\n", b"a:\r\n"),
    "http: 1xx without end": lambda: _gushing(b"", b"HTTP/1.1 102 P\r\n\r\n"),
    "https: records of a byte": lambda: _secured(b"1"),
    "https: a handshake dripped": lambda: _dripping(b"\x16\x03\x03\x40\x00", b"\x02"),
    "grpc: pings": lambda: _h2(_frame(6, 0, 0, bytes(8))),
    "grpc: settings": lambda: _h2(_frame(4, 0, 0)),
    "grpc: window updates": lambda: _h2(_frame(8, 0, 0, bytes(3) + b"\x01")),
    "grpc: unknown frames": lambda: _h2(_frame(0xF0, 0, 0)),
    "grpc: continuations": lambda: _gushing(
        _frame(4, 0, 0) + _frame(1, 0, 1, b"\x88"), _frame(9, 0, 1)
    ),
    "grpc: data of a byte": lambda: _gushing(
        _frame(4, 0, 0) + _frame(4, 1, 0) + _HEADERS, _frame(0, 0, 1, b"x")
    ),
    "grpc: frames dripped": lambda: _dripping(_frame(4, 0, 0), _frame(6, 0, 0, bytes(8))),
}


def _tell(sock: socket.socket) -> None:
    """Say which port it is."""
    sys.stdout.write(f"{sock.getsockname()[1]}\n")
    sys.stdout.flush()


def serve(way: Way) -> None:
    """Serve until the process is killed; the port is printed."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        _tell(server)
        while True:
            peer = server.accept()[0]
            threading.Thread(target=_answer, args=(peer, way), daemon=True).start()


def _answer(peer: socket.socket, way: Way) -> None:
    with peer, contextlib.suppress(OSError):
        peer.settimeout(5)
        way(peer)


def serve_datagrams(answers: int, answer: bytes) -> None:
    """Answer each datagram so often; the id of a DNS question is put in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        _tell(sock)
        while True:
            asked, peer = sock.recvfrom(65535)
            for _ in range(answers):
                with contextlib.suppress(OSError):
                    sock.sendto(asked[:2] + answer, peer)


RECORDS = struct.pack("!5H", 0x8180, 0, 5000, 0, 0) + bytes(11) * 5000
"""A DNS answer of 55 kB without its id: 5,000 records of the root, of type 0."""

DATAGRAMS: dict[str, tuple[int, bytes]] = {
    "udp: thousands": (3000, b"hello"),
    "dns: thousands": (3000, b"hello"),
    "dns: many records": (1, RECORDS),
}


@contextlib.contextmanager
def running(way: str, certificate: Path) -> Iterator[int]:
    """Yield the port of a server in a process of its own."""
    # They would be on other hosts: what the CPU is short of is not to be the checker's.
    command = [
        "nice",
        "-n",
        "19",
        sys.executable,
        "-m",
        "support.health.hostile",
        way,
        str(certificate),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


if __name__ == "__main__":
    if sys.argv[1] in DATAGRAMS:
        serve_datagrams(*DATAGRAMS[sys.argv[1]])
    else:
        serve(WAYS[sys.argv[1]]())
