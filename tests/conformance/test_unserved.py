# SPDX-License-Identifier: Apache-2.0
"""What is for a VIP's address and for no VIP, and frames that are for somebody else."""

import struct

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from support.documents.roster import VIP4, VIP6, backend, desired, vip
from support.packets.both import Both
from support.packets.frames import CLIENT4, ETHER, ip4, ip6, tcp, udp
from support.packets.kernel import LINK
from tidegate.model.decision import Reason
from tidegate.model.values import Desired
from tidegate.spec import Verdict

pytestmark = pytest.mark.root


def wanted(**options: object) -> Desired:
    """Return a VIP of each family at port 80, and one that is a network."""
    vips = [vip("four", VIP4, **options), vip("six", VIP6, **options)]
    vips.append(vip("net", "10.98.0.0/16", **options))
    return desired(vips, [backend("b1"), backend("b2")])


def frame(*layers: Packet) -> bytes:
    """Return a frame of these layers."""
    packet = ETHER
    for layer in layers:
        packet /= layer
    return bytes(packet)


NOBODYS = {
    "UDP to a TCP port": udp(dport=80),
    "TCP to another port": tcp("S", dport=81),
    "TCP to another port over IPv6": tcp("S", ip6(), dport=81),
    "an address of a network": tcp("S", ip4(to="10.98.3.4"), dport=81),
    "GRE": frame(ip4(proto=47), Raw(bytes(8))),
    "ESP": frame(ip4(proto=50), Raw(bytes(24))),
    "AH": frame(ip4(proto=51), Raw(bytes(24))),
    "SCTP": frame(ip4(proto=132), Raw(bytes(16))),
    "IGMP": frame(ip4(proto=2), Raw(bytes(8))),
    "IP in IP": frame(ip4(), IP(src="10.0.0.1", dst="10.0.0.2"), TCP()),
    "ICMPv6 in IPv4": frame(ip4(proto=58), Raw(bytes(8))),
    "protocol 0": frame(ip4(proto=0), Raw(bytes(8))),
    "no next header": frame(ip6(nh=59)),
    "an unknown next header": frame(ip6(nh=253), Raw(bytes(8))),
    "AH over IPv6": frame(ip6(nh=51), Raw(bytes(24))),
    "ESP over IPv6": frame(ip6(nh=50), Raw(bytes(24))),
    "five extension headers": frame(ip6(), *[IPv6ExtHdrDestOpt()] * 5, TCP(dport=80)),
    "a cut TCP header": tcp("S")[: 14 + 20 + 19],
    "OSPF": frame(ip4(proto=89), Raw(bytes(40))),
    "a cut extension header": frame(ip6(nh=60), Raw(b"\x06\x00")),
    "a cut ICMP header": frame(ip4(proto=1), Raw(b"\x08\x00\x00")),
    "no transport header at all": frame(ip4(proto=6)),
    "a jumbogram": frame(ip6(plen=0, nh=0), IPv6ExtHdrHopByHop(), UDP(dport=99)),
    "on a VLAN": bytes(ETHER / Dot1Q(vlan=7) / ip4() / UDP(dport=99)),
    "with options": tcp("S", ip4(options=[IPOption_NOP()] * 8), dport=81),
}


@pytest.mark.parametrize("name", NOBODYS)
def test_what_no_vip_takes_is_dropped_and_counted(both: Both, name: str) -> None:
    """The route to the address leads to us: where the host forwards, it would circle."""
    both.want(wanted())
    result = both.send(NOBODYS[name])
    assert (result.verdict, result.reason) == (Verdict.DROP, Reason.UNSERVED)


@pytest.mark.parametrize("name", NOBODYS)
def test_it_passes_where_the_document_says_so(both: Both, name: str) -> None:
    """Untouched and uncounted, as what is for another address."""
    both.want(wanted(unserved="pass"))
    result = both.send(NOBODYS[name])
    assert (result.verdict, result.frame) == (Verdict.PASS, NOBODYS[name])


ANSWERED = {
    "UDP to a TCP port",
    "an address of a network",
    "GRE",
    "ESP",
    "AH",
    "SCTP",
    "IGMP",
    "IP in IP",
    "ICMPv6 in IPv4",
    "protocol 0",
    "OSPF",
    "an unknown next header",
    "AH over IPv6",
    "ESP over IPv6",
    "five extension headers",
    "TCP to another port",
    "TCP to another port over IPv6",
    "on a VLAN",
    "with options",
}


@pytest.mark.parametrize("name", NOBODYS)
def test_it_is_answered_where_the_document_says_so(both: Both, name: str) -> None:
    """By a reset or an error, if eight bytes of it are there; else it is dropped."""
    both.want(wanted(unserved="reject"))
    sent = NOBODYS[name]
    result = both.send(sent)
    assert (result.verdict is Verdict.TX) == (name in ANSWERED)
    if result.verdict is not Verdict.TX:
        assert result.reason == Reason.UNSERVED
        return
    before, after = Ether(sent), Ether(result.frame)
    assert (after.dst, after.src) == (before.src, before.dst)
    ip = IP if IP in before else IPv6
    assert (after[ip].src, after[ip].dst) == (before[ip].dst, before[ip].src)
    assert bytes(Ether(_without_checksums(result.frame))) == result.frame


