# SPDX-License-Identifier: Apache-2.0
"""What a backend's host does with a frame that may be tunnelled: specification of bpf/decap.c.

A frame is taken out of its tunnel, dropped with a reason, or passed untouched. It is judged from
the outside in: is it a tunnel packet, is it for one of our tunnel addresses, does it come from
where the load balancers are, are its lengths and checksums right, is there an IP packet inside.
Only after the second question is a frame ours to drop.

It does not ask whether the inner destination is a VIP: the host's stack does, by its addresses.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from tidegate.model.values import Address
from tidegate.spec.balancer import Verdict

GUE_PORT: Final = 6080
"""UDP destination port of GUE as assigned by IANA."""

VERIFIABLE_BYTES: Final = 9216
"""The longest UDP datagram whose checksum is added up (a jumbo frame), a bound for the verifier."""

_ETHERNET: Final = 14
_TAGS: Final = (b"\x81\x00", b"\x88\xa8")
_MOST_TAGS: Final = 2
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_IPIP, _UDP, _IPV6_IN = 4, 17, 41
_CE, _ECT0, _ECT1 = 3, 2, 1
_DIRECT: Final = 1


class Outcome(IntEnum):
    """What became of a tunnel packet; each is counted. bpf/tunnel.h is generated from this."""

    IPIP = 0
    """Taken out: IPv4 in IPv4 (RFC 2003)."""
    SIX_IN_FOUR = 1
    """Taken out: IPv6 in IPv4 (RFC 4213)."""
    FOUR_IN_SIX = 2
    """Taken out: IPv4 in IPv6 (RFC 2473)."""
    SIX_IN_SIX = 3
    """Taken out: IPv6 in IPv6 (RFC 2473)."""
    GUE_OVER_FOUR = 4
    """Taken out: GUE variant 1 over IPv4."""
    GUE_OVER_SIX = 5
    """Taken out: GUE variant 1 over IPv6."""
    OTHER_DESTINATION = 6
    """Passed: not for one of the tunnel addresses, so somebody else's tunnel."""
    NOT_PLAIN = 7
    """Passed: an outer IPv4 header with options, or a fragment. Ours are neither."""
    BAD_SOURCE = 8
    """Dropped: the outer source is not in an allowed prefix."""
    BAD_LENGTH = 9
    """Dropped: an outer length is longer than what holds it, or shorter than its own header."""
    BAD_CHECKSUM = 10
    """Dropped: the outer IPv4 header's checksum, or the outer UDP checksum where there is one."""
    BAD_INNER = 11
    """Dropped: no whole IP packet of the announced version inside."""
    BAD_ECN = 12
    """Dropped: congestion on the way of a packet that cannot carry the mark (RFC 6040 §4.2)."""


TAKEN_OUT: Final = frozenset(
    {
        Outcome.IPIP,
        Outcome.SIX_IN_FOUR,
        Outcome.FOUR_IN_SIX,
        Outcome.SIX_IN_SIX,
        Outcome.GUE_OVER_FOUR,
        Outcome.GUE_OVER_SIX,
    }
)
PASSED: Final = frozenset({Outcome.OTHER_DESTINATION, Outcome.NOT_PLAIN})


@dataclass(frozen=True)
class Accept:
    """What a backend takes out of its tunnel.

    Attributes:
        addresses: outer destinations; empty means any.
        sources: prefixes that outer sources must be in; empty means any.
        gue_port: UDP port; 0 means no GUE.
    """

    addresses: frozenset[Address] = frozenset()
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    gue_port: int = GUE_PORT


ANYTHING: Final = Accept()


@dataclass(frozen=True)
class _Outer:
    """An outer header.

    Attributes:
        header: bytes of the IP header.
        length: bytes of the IP packet as its header says.
    """

    source: Address
    destination: Address
    protocol: int
    header: int
    length: int
    ecn: int
    is_plain: bool


