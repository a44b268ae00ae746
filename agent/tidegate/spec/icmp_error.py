# SPDX-License-Identifier: Apache-2.0
"""ICMP errors for a VIP's flows: from routers, about packets that a backend sent as the VIP."""

from dataclasses import replace
from typing import Final

from tidegate.spec.packet import IPV4, IPV6, Kind, Packet, parse_ip

_ERRORS4: Final = (3, 11, 12)
_ERRORS6: Final = (1, 2, 3, 4)
_LEAST_MTU4: Final = 68
"""RFC 791."""
_LEAST_MTU6: Final = 1280
"""RFC 8200 section 5."""
_LONGEST4, _LONGEST6 = 576, 1280
"""Bytes of a router's longest error (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 c)."""
RATE: Final = 1000
"""Errors that are forwarded per second, VIP and CPU: anybody can send some that quote a flow."""
_UNREACHABLE, _FRAGMENTATION_NEEDED, _PACKET_TOO_BIG = 3, 4, 2
_QUOTED: Final = {6: Kind.TCP, 17: Kind.UDP}


def is_error(packet: Packet, frame: bytes) -> bool:
    """Return whether an ICMP packet is an error of a type that concerns flows."""
    kind = frame[packet.l3 + packet.l4]
    return kind in (_ERRORS6 if packet.is_v6 else _ERRORS4)


def mtu_is_absurd(packet: Packet, frame: bytes) -> bool:
    """Return whether its MTU is one that no link may have.

    In IPv4 0 is none: a router older than RFC 1191 does not say it (section 5), and hosts know what
    to do then. In IPv6 nothing below 1280 is believed (RFC 8201 section 4).
    """
    message = frame[packet.l3 + packet.l4 :]
    if packet.is_v6:
        return message[0] == _PACKET_TOO_BIG and int.from_bytes(message[4:8]) < _LEAST_MTU6
    return (
        message[:2] == bytes([_UNREACHABLE, _FRAGMENTATION_NEEDED])
        and 0 < int.from_bytes(message[6:8]) < _LEAST_MTU4
    )


def is_too_long(packet: Packet) -> bool:
    """Return whether it is longer than any router's."""
    return packet.length > (_LONGEST6 if packet.is_v6 else _LONGEST4)


def quoted_flow(packet: Packet, frame: bytes) -> Packet | None:
    """Return the packet as one of the flow that it quotes, source and destination swapped.

    None: what is quoted is not the first eight bytes of TCP or UDP from the address that the error
    was sent to.
    """
    inner = frame[packet.l3 + packet.l4 + 8 :]
    quoted = parse_ip(inner, IPV6 if packet.is_v6 else IPV4, 0)
    if quoted is None or quoted.kind is Kind.LATER_FRAGMENT or quoted.protocol not in _QUOTED:
        return None
    ports = inner[quoted.l4 : quoted.l4 + 4]
    if len(ports) < 4 or quoted.source != packet.destination:  # noqa: PLR2004 - two ports
        return None
    return replace(
        packet,
        source=quoted.destination,
        sender=packet.source,
        port=ports[0:2],
        source_port=ports[2:4],
        protocol=quoted.protocol,
        kind=_QUOTED[quoted.protocol],
        is_error=True,
    )
