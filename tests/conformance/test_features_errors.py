# SPDX-License-Identifier: Apache-2.0
"""ICMP errors in detail: every type, as little quoted as a router may, and what is not ours."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.packet import Packet, Raw

from support.documents.roster import VIP4, VIP6, backend, web
from support.packets.both import Both
from support.packets.frames import CLIENT4, CLIENT6, ETHER, ip4, ip6, tcp
from tidegate.model.decision import Decision, Reason
from tidegate.spec import Result, Verdict

pytestmark = pytest.mark.root

SEVEN = tuple(backend(f"b{i}") for i in range(1, 8))
ROUTER4, ROUTER6 = IP(src="10.0.0.254", dst=VIP4), IPv6(src="fd00::fe", dst=VIP6)


def quoted(ip: Packet, port: int, extra: Packet | None = None, size: int = 8) -> Raw:
    """Return a packet of the VIP to a client's port, up to `size` bytes of its TCP header."""
    layers = ip / extra if extra else ip
    whole = bytes(layers / TCP(sport=80, dport=port, flags="A") / b"payload")
    return Raw(whole[: len(whole) - 20 - 7 + size])


def from_vip4(**fields: object) -> IP:
    return IP(src=VIP4, dst=CLIENT4, **fields)


def from_vip6() -> IPv6:
    return IPv6(src=VIP6, dst=CLIENT6)


TYPES = {
    **{f"v4 type 3 code {code}": ICMP(type=3, code=code, nexthopmtu=1400) for code in range(16)},
    "v4 type 3 code 4, the least MTU": ICMP(type=3, code=4, nexthopmtu=68),
    **{f"v4 type 11 code {code}": ICMP(type=11, code=code) for code in (0, 1)},
    **{f"v4 type 12 code {code}": ICMP(type=12, code=code) for code in (0, 1, 2)},
    **{f"v6 type 1 code {code}": ICMPv6DestUnreach(code=code) for code in range(8)},
    "v6 type 2": ICMPv6PacketTooBig(mtu=1400),
    "v6 type 2, the least MTU": ICMPv6PacketTooBig(mtu=1280),
    **{f"v6 type 3 code {code}": ICMPv6TimeExceeded(code=code) for code in (0, 1)},
    **{f"v6 type 4 code {code}": ICMPv6ParamProblem(code=code) for code in (0, 1, 2)},
}


@pytest.mark.parametrize("name", TYPES)
def test_every_type_and_code_goes_to_the_owner(both: Both, name: str) -> None:
    """By eight quoted bytes (RFC 792), for a flow whose slot has moved on and that is tracked."""
    both.want(web(*SEVEN[:3]))
    is_v6 = name.startswith("v6")
    owner = both.send(tcp("A", ip6() if is_v6 else ip4())).backend
    both.want(web(*SEVEN))
    ip = from_vip6() if is_v6 else from_vip4()
    frame = bytes(ETHER / (ROUTER6 if is_v6 else ROUTER4) / TYPES[name] / quoted(ip, 40000))
    result = both.send(frame)
    assert (result.verdict, result.decision) == (Verdict.TX, Decision.ERROR)
    assert result.backend == owner
    assert result.frame.endswith(frame[14:])


HEADERS = {
    "v6 destination options": IPv6ExtHdrDestOpt(),
    "v6 hop-by-hop": IPv6ExtHdrHopByHop(),
    "v6 two": IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
    "v6 a first fragment": IPv6ExtHdrFragment(id=9, m=1),
}


@pytest.mark.parametrize("name", HEADERS)
def test_quoted_extension_headers_do_not_hide_the_ports(both: Both, name: str) -> None:
    """The flow is found behind them."""
    both.want(web(*SEVEN))
    for port in range(40000, 40010):
        owner = both.send(tcp("S", ip6(), sport=port)).backend
        error = ROUTER6 / ICMPv6TimeExceeded() / quoted(from_vip6(), port, HEADERS[name])
        assert both.send(bytes(ETHER / error)).backend == owner


@pytest.mark.parametrize("size", range(4, 41, 4))
def test_quoted_options_do_not_hide_the_ports(both: Both, size: int) -> None:
    """IPv4 options of any length in the quoted header."""
    both.want(web(*SEVEN))
    for port in range(40000, 40004):
        owner = both.send(tcp("S", sport=port)).backend
        ip = from_vip4(options=b"\1" * (size - 1) + b"\0")
        error = ROUTER4 / ICMP(type=11) / quoted(ip, port)
        assert both.send(bytes(ETHER / error)).backend == owner


def test_an_error_for_an_untracked_flow_goes_by_the_table(both: Both) -> None:
    """It is no packet of its flow: nothing is tracked and no SYN is remembered for it."""
    both.want(web(*SEVEN))
    for port in range(40000, 40010):
        owner = both.send(tcp("S", sport=port)).backend
        error = ROUTER4 / ICMP(type=3, code=1) / quoted(from_vip4(), port)
        assert both.send(bytes(ETHER / error)).backend == owner
    assert both.state.flows.entries == both.state.syns.entries == {}


UNKNOWN = {
    "fewer bytes than two ports": ROUTER4 / ICMP(type=3, code=1) / quoted(from_vip4(), 1, size=3),
    "half an IP header": ROUTER4 / ICMP(type=11) / Raw(bytes(from_vip4())[:12]),
    "a quoted later fragment": ROUTER4 / ICMP(type=11) / quoted(from_vip4(frag=100), 40000),
    "a quoted ping": ROUTER4 / ICMP(type=11) / from_vip4() / ICMP(),
    "the client's own packet": ROUTER4 / ICMP(type=11) / ip4() / TCP(sport=40000, dport=80),
    "IPv6 in ICMP": ROUTER4 / ICMP(type=3, code=1) / from_vip6() / TCP(sport=80, dport=40000),
    "IPv4 in ICMPv6": ROUTER6
    / ICMPv6DestUnreach()
    / Raw(bytes(from_vip4() / TCP(sport=80, dport=40000))),
    "another VIP's flow": ROUTER6
    / ICMPv6DestUnreach()
    / IPv6(src="fd99::2", dst=CLIENT6)
    / TCP(sport=80, dport=40000),
    "a UDP flow to a TCP port": ROUTER4
    / ICMP(type=3, code=3)
    / from_vip4()
    / UDP(sport=80, dport=40000),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_error_that_quotes_no_flow_of_ours_is_dropped(both: Both, name: str) -> None:
    """Counted as such; no backend could make use of it."""
    both.want(web(*SEVEN))
    assert both.send(bytes(ETHER / UNKNOWN[name])).reason == Reason.ICMP_UNKNOWN


@pytest.mark.parametrize("mtu", [1, 67])
def test_an_absurd_mtu_is_dropped(both: Both, mtu: int) -> None:
    """Below 68 (RFC 791): whoever sends it wants small packets, not delivered ones."""
    both.want(web(*SEVEN))
    error = ROUTER4 / ICMP(type=3, code=4, nexthopmtu=mtu) / quoted(from_vip4(), 40000)
    assert both.send(bytes(ETHER / error)).reason == Reason.ICMP_MTU


@pytest.mark.parametrize("kind", [4, 5, 9, 10, 13, 14, 17, 30])
def test_other_icmp_passes(both: Both, kind: int) -> None:
    """Source quench, redirects and requests are for the host, if for anyone."""
    both.want(web(*SEVEN))
    frame = bytes(ETHER / ROUTER4 / ICMP(type=kind) / quoted(from_vip4(), 40000))
    assert both.send(frame) == Result(Verdict.PASS, frame)