class _NotTakenOut(Exception):  # noqa: N818 - an outcome, not a fault
    """The frame is dropped or passed as this outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.name)
        self.outcome = outcome


def process(accept: Accept, counts: Counter[Outcome], frame: bytes) -> tuple[Verdict, bytes]:
    """Decide on a frame, count the outcome, and return verdict and frame."""
    start = _start_of_ip(frame)
    ip = frame[start:]
    outer = _parse_outer(frame[start - 2 : start], ip)
    if outer is None or not _is_tunnel(accept, outer, ip):
        return Verdict.PASS, frame
    try:
        outcome, inner = _take_out(accept, outer, ip)
    except _NotTakenOut as refused:
        counts[refused.outcome] += 1
        return (Verdict.PASS if refused.outcome in PASSED else Verdict.DROP), frame
    counts[outcome] += 1
    kind = _IPV4 if inner[0] >> 4 == 4 else _IPV6  # noqa: PLR2004 - an IP version
    return Verdict.PASS, frame[: start - 2] + kind + inner


def _start_of_ip(frame: bytes) -> int:
    """Return where the network header begins, behind up to two VLAN tags."""
    start = _ETHERNET
    for _ in range(_MOST_TAGS):
        if frame[start - 2 : start] in _TAGS:
            start += 4
    return start


def _parse_outer(kind: bytes, ip: bytes) -> _Outer | None:
    """Read the outer header; None if it is not a readable IP header."""
    if kind == _IPV4 and len(ip) >= 20 and ip[0] >> 4 == 4 and ip[0] & 15 >= 5:  # noqa: PLR2004
        return _Outer(
            source=IPv4Address(ip[12:16]),
            destination=IPv4Address(ip[16:20]),
            protocol=ip[9],
            header=20,
            length=int.from_bytes(ip[2:4]),
            ecn=ip[1] & 3,
            is_plain=ip[0] == 0x45 and not int.from_bytes(ip[6:8]) & 0x3FFF,  # noqa: PLR2004
        )
    if kind == _IPV6 and len(ip) >= 40 and ip[0] >> 4 == 6:  # noqa: PLR2004
        return _Outer(
            source=IPv6Address(ip[8:24]),
            destination=IPv6Address(ip[24:40]),
            protocol=ip[6],
            header=40,
            length=40 + int.from_bytes(ip[4:6]),
            ecn=ip[1] >> 4 & 3,
            is_plain=True,
        )
    return None


def _is_tunnel(accept: Accept, outer: _Outer, ip: bytes) -> bool:
    """Return whether it is IP in IP (by protocol) or GUE (by port and variant).

    Variant 1 has no header of its own: its first bits 01 are also those of the IP versions 4 and 6.
    What is not variant 1 is for a GUE socket of the host.
    """
    if outer.protocol in (_IPIP, _IPV6_IN):
        return True
    udp = ip[outer.header :]
    return (
        outer.protocol == _UDP
        and outer.is_plain
        and accept.gue_port != 0
        and udp[2:4] == accept.gue_port.to_bytes(2)
        and len(udp) > 8  # noqa: PLR2004 - RFC 768
        and udp[8] >> 6 == _DIRECT
    )


def _take_out(accept: Accept, outer: _Outer, ip: bytes) -> tuple[Outcome, bytes]:
    """Return how the packet was tunnelled, and the inner packet with the rest of the frame."""
    if accept.addresses and outer.destination not in accept.addresses:
        raise _NotTakenOut(Outcome.OTHER_DESTINATION)
    if not outer.is_plain:
        raise _NotTakenOut(Outcome.NOT_PLAIN)
    if accept.sources and not _is_allowed(accept.sources, outer.source):
        raise _NotTakenOut(Outcome.BAD_SOURCE)
    is_gue = outer.protocol == _UDP
    start = outer.header + (8 if is_gue else 0)
    if not start <= outer.length <= len(ip):
        raise _NotTakenOut(Outcome.BAD_LENGTH)
    room = outer.length - start
    if is_gue:
        room = int.from_bytes(ip[outer.header + 4 : outer.header + 6]) - 8
        if not 0 <= room <= outer.length - start:
            raise _NotTakenOut(Outcome.BAD_LENGTH)
    _verify(outer, ip, is_gue=is_gue)
    inner = ip[start:]
    version = _version_inside(outer, inner, room)
    return _outcome(outer, version, is_gue=is_gue), _with_ecn(outer, inner, version)


def _is_allowed(sources: Sequence[IPv4Network | IPv6Network], source: Address) -> bool:
    return any(source in network for network in sources)


def _verify(outer: _Outer, ip: bytes, *, is_gue: bool) -> None:
    """Verify the outer checksums, which nobody can once the outer headers are gone.

    Those of the inner packet are left to the stack. A UDP checksum of 0 means none, over IPv6 too:
    a tunnel may do without (RFC 6935), since inner addresses have checksums of their own.
    """
    if outer.header == 20 and _sum(ip[:20]) != 0xFFFF:  # noqa: PLR2004 - RFC 791
        raise _NotTakenOut(Outcome.BAD_CHECKSUM)
    if not is_gue or ip[outer.header + 6 : outer.header + 8] == b"\0\0":
        return
    size = int.from_bytes(ip[outer.header + 4 : outer.header + 6])
    datagram = ip[outer.header : outer.header + size]
    pseudo = outer.source.packed + outer.destination.packed + size.to_bytes(4) + bytes(3) + b"\x11"
    if size > VERIFIABLE_BYTES or _sum(pseudo + datagram) != 0xFFFF:  # noqa: PLR2004 - RFC 768
        raise _NotTakenOut(Outcome.BAD_CHECKSUM)


def _sum(data: bytes) -> int:
    """Return the one's complement sum of words (RFC 1071); 0xFFFF over a right checksum."""
    data += bytes(len(data) % 2)
    total = sum(int.from_bytes(data[i : i + 2]) for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _version_inside(outer: _Outer, inner: bytes, room: int) -> int:
    """Return 4 or 6, after checking that a whole packet is there."""
    version = inner[0] >> 4 if inner else 0
    expected = {_IPIP: (4,), _IPV6_IN: (6,), _UDP: (4, 6)}[outer.protocol]
    header = 20 if version == 4 else 40  # noqa: PLR2004 - an IP version
    if version not in expected or room < header:
        raise _NotTakenOut(Outcome.BAD_INNER)
    if version == 4:  # noqa: PLR2004
        header = (inner[0] & 15) * 4
        length = int.from_bytes(inner[2:4])
    else:
        length = 40 + int.from_bytes(inner[4:6])
    if header < 20 or not header <= length <= room:  # noqa: PLR2004 - RFC 791
        raise _NotTakenOut(Outcome.BAD_INNER)
    return version


def _outcome(outer: _Outer, version: int, *, is_gue: bool) -> Outcome:
    is_over_four = outer.header == 20  # noqa: PLR2004
    if is_gue:
        return Outcome.GUE_OVER_FOUR if is_over_four else Outcome.GUE_OVER_SIX
    if version == 4:  # noqa: PLR2004
        return Outcome.IPIP if is_over_four else Outcome.FOUR_IN_SIX
    return Outcome.SIX_IN_FOUR if is_over_four else Outcome.SIX_IN_SIX


def _with_ecn(outer: _Outer, inner: bytes, version: int) -> bytes:
    """Return the inner packet with the congestion of its tunnel (RFC 6040 §4.2, figure 4)."""
    here = inner[1] & 3 if version == 4 else inner[1] >> 4 & 3  # noqa: PLR2004
    there = here
    if outer.ecn == _CE:
        if not here:
            raise _NotTakenOut(Outcome.BAD_ECN)
        there = _CE
    elif outer.ecn == _ECT1 and here == _ECT0:
        there = _ECT1
    if there == here:
        return inner
    if version == 6:  # noqa: PLR2004
        return inner[:1] + bytes([inner[1] & 0xCF | there << 4]) + inner[2:]
    before, after = inner[0:2], bytes([inner[0], inner[1] & 0xFC | there])
    # RFC 1624 equation 3: the new checksum from the old one and what changed.
    changed = b"".join(_inverted(word) for word in (inner[10:12], before)) + after
    return after + inner[2:10] + _inverted(_sum(changed).to_bytes(2)) + inner[12:]


def _inverted(word: bytes) -> bytes:
    return (~int.from_bytes(word) & 0xFFFF).to_bytes(2)
