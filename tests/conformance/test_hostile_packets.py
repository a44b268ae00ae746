# SPDX-License-Identifier: Apache-2.0
"""Packets that pretend: addresses that no wire has, errors, fragments around a rule."""

from ipaddress import ip_network

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, IPv6
from scapy.packet import Packet, Raw

from support.documents.roster import VIP4, VIP6, backend, desired, generations, vip, web
from support.packets.both import Both
from support.packets.frames import CLIENT4, CLIENT6, ETHER, ip4, ip6, tcp, udp
from support.packets.kernel import LINK, Kernel
from tidegate.model.decision import Decision, Reason
from tidegate.spec import Verdict
from tidegate.spec.icmp_error import RATE

pytestmark = pytest.mark.root

MAPPED = "::ffff:"


def fragment(number: int, *, first: bool = False, **fields: object) -> bytes:
    """Return a fragment of a datagram to the VIP's port 53."""
    if first:
        ip = ip4(id=number, flags="MF", **fields)
        return bytes(ETHER / ip / UDP(sport=4000, dport=53, chksum=1) / Raw(bytes(16)))
    return bytes(ETHER / ip4(id=number, frag=3, proto=17, **fields) / Raw(bytes(24)))


def error(size: int = 0, sender: str = "10.0.0.254", client: str = CLIENT4) -> bytes:
    """Return a router's error about a flow, with more bytes quoted than have to be."""
    quoted = IP(src=VIP4, dst=client) / TCP(sport=80, dport=40000, flags="A")
    head = ETHER / IP(src=sender, dst=VIP4) / ICMP(type=3, code=1)
    return bytes(head / Raw(bytes(quoted)[:28] + bytes(size)))


@pytest.mark.parametrize("payload", [TCP(sport=1, dport=80, flags="S"), ICMPv6EchoRequest()])
def test_no_ipv6_packet_is_for_an_ipv4_vip(both: Both, payload: Packet) -> None:
    """To ::ffff:a.b.c.d of a VIP's: such an address is on no wire, and is not the VIP's."""
    both.want(web(backend("b1")))
    packet = ETHER / IPv6(src=CLIENT6, dst=f"{MAPPED}{VIP4}") / payload
    assert both.send(bytes(packet)).verdict is Verdict.PASS


def test_no_ipv6_packet_is_from_an_ipv4_client(both: Both) -> None:
    """Else it would count as that client's: denied, routed, limited with it."""
    deny = (ip_network("10.66.0.0/16"),)
    vips = [vip("web", VIP6, deny=deny), vip("dns", VIP6, 53, "udp")]
    both.want(desired(vips, [backend("b1")]))
    for source in (f"{MAPPED}10.66.0.1", f"{MAPPED}{CLIENT4}"):
        for frame in (tcp("S", ip6(source)), tcp("A", ip6(source)), udp(ip6(source))):
            assert both.send(frame).reason is Reason.BAD_SOURCE
        ping = bytes(ETHER / ip6(source) / ICMPv6EchoRequest())
        assert both.send(ping).reason is Reason.BAD_SOURCE


def test_a_quoted_client_is_no_mapped_address(both: Both) -> None:
    """An error names no flow by it."""
    both.want(web(backend("b1")))
    quoted = IPv6(src=VIP6, dst=f"{MAPPED}{CLIENT4}") / TCP(sport=80, dport=40000)
    packet = ETHER / IPv6(src="fd00::fe", dst=VIP6) / ICMPv6DestUnreach() / quoted
    assert both.send(bytes(packet)).reason is Reason.ICMP_UNKNOWN


def test_who_allows_fragments_is_told_nothing(both: Both) -> None:
    """RFC 792: only a datagram that must not be fragmented is answered; the other is dropped."""
    both.want(web(backend("b1")))
    both.link(LINK._replace(mtu=1400))
    data = "x" * 1350
    assert both.send(tcp("A", ip4(flags="DF"), data=data)).verdict is Verdict.TX
    assert both.send(tcp("A", ip4(flags=0), data=data)).reason is Reason.TOO_BIG
    assert both.send(tcp("A", ip4(flags="MF"), data=data)).reason is Reason.TOO_BIG


