# SPDX-License-Identifier: Apache-2.0
"""A UDP echo server that says who answered; run as a script: `echo.py NAME PORT`.

It answers a datagram with "NAME " and the datagram, from the address that the datagram was sent to
(IP_PKTINFO, RFC 3542 section 6.2), so it serves whatever VIPs the host has. It imports the standard
library alone, because one is started on every backend.
"""

import selectors
import socket
import sys
from typing import Final

_BATCH: Final = 64
_CONTROL_BYTES: Final = 64


def sockets(port: int) -> tuple[socket.socket, socket.socket]:
    """Return an IPv4 and an IPv6 socket that get the destination address of each datagram."""
    # socket has no name for it on Linux before Python 3.14; the number is from linux/in.h.
    ip_pktinfo = getattr(socket, "IP_PKTINFO", 8)
    four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    four.setsockopt(socket.IPPROTO_IP, ip_pktinfo, 1)
    four.bind(("", port))
    six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    six.bind(("", port))
    for one in (four, six):
        one.setblocking(False)  # noqa: FBT003 - socket has it positional
    return four, six


def answer(sock: socket.socket, name: bytes) -> None:
    """Answer up to a batch of waiting datagrams."""
    for _ in range(_BATCH):
        try:
            data, control, _, client = sock.recvmsg(2048, _CONTROL_BYTES)
        except BlockingIOError:
            return
        except OSError:
            continue  # an ICMP error for an earlier answer
        reply: list[tuple[int, int, bytes]] = []
        for level, kind, info in control:
            if level == socket.IPPROTO_IP:
                # struct in_pktinfo: interface, local address, destination. The answer leaves by
                # the route to the client, so no interface; its source is ipi_spec_dst.
                reply.append((level, kind, bytes(4) + info[8:12] + bytes(4)))
            else:
                # struct in6_pktinfo: address, interface.
                reply.append((level, kind, info[:16] + bytes(4)))
        try:
            sock.sendmsg([name, b" ", data], reply, 0, client)
        except OSError:
            continue  # the client's network is gone, or the buffer is full: it is only UDP


def main() -> None:
    """Serve until a signal ends it."""
    name, port = sys.argv[1].encode(), int(sys.argv[2])
    selector = selectors.DefaultSelector()
    for sock in sockets(port):
        selector.register(sock, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            answer(key.fileobj, name)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
