# SPDX-License-Identifier: Apache-2.0
"""What may stand before the ports, and lengths that are not what they seem."""

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import (
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

from support.documents.roster import backend, generations, web
from support.packets.both import Both
from support.packets.frames import ETHER, ip4, ip6, tcp
from tidegate.model.decision import Decision, Reason
from tidegate.spec import Result, Verdict

pytestmark = pytest.mark.root

ROSTER = web(*(backend(f"b{i}") for i in range(1, 9)))
SYN = TCP(sport=40000, dport=80, flags="S")
FAMILIES = pytest.mark.parametrize("ip", [ip4(), ip6()], ids=["v4", "v6"])


@pytest.fixture
def serving(both: Both) -> Both:
    both.install(generations(ROSTER)[-1])
    return both


@pytest.mark.parametrize("size", range(4, 41, 4))
def test_ipv4_options_of_any_length_change_nothing(serving: Both, size: int) -> None:
    """IHL 6 to 15 (RFC 791): the same flow, the same backend, the same outer source."""
    plain = serving.send(tcp("S"))
    optioned = serving.send(tcp("S", ip4(options=b"\x01" * (size - 1) + b"\0")))
    assert (optioned.backend, optioned.decision) == (plain.backend, Decision.SYN)
    assert Ether(optioned.frame)[IP].src == Ether(plain.frame)[IP].src


EXTENSIONS = {
    "hop-by-hop": IPv6ExtHdrHopByHop(),
    "hop-by-hop of 24 bytes": IPv6ExtHdrHopByHop(options=[PadN(optdata=b"x" * 18)]),
    "routing": IPv6ExtHdrRouting(addresses=["fd00::1", "fd00::2"]),
    "destination": IPv6ExtHdrDestOpt(),
    "an atomic fragment (RFC 6946)": IPv6ExtHdrFragment(id=5),
    "four": IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrFragment() / IPv6ExtHdrDestOpt(),
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_ipv6_extension_headers_change_nothing(serving: Both, name: str) -> None:
    """The ports behind them are found: the same flow, and the headers stay in the inner packet."""
    plain = serving.send(bytes(ETHER / ip6() / SYN))
    frame = bytes(ETHER / ip6() / EXTENSIONS[name] / SYN)
    result = serving.send(frame)
    assert (result.backend, result.decision) == (plain.backend, Decision.SYN)
    assert result.frame.endswith(frame[14:])
    assert serving.state.fragments.entries == {}


@FAMILIES
@pytest.mark.parametrize("tags", [Dot1Q(vlan=7), Dot1AD(vlan=9) / Dot1Q(vlan=7)], ids=["1", "2"])
def test_padding_behind_tags_is_trimmed(serving: Both, ip: Packet, tags: Packet) -> None:
    """Tags are kept in front of the outer header; Ethernet padding is not forwarded as payload."""
    frame = bytes(ETHER / tags / ip / SYN)
    out = serving.send(frame + b"\xee" * 9).frame
    inner = bytes(ip / SYN)
    size = len(bytes(tags))
    assert out[12 : 12 + size] == frame[12 : 12 + size]
    assert out[12 + size : 14 + size] == b"\x08\x00"
    assert len(out) == 14 + size + 20 + len(inner)
    assert out.endswith(inner)
    assert int.from_bytes(out[14 + size + 2 : 14 + size + 4]) == 20 + len(inner)


@FAMILIES
def test_a_frame_cut_at_any_byte(serving: Both, ip: Packet) -> None:
    """No IP header: not known to be for a VIP, so it passes. Less than it says: a lie, dropped."""
    frame = bytes(ETHER / ip / SYN / (b"x" * 20))
    headers, addresses = len(frame) - 20, 14 + len(bytes(ip))
    for size in range(14, len(frame)):
        result = serving.send(frame[:size])
        if size < addresses:
            assert result == Result(Verdict.PASS, frame[:size])
        elif size < headers:
            assert (result.verdict, result.reason) == (Verdict.DROP, Reason.UNSERVED)
        else:
            assert (result.verdict, result.reason) == (Verdict.DROP, Reason.BAD_LENGTH)
    assert serving.send(frame).verdict == Verdict.TX


@pytest.mark.parametrize(
    "frame",
    [
        tcp("S", ip4(len=0)),
        tcp("S", ip4(len=19)),
        tcp("S", ip4(len=65535)),
        tcp("S", ip4(len=24, options=b"\1" * 4)),
        tcp("S", ip6(plen=0)),
        tcp("S", ip6(plen=19)),
        tcp("S", ip6(plen=65535)),
    ],
)
def test_a_length_that_lies_is_dropped(serving: Both, frame: bytes) -> None:
    """Longer than the frame, or too short for the headers that are in it."""
    assert serving.send(frame).reason == Reason.BAD_LENGTH
