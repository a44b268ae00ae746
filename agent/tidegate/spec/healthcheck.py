# SPDX-License-Identifier: Apache-2.0
"""What becomes of a probe on its way out of a load balancer: specification of bpf/healthcheck.c.

A probe is an ordinary connection from this host to a VIP, whose socket carries a mark that names a
backend. It is sent into the same tunnel as the traffic of clients, so it proves all that they need:
the way to the backend, its decapsulation, its VIP address and its server. Tables and quarantine
are not consulted: a backend that failed must be probed so that its recovery is noticed.
"""

from collections import Counter
from enum import IntEnum
from ipaddress import IPv4Address
from typing import Final

from tidegate.model.decision import Reason
from tidegate.spec.balancer import find_vip
from tidegate.spec.checksum import checksum
from tidegate.spec.encapsulate import encapsulate, tunnel_to
from tidegate.spec.hash import flow_hash
from tidegate.spec.packet import ETHERNET, Kind, Packet, parse
from tidegate.spec.state import State, VipEntry

MARK: Final = 0x5447
"""Upper 16 bits of a probe's socket mark: `TG`. The lower 16 are the backend's id."""

HOPS: Final = 1
"""Hop limit of a probe's socket: one that left plain would be passed on by no router."""
_TUNNEL_HOPS: Final = 64
"""The hop limit that it has in the tunnel."""

_ID_BITS: Final = 16
_MOST_BYTES: Final = 0xFFFF
_IP6_HEADER: Final = 40


class Action(IntEnum):
    """The return values of a tc program (include/uapi/linux/pkt_cls.h)."""

    NEXT = -1
    """Not ours: left to whatever else is on the interface."""
    SEND = 0
    """Encapsulated."""
    DROP = 2


def mark_of(backend: int) -> int:
    """Return the socket mark (SO_MARK) that sends packets to the backend of this id."""
    return MARK << _ID_BITS | backend


def process(
    state: State,
    counts: Counter[Reason],
    frame: bytes,
    interface: int,
    mark: int,
    *,
    gso: bool = False,
) -> tuple[Action, bytes]:
    """Decide on an outgoing frame, count probes by reason (`NONE`: sent), return the frame.

    Args:
        state: VIPs, backends and links are read; nothing is changed.
        counts: probes by what became of them.
        frame: as it leaves the stack. On an interface that has VLANs above it, a frame with a tag
            in it is theirs.
        interface: index of the interface that it leaves through.
        mark: of its socket.
        gso: the stack left it to the driver to cut the packet to size, outer headers included.
    """
    packet = parse(frame) if mark >> _ID_BITS == MARK else None
    if packet is None or packet.l3 != ETHERNET:
        return Action.NEXT, frame
    vip = find_vip(state, packet)
    if vip is None:  # the mark may be somebody else's by chance
        return Action.NEXT, frame
    out = _send(state, vip, packet, frame, interface, mark & 0xFFFF, gso=gso)
    if isinstance(out, Reason):
        counts[out] += 1
        return Action.DROP, frame
    counts[Reason.NONE] += 1
    return Action.SEND, out


def _send(  # noqa: PLR0911 - one for each reason
    state: State,
    vip: VipEntry,
    packet: Packet,
    frame: bytes,
    interface: int,
    backend: int,
    *,
    gso: bool,
) -> bytes | Reason:
    """Return the frame as the balancer would send it to this backend, or why there is none."""
    if packet.kind is Kind.LATER_FRAGMENT or packet.is_first_fragment:
        return Reason.FRAGMENT
    # What a host sends is not padded yet.
    if packet.length < packet.l4 + packet.headers or ETHERNET + packet.length != len(frame):
        return Reason.BAD_LENGTH
    entry = state.backends.get(backend)
    if entry is None:
        return Reason.NO_BACKEND
    tunnel = tunnel_to(entry, state.links.get(interface))
    if isinstance(tunnel, Reason):
        return tunnel
    outer = 20 if isinstance(entry.address, IPv4Address) else 40
    overhead = outer + (8 if entry.gue_port else 0)
    if packet.length > (_MOST_BYTES - overhead if gso else tunnel.limit):
        return Reason.TOO_BIG
    hash_ = flow_hash(state.settings.hash_keys, packet, vip)
    out = encapsulate(state.settings, packet, _passed_on(packet, frame), tunnel, hash_)
    if not entry.gue_port:
        return out
    at = ETHERNET + outer
    check = 0 if gso else _datagram_checksum(packet, out, outer)
    return out[: at + 6] + check.to_bytes(2) + out[at + 8 :]


def _passed_on(packet: Packet, frame: bytes) -> bytes:
    """Return the frame with the hop limit that it has in the tunnel."""
    hops = bytes([_TUNNEL_HOPS])
    if packet.is_v6:
        return frame[: ETHERNET + 7] + hops + frame[ETHERNET + 8 :]
    # RFC 1624, equation 3: what changed is the upper half of the word that TTL and protocol share.
    before, check = frame[ETHERNET + 8 : ETHERNET + 9], frame[ETHERNET + 10 : ETHERNET + 12]
    if before == hops:
        return frame
    inverted = [bytes(255 - byte for byte in each) for each in (check, before + b"\0")]
    renewed = checksum(b"".join(inverted) + hops + b"\0").to_bytes(2)
    return (
        frame[: ETHERNET + 8]
        + hops
        + frame[ETHERNET + 9 : ETHERNET + 10]
        + renewed
        + frame[ETHERNET + 12 :]
    )


def _datagram_checksum(packet: Packet, out: bytes, outer: int) -> int:
    """Return GUE's checksum, from the inner headers alone; 0 where they do not determine it.

    When the packet passes here its own checksum may still be the driver's to fill in, which would
    spoil a sum over it. But once it is filled in it makes up for everything behind it: transport
    header and payload then add up to what the pseudo-header lacks to 0xFFFF, and an IPv4 header
    adds up to 0xFFFF by itself. So their sum is known without looking at them (Linux calls this
    local checksum offload, Documentation/networking/checksum-offloads.rst). A UDP datagram without
    a checksum determines nothing, nor do packets with extension headers, which no probe has.
    """
    inner = out[ETHERNET + outer + 8 :]
    udp = out[ETHERNET + outer :][:8]
    has_none = packet.kind is Kind.UDP and inner[packet.l4 + 6 : packet.l4 + 8] == b"\0\0"
    if has_none or (packet.is_v6 and packet.l4 != _IP6_HEADER):
        return 0
    addresses = inner[8:40] if packet.is_v6 else inner[12:20]
    size = packet.length - packet.l4
    pseudo = addresses + size.to_bytes(4) + packet.protocol.to_bytes(4)
    if packet.protocol == 1:  # ICMP of IPv4 has no pseudo-header
        pseudo = b""
    behind = checksum(pseudo).to_bytes(2)
    header = inner[:40] if packet.is_v6 else b""
    ours = out[ETHERNET + 8 : ETHERNET + 40] if outer == _IP6_HEADER else out[ETHERNET + 12 :][:8]
    around = ours + len(inner + udp).to_bytes(4) + (17).to_bytes(4) + udp[:6]
    return checksum(around + header + behind) or 0xFFFF
