# SPDX-License-Identifier: Apache-2.0
"""How a packet's backend was chosen, why a packet was dropped, and which events a flow has.

These enums are the only list: `bpf/enums.h` is generated from them and a test keeps the two equal.
"""

from enum import IntEnum
from typing import Final


class Decision(IntEnum):
    """What decided the backend of a forwarded packet."""

    TRACKED = 0
    """The connection table."""
    SYN = 1
    """A new TCP flow: the slot's current owner."""
    FRESH = 2
    """The SYN table: a TCP flow that was born while its slot was in transition."""
    FALLBACK = 3
    """An untracked TCP flow in a slot in transition: the owner before the window."""
    CURRENT = 4
    """An untracked TCP flow in a steady slot: the current owner."""
    DATAGRAM = 5
    """A UDP flow without an entry: the current owner."""
    QUIC = 6
    """The server id in a QUIC connection id."""
    FRAGMENT = 7
    """A later fragment: where the first one went."""
    ERROR = 8
    """An ICMP error: the owner of the flow that it quotes."""


class Reason(IntEnum):
    """Why a packet that is for a VIP was dropped."""

    NONE = 0
    """Not dropped."""
    BAD_LENGTH = 1
    """The IP length is longer than the frame, shorter than the headers, or longer than an ICMP
    error is (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 c)."""
    FRAGMENT = 2
    """A later fragment whose first one was not seen, or has expired."""
    NO_TABLE = 3
    """The VIP's pool has no table."""
    NO_BACKEND = 4
    """No usable backend within the bounded search."""
    NO_GATEWAY = 5
    """The gateway's MAC address for the outer family is not known."""
    TOO_BIG = 6
    """The packet does not fit after encapsulation, and gets no answer: it does not have DF, or too
    many were answered already."""
    NO_HEADROOM = 7
    """The driver left no room for the outer header."""
    DENIED = 8
    """The client is on the VIP's deny list."""
    SYN_LIMIT = 9
    """Too many SYNs from the client's prefix."""
    ICMP_UNKNOWN = 10
    """An ICMP message to a VIP that is neither a ping nor an error for one of its flows."""
    ICMP_MTU = 11
    """An ICMP error with an MTU below what the protocol allows."""
    ECHO_LIMIT = 12
    """A ping, and too many were answered already."""
    BAD_SOURCE = 13
    """A ping from an address that is no unicast host's (RFC 1122 section 3.2.2), or IPv6 from a
    mapped IPv4 address (RFC 4291 section 2.5.5.2)."""
    UNSERVED = 14
    """For a VIP's address, and for no VIP: another port, another protocol, or unreadable."""
    MERGED = 15
    """Longer than the link carries: the host has merged packets (GRO, LRO)."""
    ICMP_LIMIT = 16
    """An ICMP error, and too many for the VIP's flows were forwarded already."""


FOR_ADDRESSES: Final = frozenset(
    {
        Reason.BAD_LENGTH,
        Reason.FRAGMENT,
        Reason.ICMP_UNKNOWN,
        Reason.ICMP_MTU,
        Reason.ECHO_LIMIT,
        Reason.BAD_SOURCE,
        Reason.UNSERVED,
    }
)
"""Reasons for dropping what is for a VIP's address and for no flow of its VIPs."""

FOR_VIPS: Final = frozenset(Reason) - FOR_ADDRESSES | {Reason.BAD_LENGTH, Reason.BAD_SOURCE}
"""Reasons for dropping a packet of a VIP's flow, and NONE."""


class EventKind(IntEnum):
    """An event of a sampled flow. One packet may have several, reported in this order."""

    NEW = 0
    """A SYN, or the first datagram of a flow that is then tracked, was forwarded."""
    MOVED = 1
    """The backend of the flow's entry is unusable; a packet, not a SYN, went to another one."""
    PROMOTED = 2
    """An entry was written to the connection table."""
    FINISHED = 3
    """The client's FIN was forwarded."""
    RESET = 4
    """The client's RST was forwarded."""
    DROPPED = 5
    """A packet was dropped, for the event's reason."""
    FLOOD = 6
    """The VIP's limit on entries refuses one: reported once a second, VIP and CPU, of any flow."""