@pytest.mark.parametrize(("size", "is_forwarded"), [(520, True), (521, False), (1400, False)])
def test_an_error_is_no_longer_than_a_routers(both: Both, size: int, *, is_forwarded: bool) -> None:
    """576 bytes at the most (RFC 1812 section 4.3.2.3)."""
    both.want(web(backend("b1")))
    result = both.send(error(size))
    assert result.decision is (Decision.ERROR if is_forwarded else None)
    assert result.reason is (Reason.NONE if is_forwarded else Reason.BAD_LENGTH)


def test_errors_have_a_limit_for_each_vip() -> None:
    """What is above it is dropped and counted; the errors of other VIPs are forwarded."""
    frame = error()
    other = frame.replace(bytes([10, 99, 0, 1]), bytes([10, 99, 0, 2]))
    vips = [vip("web", VIP4), vip("shop", "10.99.0.2")]
    with Kernel() as kernel:
        kernel.install(generations(desired(vips, [backend("b1")]))[-1])
        verdicts = [kernel.run(frame)[0] for _ in range(3 * RATE)]
        counters = kernel.vip_counters()
        drops = [each.drops[Reason.ICMP_LIMIT] for each in counters.values()]
        assert verdicts.count(Verdict.DROP) == max(drops) > 0
        assert verdicts.count(Verdict.TX) >= RATE
        assert kernel.run(fixed(other))[0] is Verdict.TX


def fixed(frame: bytes) -> bytes:
    """Return a frame with its IPv4 header's checksum made anew."""
    packet = IP(frame[14:])
    packet.chksum = None
    return frame[:14] + bytes(packet)


def test_a_denied_sender_reaches_nobody_by_errors(both: Both) -> None:
    """Whoever's flow it quotes; and nobody's error reaches a backend about a denied client's."""
    deny = (ip_network("10.66.0.0/16"),)
    both.want(desired([vip("web", VIP4, deny=deny)], [backend("b1")]))
    assert both.send(error(sender="10.66.0.9")).reason is Reason.DENIED
    assert both.send(error(client="10.66.0.9")).reason is Reason.DENIED
    assert both.send(error()).decision is Decision.ERROR


def test_a_denied_client_reaches_nobody_by_fragments(both: Both) -> None:
    """Also where its first fragment came before it was denied."""
    dns = vip("dns", VIP4, 53, "udp")
    both.want(desired([dns], [backend("b1")]))
    source = "10.66.0.9"
    assert both.send(fragment(7, first=True, source=source)).verdict is Verdict.TX
    assert both.send(fragment(7, source=source)).decision is Decision.FRAGMENT
    deny = (ip_network("10.66.0.0/16"),)
    both.want(desired([vip("dns", VIP4, 53, "udp", deny=deny)], [backend("b1")]))
    assert both.send(fragment(7, source=source)).reason is Reason.DENIED
    assert both.send(fragment(8, first=True, source=source)).reason is Reason.DENIED
    assert both.send(fragment(8, source=source)).reason is Reason.FRAGMENT


@pytest.mark.parametrize("unserved", ["drop", "reject", "pass"])
def test_fragments_of_a_datagram_share_a_verdict(both: Both, unserved: str) -> None:
    """Of a port that no VIP takes all are dropped, or all pass; else all go on."""
    both.want(desired([vip("dns", VIP4, 99, "udp", unserved=unserved)], [backend("b1")]))
    first, later = both.send(fragment(5, first=True)), both.send(fragment(5))
    assert (later.verdict is Verdict.PASS) == (unserved == "pass")
    assert (first.verdict is Verdict.PASS) == (unserved == "pass")
    both.want(desired([vip("dns", VIP4, 53, "udp", unserved=unserved)], [backend("b1")]))
    assert both.send(fragment(6, first=True)).verdict is Verdict.TX
    assert both.send(fragment(6)).decision is Decision.FRAGMENT
