# SPDX-License-Identifier: Apache-2.0
"""From a frame to a packet that a VIP could be for, or None. Nothing is dropped or counted here."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

ETHERNET: Final = 14
IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"
_VLAN_TYPES: Final = (b"\x81\x00", b"\x88\xa8")
_VLAN_TAGS: Final = 2
_EXTENSIONS: Final = 4
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"


class Kind(Enum):
    """What a packet carries, as far as decisions depend on it."""

    TCP = "TCP"
    UDP = "UDP"
    ICMP = "ICMP or ICMPv6"
    LATER_FRAGMENT = "not the first fragment of a datagram"
    UNREADABLE = "neither of these, cut off, or behind too many headers"


@dataclass(frozen=True)
class Packet:
    """The properties of a packet that decisions depend on.

    Attributes:
        l3: bytes of the frame before the IP header: Ethernet and VLAN tags.
        l4: bytes of the IP packet before the transport header.
        headers: bytes of the transport header, without options.
        length: bytes of the IP packet as its header says.
        is_cut: the frame ends before the IP packet does.
        allows_fragments: IPv4 without DF.
        sender: of an ICMP error.
        sequence: number of the first byte of a TCP segment.
        is_error: an ICMP error; addresses and ports are those of the flow that it quotes.
    """

    source: bytes
    destination: bytes
    protocol: int
    l3: int
    l4: int
    length: int
    tos: int
    is_v6: bool
    is_cut: bool
    fragment_id: bytes
    allows_fragments: bool = False
    sender: bytes = b""
    kind: Kind | None = None
    headers: int = 0
    source_port: bytes = b"\0\0"
    port: bytes = b"\0\0"
    is_first_fragment: bool = False
    sequence: int = 0
    is_syn: bool = False
    is_rst: bool = False
    is_fin: bool = False
    is_error: bool = False


def parse(frame: bytes) -> Packet | None:
    """Read a frame. None: it has no whole IP header, so nobody knows whom it is for."""
    if len(frame) < ETHERNET:
        return None
    at = ETHERNET
    ethertype = frame[12:14]
    for _ in range(_VLAN_TAGS):
        if ethertype not in _VLAN_TYPES:
            break
        if len(frame) < at + 4:
            return None
        ethertype = frame[at + 2 : at + 4]
        at += 4
    packet = parse_ip(frame[at:], ethertype, at)
    if packet is None or packet.kind in (Kind.LATER_FRAGMENT, Kind.UNREADABLE):
        return packet
    return _parse_transport(packet, frame[at + packet.l4 :])


def parse_ip(ip: bytes, ethertype: bytes, l3: int) -> Packet | None:
    """Read the IP header and, in IPv6, what comes before the transport header."""
    if ethertype == IPV4:
        return _parse4(ip, l3)
    if ethertype == IPV6:
        return _parse6(ip, l3)
    return None


def _parse4(ip: bytes, l3: int) -> Packet | None:
    if len(ip) < 20 or ip[0] >> 4 != 4 or ip[0] & 15 < 5:  # noqa: PLR2004 - RFC 791
        return None
    fragment = int.from_bytes(ip[6:8])
    length = int.from_bytes(ip[2:4])
    later = bool(fragment & 0x1FFF)
    return Packet(
        source=b"\0" * 10 + b"\xff\xff" + ip[12:16],
        destination=b"\0" * 10 + b"\xff\xff" + ip[16:20],
        protocol=ip[9],
        l3=l3,
        l4=(ip[0] & 15) * 4,
        length=length,
        tos=ip[1],
        is_v6=False,
        is_cut=length > len(ip),
        fragment_id=ip[4:6] + b"\0\0",
        allows_fragments=not fragment & 0x4000,
        kind=Kind.LATER_FRAGMENT if later else None,
        is_first_fragment=not later and bool(fragment & 0x2000),
    )


def is_mapped(address: bytes) -> bool:
    """Return whether it is ::ffff:a.b.c.d, which no IPv6 packet has (RFC 4291 section 2.5.5.2).

    The maps have IPv4 addresses in this form, so such a packet would be taken for one of IPv4.
    """
    return address[:12] == _MAPPED


def _parse6(ip: bytes, l3: int) -> Packet | None:
    if len(ip) < 40 or ip[0] >> 4 != 6:  # noqa: PLR2004 - RFC 8200
        return None
    if is_mapped(ip[24:40]):
        return None
    length = int.from_bytes(ip[4:6]) + 40
    packet = Packet(
        source=ip[8:24],
        destination=ip[24:40],
        protocol=ip[6],
        l3=l3,
        l4=40,
        length=length,
        tos=(ip[0] & 15) << 4 | ip[1] >> 4,
        is_v6=True,
        is_cut=length > len(ip),
        fragment_id=bytes(4),
    )
    return _skip_extensions(packet, ip)


def _skip_extensions(packet: Packet, ip: bytes) -> Packet:
    for _ in range(_EXTENSIONS):
        following = packet.protocol
        if following not in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION):
            break
        header = ip[packet.l4 : packet.l4 + 8]
        if len(header) < 8:  # noqa: PLR2004 - the least that an extension header has
            return replace(packet, kind=Kind.UNREADABLE)
        if following == _FRAGMENT:
            packet = replace(packet, fragment_id=header[4:8])
            offset = int.from_bytes(header[2:4])
            if offset & 0xFFF8:
                return replace(
                    packet,
                    kind=Kind.LATER_FRAGMENT,
                    protocol=header[0],
                    l4=packet.l4 + 8,
                )
            if offset & 1:
                packet = replace(packet, is_first_fragment=True)
            size = 8
        else:
            size = (header[1] + 1) * 8
        packet = replace(packet, protocol=header[0], l4=packet.l4 + size)
    return packet


def _parse_transport(packet: Packet, segment: bytes) -> Packet:
    icmp = _ICMPV6 if packet.is_v6 else _ICMP
    kinds = {_TCP: (Kind.TCP, 20), _UDP: (Kind.UDP, 8), icmp: (Kind.ICMP, 8)}
    kind, size = kinds.get(packet.protocol, (Kind.UNREADABLE, 0))
    if kind is Kind.UNREADABLE or len(segment) < size:
        return replace(packet, kind=Kind.UNREADABLE)
    packet = replace(packet, kind=kind, headers=size)
    if kind is Kind.ICMP:
        return packet
    flags = segment[13] if kind is Kind.TCP else 0
    fin, syn, rst, ack = flags & 1, flags & 2, flags & 4, flags & 16
    return replace(
        packet,
        source_port=segment[0:2],
        port=segment[2:4],
        sequence=int.from_bytes(segment[4:8]) if kind is Kind.TCP else 0,
        is_syn=bool(syn and not ack),
        is_rst=bool(rst),
        is_fin=bool(fin),
    )
