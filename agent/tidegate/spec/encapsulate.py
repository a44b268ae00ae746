# SPDX-License-Identifier: Apache-2.0
"""IP in IP (RFC 2003, RFC 2473, RFC 4213): the outer header and the frame to transmit."""

import struct
from ipaddress import IPv4Address
from typing import Final

from tidegate.model.decision import Reason
from tidegate.model.values import Address
from tidegate.spec.packet import Packet
from tidegate.spec.state import State

_TTL: Final = 64
_DF: Final = 0x4000
_IPIP, _IPV6 = 4, 41
_MASK32: Final = 0xFFFFFFFF
_MASK64: Final = (1 << 64) - 1


def encapsulate(
    state: State, packet: Packet, frame: bytes, to: Address, value: int, interface: int
) -> bytes | Reason:
    """The frame to transmit, or why there is none. `value` is the flow hash."""
    link = state.links.get(interface)
    is_outer_v4 = isinstance(to, IPv4Address)
    gateway = (link.gateway4 if is_outer_v4 else link.gateway6) if link else None
    if link is None or gateway is None:
        return Reason.NO_GATEWAY
    if packet.length + (20 if is_outer_v4 else 40) > link.mtu:
        return Reason.TOO_BIG
    header = _outer4 if is_outer_v4 else _outer6
    kind = b"\x08\x00" if is_outer_v4 else b"\x86\xdd"
    return gateway + link.mac + kind + header(state, packet, to, value) + frame[14:]


def _outer4(state: State, packet: Packet, to: Address, value: int) -> bytes:
    network = state.settings.source4
    source = int(network.network_address) | value & _MASK32 & int(network.hostmask)
    protocol = _IPV6 if packet.is_v6 else _IPIP
    fields = (0x45, packet.tos, packet.length + 20, 0, _DF, _TTL, protocol)
    addresses = struct.pack(">I4s", source, to.packed)
    bare = struct.pack(">BBHHHBBH", *fields, 0) + addresses
    return struct.pack(">BBHHHBBH", *fields, _checksum(bare)) + addresses


def _outer6(state: State, packet: Packet, to: Address, value: int) -> bytes:
    network = state.settings.source6
    source = int(network.network_address) | value & _MASK64 & int(network.hostmask)
    protocol = _IPV6 if packet.is_v6 else _IPIP
    first = 6 << 28 | packet.tos << 20
    return struct.pack(
        ">IHBB16s16s", first, packet.length, protocol, _TTL, source.to_bytes(16), to.packed
    )


def _checksum(header: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