def _without_checksums(found: bytes) -> bytes:
    """Return a frame made anew by scapy, which computes lengths and checksums."""
    packet = Ether(found)
    for layer, field in ((IP, "chksum"), (ICMP, "chksum"), (TCP, "chksum")):
        if layer in packet and layer is not TCP:
            delattr(packet[layer], field)
    if ICMPv6DestUnreach in packet:
        del packet[ICMPv6DestUnreach].cksum
    elif TCP in packet and ICMP not in packet:
        del packet[TCP].chksum
    return bytes(packet)


@pytest.mark.parametrize(
    ("flags", "sequence", "acknowledged", "out"),
    [
        ("S", 0, 1001, "RA"),
        ("SF", 0, 1002, "RA"),
        ("A", 77, 0, "R"),
        ("PA", 77, 0, "R"),
        ("", 0, 1003, "RA"),
    ],
)
@pytest.mark.parametrize("ip", [ip4(), ip6()], ids=["v4", "v6"])
def test_a_reset_has_the_numbers_of_its_segment(
    both: Both, ip: Packet, flags: str, sequence: int, acknowledged: int, out: str
) -> None:
    """RFC 9293 section 3.10.7.1: what a closed port answers."""
    both.want(wanted(unserved="reject"))
    data = b"" if "S" in flags else b"abc"
    header = TCP(sport=4000, dport=81, flags=flags, seq=1000, ack=77)
    found = Ether(both.send(frame(ip, header, Raw(data)) if data else frame(ip, header)).frame)
    reset = found[TCP]
    assert (reset.sport, reset.dport, reset.flags) == (81, 4000, out)
    assert (reset.seq, reset.ack) == (sequence, acknowledged)


def test_nobody_answers_a_reset(both: Both) -> None:
    """Else two such hosts would talk for ever."""
    both.want(wanted(unserved="reject"))
    assert both.send(tcp("R", dport=81)).reason == Reason.UNSERVED
    assert both.send(tcp("RA", dport=81)).reason == Reason.UNSERVED


def test_the_strictest_vip_of_an_address_counts(both: Both) -> None:
    """Whatever ids they have; `reject` is stricter than `pass`, and `drop` than both."""
    for one, other, verdict in (
        ("pass", "reject", Verdict.TX),
        ("drop", "pass", Verdict.DROP),
        ("reject", "drop", Verdict.DROP),
        ("pass", "pass", Verdict.PASS),
    ):
        vips = [vip("a", VIP4, unserved=one), vip("b", VIP4, 443, unserved=other)]
        both.want(desired(vips, [backend("b1")]))
        assert both.send(tcp("S", dport=81)).verdict is verdict


def test_icmp_is_the_addresss_own_business(both: Both) -> None:
    """Neighbour discovery and what is no error pass, as before."""
    both.want(wanted())
    for icmp in (ICMP(type=13), ICMP(type=17)):
        assert both.send(frame(ip4(), icmp)).verdict is Verdict.PASS
    assert both.send(frame(ip6(), ICMPv6ND_NS(tgt=VIP6))).verdict is Verdict.PASS


NO_HOSTS4 = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1"]  # noqa: S104
NO_HOSTS4.append("255.255.255.255")
NO_HOSTS6 = ["::", "::1", "ff02::1", "ff0e::9", "::ffff:10.0.0.1"]


@pytest.mark.parametrize("source", [*NO_HOSTS4, *NO_HOSTS6])
def test_nobody_is_told_anything_who_is_no_host(both: Both, source: str) -> None:
    """RFC 1122 section 3.2.2, RFC 4443 section 2.4 e: pings, rejections, packets too big."""
    both.want(wanted(unserved="reject"))
    is_v4 = ":" not in source
    ip = ip4(source) if is_v4 else ip6(source)
    ping = ICMP() if is_v4 else ICMPv6EchoRequest()
    assert both.send(frame(ip, ping, Raw(b"12345678"))).reason == Reason.BAD_SOURCE
    assert both.send(tcp("S", ip, dport=81)).reason == Reason.UNSERVED
    assert both.send(udp(ip, dport=99)).reason == Reason.UNSERVED
    both.link(LINK._replace(mtu=1400))
    data = "x" * (1395 - len(bytes(ip / TCP())))
    reason = Reason.BAD_SOURCE if source.startswith("::ffff:") else Reason.TOO_BIG
    assert both.send(tcp("A", ip, data=data)).reason == reason


