# SPDX-License-Identifier: Apache-2.0
"""Makes what a check asks fill a packet of a set size: a way that loses large ones is found so.

A question is short, and so passes where full packets of clients do not: a link with a smaller MTU
behind a tunnel loses them, and no check notices, since the error goes to the outer source. So the
question is padded to exactly one packet, in a way that its protocol ignores. One packet, not more:
the kernel keeps segments of one write together until they leave, and what the tunnel adds would be
taken off their size again (bpf/healthcheck.c).
"""

import socket
from typing import Final

from tidegate.health.tcp import Destination

_TCP: Final = 20
_UDP: Final = 8
_IP: Final = {socket.AF_INET: 20, socket.AF_INET6: 40}
_TLS: Final = 29
"""Most bytes that a record adds: header, nonce and tag of AES-GCM (RFC 5288); TLS 1.3 adds 22."""
_FIELD: Final = b"X-Padding: %s\r\n"
_FRAME: Final = 9
"""Bytes of an HTTP/2 frame's head (RFC 9113, section 4.1)."""
_UNKNOWN_FRAME: Final = 0xF0
"""A type that nobody has; receivers discard such frames (RFC 9113, section 5.5)."""
_PROBE_MTU: Final = 3
"""IP_PMTUDISC_PROBE (linux/in.h): no fragments, whatever the path's MTU is thought to be."""
_MTU_DISCOVER: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, 10),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 23),
}


def limit_segments(sock: socket.socket, packet_size: int | None) -> None:
    """Limit the packets of a TCP socket that is not connected yet to this size."""
    if packet_size is not None:
        most = packet_size - _IP[sock.family] - _TCP
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, most)


def full_segment(sock: socket.socket, *, is_tls: bool) -> int:
    """Return how many bytes a socket sends in one packet; with TLS, how many fit in a record."""
    most = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    return most - _TLS if is_tls else most


def padded_head(head: bytes, size: int) -> bytes:
    """Return the head of an HTTP/1.1 request, padded to this many bytes by one more header."""
    missing = size - len(head) - len(_FIELD % b"")
    if missing < 0:
        return head
    return head[:-2] + _FIELD % (b"x" * missing) + head[-2:]


def padded_frames(frames: bytes, size: int) -> bytes:
    """Return HTTP/2 frames, padded to this many bytes by one more that is ignored."""
    missing = size - len(frames) - _FRAME
    if missing < 0:
        return frames
    head = missing.to_bytes(3) + bytes([_UNKNOWN_FRAME, 0]) + bytes(4)
    return frames + head + bytes(missing)


def room(destination: Destination) -> int:
    """Return the size of a datagram that fills a packet for a destination; 0 for no padding."""
    if destination.packet_size is None:
        return 0
    return destination.packet_size - _IP[destination.family] - _UDP


def padded(datagram: bytes, size: int) -> bytes:
    """Return a datagram, padded with zeros to this many bytes at least."""
    return datagram.ljust(size, b"\0")


def forbid_fragments(sock: socket.socket) -> None:
    """Forbid a UDP socket to fragment datagrams."""
    level, option = _MTU_DISCOVER[sock.family]
    sock.setsockopt(level, option, _PROBE_MTU)
