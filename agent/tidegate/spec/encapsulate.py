# SPDX-License-Identifier: Apache-2.0
"""IP in IP (RFC 2003, RFC 2473, RFC 4213) and GUE variant 1 (draft-ietf-intarea-gue section 4)."""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from tidegate.model.decision import Reason
from tidegate.spec.checksum import checksum
from tidegate.spec.packet import IPV4, IPV6, Packet
from tidegate.spec.state import BackendEntry, Link, Settings

_TTL: Final = 64
_DF: Final = 0x4000
_IPIP, _IPV6, _UDP = 4, 41, 17
_MASK32: Final = 0xFFFFFFFF
_MASK64: Final = (1 << 64) - 1
_GUE_PORTS: Final = 0xC000


@dataclass(frozen=True)
class Tunnel:
    """How a packet gets to its backend.

    Attributes:
        gateway: MAC of the next hop.
        limit: largest IP packet that fits, bytes.
    """

    backend: BackendEntry
    link: Link
    gateway: bytes
    limit: int


def tunnel_to(backend: BackendEntry, link: Link | None) -> Tunnel | Reason:
    """Return the tunnel to a backend, or why there is none."""
    is_v4 = isinstance(backend.address, IPv4Address)
    gateway = (link.gateway4 if is_v4 else link.gateway6) if link else None
    if link is None or gateway is None:
        return Reason.NO_GATEWAY
    mtu = min(link.mtu, backend.mtu or link.mtu)
    overhead = (20 if is_v4 else 40) + (8 if backend.gue_port else 0)
    return Tunnel(backend, link, gateway, mtu - overhead)


def encapsulate(
    settings: Settings, packet: Packet, frame: bytes, tunnel: Tunnel, hash_: int
) -> bytes:
    """Return the frame to transmit. `hash_` is the flow hash. Ethernet padding is left out."""
    inner = frame[packet.l3 : packet.l3 + packet.length]
    backend = tunnel.backend
    is_v4 = isinstance(backend.address, IPv4Address)
    source = _source(settings, hash_, is_v4=is_v4)
    protocol = _IPV6 if packet.is_v6 else _IPIP
    if backend.gue_port:
        port = _GUE_PORTS | hash_ >> 20 & 0x3FFF
        inner = _datagram(source + backend.address.packed, port, backend.gue_port, inner)
        protocol = _UDP
    outer = _outer4 if is_v4 else _outer6
    header = outer(packet.tos, protocol, len(inner), source + backend.address.packed)
    tags = frame[12 : packet.l3 - 2]
    kind = IPV4 if is_v4 else IPV6
    return tunnel.gateway + tunnel.link.mac + tags + kind + header + inner


def _source(settings: Settings, hash_: int, *, is_v4: bool) -> bytes:
    """Return an outer source address: the network, and bits of the flow hash behind its prefix."""
    if is_v4:
        network4 = settings.source4
        bits4 = hash_ & _MASK32 & int(network4.hostmask)
        return (int(network4.network_address) | bits4).to_bytes(4)
    network6 = settings.source6
    bits6 = hash_ & _MASK64 & int(network6.hostmask)
    return (int(network6.network_address) | bits6).to_bytes(16)


def _outer4(tos: int, protocol: int, length: int, addresses: bytes) -> bytes:
    fields = (0x45, tos, length + 20, 0, _DF, _TTL, protocol)
    bare = struct.pack(">BBHHHBBH", *fields, 0) + addresses
    return struct.pack(">BBHHHBBH", *fields, checksum(bare)) + addresses


def _outer6(tos: int, protocol: int, length: int, addresses: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28 | tos << 20, length, protocol, _TTL) + addresses


def _datagram(addresses: bytes, source: int, port: int, payload: bytes) -> bytes:
    """Return a UDP datagram with its checksum, which is never 0 (RFC 768)."""
    length = len(payload) + 8
    bare = struct.pack(">HHHH", source, port, length, 0) + payload
    check = checksum(addresses + struct.pack(">HH", _UDP, length) + bare) or 0xFFFF
    return bare[:6] + check.to_bytes(2) + payload