@pytest.mark.parametrize("source", ["1.0.0.1", "126.255.255.255", "128.0.0.1", "223.1.1.1"])
def test_hosts_beside_these_are_answered(both: Both, source: str) -> None:
    """The borders of what is no host's."""
    both.want(wanted(unserved="reject"))
    assert both.send(frame(ip4(source), ICMP())).verdict is Verdict.TX
    assert both.send(udp(ip4(source), dport=99)).verdict is Verdict.TX


GROUPS = ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01", "03:00:00:00:00:01"]
OTHERS = ["02:00:00:00:00:02", "00:00:00:00:00:00", "02:00:00:00:01:01", "fe:ff:ff:ff:ff:ff"]


@pytest.mark.parametrize("to", [*GROUPS, *OTHERS])
@pytest.mark.parametrize("tagged", [False, True])
def test_frames_for_other_mac_addresses_are_not_ours(both: Both, to: str, *, tagged: bool) -> None:
    """A switch that floods, or an interface that listens to all: the frame is somebody else's."""
    both.want(wanted(unserved="reject"))
    ether = Ether(src=ETHER.src, dst=to)
    ether = ether / Dot1Q(vlan=3) if tagged else ether
    for packet in (ip4() / TCP(dport=80, flags="S"), ip4() / UDP(dport=99), ip4() / ICMP()):
        sent = bytes(ether / packet)
        result = both.send(sent)
        assert (result.verdict, result.frame) == (Verdict.PASS, sent)


def test_other_addresses_may_be_ours_too(both: Both) -> None:
    """Such as a virtual router's (RFC 5798 section 7.3); or any, for a capture."""
    both.want(wanted())
    vrrp = b"\x00\x00\x5e\x00\x01\x07"
    sent = vrrp + tcp("S")[6:]
    assert both.send(sent).verdict is Verdict.PASS
    for others in ((vrrp,), (b"\2\2\2\2\2\2", vrrp), None):
        both.link(LINK._replace(others=others))
        assert both.send(sent).verdict is Verdict.TX
        assert both.send(tcp("S")).verdict is Verdict.TX
        assert both.send(b"\xff" * 6 + tcp("S")[6:]).verdict is Verdict.PASS


@pytest.mark.parametrize(("mtu", "is_forwarded"), [(0, True), (1, False), (67, False), (68, True)])
def test_an_mtu_of_0_says_nothing(both: Both, mtu: int, *, is_forwarded: bool) -> None:
    """Routers older than RFC 1191 do not tell it (section 5); hosts know what to do then."""
    both.want(wanted())
    owner = both.send(tcp("A")).backend
    quoted = IP(src=VIP4, dst=CLIENT4) / TCP(sport=80, dport=40000)
    result = both.send(frame(ip4("10.0.0.254"), ICMP(type=3, code=4, nexthopmtu=mtu), quoted))
    if is_forwarded:
        assert result.backend == owner
    else:
        assert result.reason == Reason.ICMP_MTU


def test_the_reply_to_a_message_of_zeros_has_a_checksum(both: Both) -> None:
    """0xffff: a host takes 0 for wrong, as all else is zero too."""
    both.want(wanted())
    ping = struct.pack(">BBHHH", 8, 0, 0xF7FF, 0, 0)
    for data in (b"", bytes(56)):
        out = both.send(frame(ip4(proto=1), Raw(ping + data))).frame
        assert out[34:38] == b"\0\0\xff\xff"


@pytest.mark.parametrize("options", [0, 4, 36, 40])
def test_an_error_quotes_header_and_eight_bytes(both: Both, options: int) -> None:
    """Of an IPv4 packet with options too (RFC 792): the ports are in them."""
    both.want(wanted())
    both.link(LINK._replace(mtu=1000))
    ip = ip4(options=[IPOption_NOP()] * options)
    result = both.send(tcp("A", ip, data="x" * (1000 - 40 - options)))
    quoted = Ether(result.frame)[ICMP].payload
    assert len(bytes(quoted)) >= 20 + options + 8
    inside = bytes(quoted)[20 + options :]
    assert inside[:4] == struct.pack(">HH", 40000, 80)


@pytest.mark.parametrize("ip", [ip4(), ip6()], ids=["v4", "v6"])
@pytest.mark.parametrize(("above", "mtu"), [(0, None), (1, None), (900, None), (0, 1400)])
def test_what_the_host_has_merged_is_no_packet(
    both: Both, ip: Packet, above: int, mtu: int | None
) -> None:
    """A frame longer than the link's MTU: its sender would make packets smaller for nothing."""
    both.want(desired([vip("four", VIP4), vip("six", VIP6)], [backend("b1")], mtu=mtu))
    sent = tcp("A", ip, data="x" * (LINK.mtu - len(bytes(ip / TCP())) + above))
    result = both.send(sent)
    if above:
        assert (result.verdict, result.reason) == (Verdict.DROP, Reason.MERGED)
    else:
        assert (result.verdict, result.backend) == (Verdict.TX, None)
