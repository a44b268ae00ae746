# SPDX-License-Identifier: Apache-2.0
"""Frames as clients send them, made with scapy."""

from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from support.documents.roster import VIP4, VIP6

ETHER = Ether(src="02:00:00:00:00:04", dst="02:00:00:00:00:01")
CLIENT4, CLIENT6 = "10.77.0.9", "fd77::9"


def ip4(source: str = CLIENT4, to: str = VIP4, **fields: Any) -> IP:
    """Return an IPv4 header, of a host that wants no fragments if nothing else is said."""
    wanted = fields if fields.keys() & {"flags", "frag"} else {"flags": "DF", **fields}
    return IP(src=source, dst=to, **wanted)


def ip6(source: str = CLIENT6, to: str = VIP6, **fields: Any) -> IPv6:
    """Return an IPv6 header."""
    return IPv6(src=source, dst=to, **fields)


def tcp(
    flags: str,
    ip: Any = None,
    *,
    sport: int = 40000,
    dport: int = 80,
    data: str = "",
    seq: int | None = None,
) -> bytes:
    """Return a TCP segment in a frame: a SYN, or what the client sends next."""
    number = int("S" not in flags) if seq is None else seq
    header = TCP(sport=sport, dport=dport, flags=flags, seq=number)
    return bytes(ETHER / (ip or ip4()) / header / data)


def udp(ip: Any = None, *, sport: int = 40000, dport: int = 53, data: str = "question") -> bytes:
    """Return a UDP datagram in a frame."""
    return bytes(ETHER / (ip or ip4()) / UDP(sport=sport, dport=dport) / data)
