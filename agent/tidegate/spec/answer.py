# SPDX-License-Identifier: Apache-2.0
"""What the balancer sends itself, from a VIP's address: replies to pings, "packet too big"."""

import struct
from typing import Final

from tidegate.model.address import unpacked
from tidegate.spec.checksum import checksum, updated
from tidegate.spec.packet import Packet

RATE: Final = 10_000
"""Answers per second and CPU, of all kinds."""
_TTL: Final = 64
_QUOTE4: Final = 64
"""Bytes of the IP packet that a v4 error quotes."""
_QUOTE6: Final = 1232
"""Fills 1280 bytes, as RFC 4443 section 2.4 (c) wants."""
_NETWORK_CONTROL: Final = 0xC0
_DF: Final = 0x4000
_ICMP, _ICMPV6 = 1, 58
_ECHO, _ECHO_REPLY = 8, 0
_ECHO6, _ECHO_REPLY6 = 128, 129


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
    ip[icmp + 2 : icmp + 4] = check.to_bytes(2)
    return frame[6:12] + frame[0:6] + frame[12 : packet.l3] + bytes(ip)


def too_big(packet: Packet, frame: bytes, mtu: int) -> bytes | None:
    """Return the error with the MTU for a client; None if the packet is too short to quote."""
    quote = _QUOTE6 if packet.is_v6 else _QUOTE4
    if packet.length < quote:
        return None
    quoted = frame[packet.l3 : packet.l3 + quote]
    ip = _too_big6(packet, quoted, mtu) if packet.is_v6 else _too_big4(packet, quoted, mtu)
    return frame[6:12] + frame[0:6] + frame[12 : packet.l3] + ip


def _too_big4(packet: Packet, quoted: bytes, mtu: int) -> bytes:
    fields = (0x45, _NETWORK_CONTROL, 20 + 8 + len(quoted), 0, _DF, _TTL, _ICMP)
    addresses = unpacked(packet.destination).packed + unpacked(packet.source).packed
    bare = struct.pack(">BBHHHBBH", *fields, 0) + addresses
    header = struct.pack(">BBHHHBBH", *fields, checksum(bare)) + addresses
    message = struct.pack(">BBHHH", 3, 4, 0, 0, mtu) + quoted
    return header + message[:2] + checksum(message).to_bytes(2) + message[4:]


def _too_big6(packet: Packet, quoted: bytes, mtu: int) -> bytes:
    message = struct.pack(">BBHI", 2, 0, 0, mtu) + quoted
    addresses = packet.destination + packet.source
    pseudo = addresses + struct.pack(">II", len(message), _ICMPV6)
    header = struct.pack(">IHBB", 6 << 28 | _NETWORK_CONTROL << 20, len(message), _ICMPV6, _TTL)
    check = checksum(pseudo + message).to_bytes(2)
    return header + addresses + message[:2] + check + message[4:]
