# SPDX-License-Identifier: Apache-2.0
"""What the balancer sends itself, from a VIP's address: replies to pings, "packet too big"."""

import struct
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from tidegate.model.address import unpacked
from tidegate.spec.checksum import checksum, updated
from tidegate.spec.packet import Kind, Packet

RATE: Final = 10_000
"""Answers per second and CPU, of each kind."""
_TTL: Final = 64
_QUOTE4: Final = 64
"""Bytes of the IP packet that a v4 error quotes: its header, and 8 more at the least."""
_QUOTE6: Final = 1232
"""Fills 1280 bytes, as RFC 4443 section 2.4 (c) wants."""
_NETWORK_CONTROL: Final = 0xC0
_DF: Final = 0x4000
_ICMP, _ICMPV6, _TCP = 1, 58, 6
_CLASS_D: Final = 224
_NO_HOSTS6: Final = (IPv6Address("::"), IPv6Address("::1"))
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_ECHO, _ECHO_REPLY = 8, 0
_ECHO6, _ECHO_REPLY6 = 128, 129


class Answer(IntEnum):
    """A kind of answer, each of which has a limit of its own."""

    PING = 0
    TOO_BIG = 1
    REJECTION = 2


def may_be_answered(packet: Packet) -> bool:
    """Return whether what we say of a packet has somebody to hear it.

    Nobody is told anything about an ICMP error or a later fragment, or at an address that is no
    unicast host's (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e).
    """
    if packet.is_error or packet.kind is Kind.LATER_FRAGMENT:
        return False
    source = unpacked(packet.source)
    if isinstance(source, IPv4Address):
        return not packet.is_v6 and source.packed[0] not in (0, 127) and source.packed[0] < _CLASS_D
    return source not in _NO_HOSTS6 and not source.is_multicast


def is_echo_request(packet: Packet, frame: bytes) -> bool:
    """Return whether an ICMP packet is a ping."""
    kind, code = frame[packet.l3 + packet.l4 :][:2]
    return (kind, code) == (_ECHO6 if packet.is_v6 else _ECHO, 0)


def echo_reply(packet: Packet, frame: bytes) -> bytes:
    """Return the reply to a ping: type and addresses changed, checksums updated, payload kept."""
    ip = bytearray(frame[packet.l3 :])
    icmp = packet.l4
    old_type, new_type = (_ECHO6, _ECHO_REPLY6) if packet.is_v6 else (_ECHO, _ECHO_REPLY)
    if packet.is_v6:
        ip[8:24], ip[24:40] = ip[24:40], ip[8:24]
        ip[7] = _TTL
    else:
        ip[12:16], ip[16:20] = ip[16:20], ip[12:16]
        check = updated(int.from_bytes(ip[10:12]), ip[8] << 8, _TTL << 8)
        ip[10:12] = check.to_bytes(2)
        ip[8] = _TTL
    check = updated(int.from_bytes(ip[icmp + 2 : icmp + 4]), old_type << 8, new_type << 8)
    ip[icmp] = new_type
    if not packet.is_v6 and ip[icmp + 4 : icmp + 8] == bytes(4):
        # Perhaps all is zero: then 0xFFFF verifies and 0 does not, and else both do. (ICMPv6 sums
        # addresses too.)
        check = check or 0xFFFF
    ip[icmp + 2 : icmp + 4] = check.to_bytes(2)
    return frame[6:12] + frame[0:6] + frame[12 : packet.l3] + bytes(ip)


def too_big(packet: Packet, frame: bytes, mtu: int) -> bytes | None:
    """Return the error with the MTU for a client; None if the packet is too short to quote."""
    quote = _QUOTE6 if packet.is_v6 else max(_QUOTE4, packet.l4 + 8)
    if packet.length < quote:
        return None
    quoted = frame[packet.l3 : packet.l3 + quote]
    ip = _error6(packet, quoted, 2, 0, mtu) if packet.is_v6 else _error4(packet, quoted, 4, mtu)
    return frame[6:12] + frame[0:6] + frame[12 : packet.l3] + ip


def rejection(packet: Packet, frame: bytes) -> bytes | None:
    """Return a TCP reset or "port unreachable"; None for what gets neither, or is not whole."""
    ip = frame[packet.l3 :]
    if packet.is_cut or packet.is_rst or packet.length < packet.l4 + 8:
        return None
    if packet.kind is Kind.TCP:
        answer = _reset(packet, ip) if packet.length >= packet.l4 + packet.headers else None
    elif packet.is_v6:
        answer = _error6(packet, ip[: min(packet.length, _QUOTE6)], 1, 4, 0)
    else:
        answer = _error4(packet, ip[: packet.l4 + 8], 3, 0)
    return answer and frame[6:12] + frame[0:6] + frame[12 : packet.l3] + answer


def _reset(packet: Packet, ip: bytes) -> bytes:
    """Return what a closed port answers (RFC 9293 section 3.10.7.1)."""
    segment = ip[packet.l4 : packet.length]
    flags, header = segment[13], (segment[12] >> 4) * 4
    sequence, acknowledged, out = int.from_bytes(segment[8:12]), 0, _RST
    if not flags & _ACK:
        size = max(0, len(segment) - header) + bool(flags & _SYN) + bool(flags & _FIN)
        sequence, acknowledged, out = 0, packet.sequence + size & 0xFFFFFFFF, _RST | _ACK
    fields = (sequence, acknowledged, 5 << 4, out, 0)
    bare = packet.port + packet.source_port + struct.pack(">IIBBH", *fields) + bytes(4)
    addresses = packet.destination + packet.source
    if not packet.is_v6:
        addresses = addresses[12:16] + addresses[28:32]
    check = checksum(addresses + struct.pack(">II", len(bare), _TCP) + bare).to_bytes(2)
    header_of = _header6 if packet.is_v6 else _header4
    return header_of(packet, _TCP, 0, len(bare)) + bare[:16] + check + bare[18:]


def _header4(packet: Packet, protocol: int, tos: int, length: int) -> bytes:
    fields = (0x45, tos, 20 + length, 0, _DF, _TTL, protocol)
    addresses = unpacked(packet.destination).packed + unpacked(packet.source).packed
    bare = struct.pack(">BBHHHBBH", *fields, 0) + addresses
    return struct.pack(">BBHHHBBH", *fields, checksum(bare)) + addresses


def _header6(packet: Packet, protocol: int, tos: int, length: int) -> bytes:
    header = struct.pack(">IHBB", 6 << 28 | tos << 20, length, protocol, _TTL)
    return header + packet.destination + packet.source


def _error4(packet: Packet, quoted: bytes, code: int, mtu: int) -> bytes:
    """Return "destination unreachable" of this code (RFC 792, RFC 1191)."""
    message = struct.pack(">BBHHH", 3, code, 0, 0, mtu) + quoted
    header = _header4(packet, _ICMP, _NETWORK_CONTROL, len(message))
    return header + message[:2] + checksum(message).to_bytes(2) + message[4:]


def _error6(packet: Packet, quoted: bytes, kind: int, code: int, mtu: int) -> bytes:
    """Return an ICMPv6 error (RFC 4443 sections 3.1 and 3.2)."""
    message = struct.pack(">BBHI", kind, code, 0, mtu) + quoted
    pseudo = packet.destination + packet.source + struct.pack(">II", len(message), _ICMPV6)
    check = checksum(pseudo + message).to_bytes(2)
    header = _header6(packet, _ICMPV6, _NETWORK_CONTROL, len(message))
    return header + message[:2] + check + message[4:]
