# SPDX-License-Identifier: Apache-2.0
"""Sockets that reach a VIP through the tunnel to one backend, and what their errors mean.

The socket's mark names the backend (bpf/healthcheck.c), so what answers is the process that clients
would reach. Its hop limit is 1 until it is in the tunnel, so that no router passes on what leaves
plain. Connections are closed by a reset: otherwise every probe would leave this host a socket
in TIME_WAIT for a minute.
"""

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from tidegate.health.result import Code, Result
from tidegate.spec.healthcheck import HOPS

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

_HOP_LIMIT: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TTL),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
}

_CODES: Final[dict[int, Code]] = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ETIMEDOUT: "timeout",
}


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a probe goes.

    Attributes:
        mark: socket mark that names the backend; 0 sends it as any packet.
        source: address that it comes from; None leaves it to the routes.
        packet_size: bytes of the IP packet that asks, before it is encapsulated; None is any.
    """

    address: str
    port: int
    mark: int = 0
    source: str | None = None
    packet_size: int | None = None

    @property
    def family(self) -> socket.AddressFamily:
        """Of its address."""
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET


def marked(destination: Destination, kind: socket.SocketKind) -> socket.socket:
    """Return a non-blocking socket whose packets take the tunnel.

    Raises:
        OSError: the mark is not allowed (CAP_NET_ADMIN), or the source is not an address of ours.
    """
    sock = socket.socket(destination.family, kind | socket.SOCK_NONBLOCK)
    try:
        if destination.mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, destination.mark)
            sock.setsockopt(*_HOP_LIMIT[destination.family], HOPS)
        if destination.source is not None:
            sock.bind((destination.source, 0))
    except OSError:
        sock.close()
        raise
    return sock


def failed(error: OSError, seconds: float) -> Result:
    """Return the result of a probe that the system ended after this long."""
    code = _CODES.get(error.errno or 0, "error")
    said = os.strerror(error.errno) if error.errno else str(error)
    return Result(code, f"{said}.", seconds)
