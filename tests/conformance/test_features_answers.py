# SPDX-License-Identifier: Apache-2.0
"""What the balancer sends itself: when, to whom, and exactly what; MSS on SYN in IPv6."""

import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from support.documents.roster import VIP4, VIP6, backend, desired, generations, vip, web
from support.packets.both import Both
from support.packets.frames import CLIENT4, CLIENT6, ETHER, ip4, ip6, tcp
from support.packets.kernel import LINK, Kernel
from tidegate.dataplane.kernel import maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.model.decision import Reason
from tidegate.spec import Result, Verdict
from tidegate.spec.answer import RATE, Answer
from tidegate.spec.limit import FRACTION

pytestmark = pytest.mark.root

FAMILIES = pytest.mark.parametrize("ip", [ip4(), ip6()], ids=["v4", "v6"])


@pytest.fixture
def alone() -> Iterator[Kernel]:
    """Give the kernel without the spec, for more frames than the spec has time for."""
    with Kernel() as kernel:
        kernel.install(generations(web(backend("b1")))[-1])
        yield kernel


def ones_complement(data: bytes) -> int:
    """Compute RFC 1071's sum, written again so that nothing is checked against itself."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def test_an_ipv6_ping_is_answered_exactly_for_every_checksum(alone: Kernel) -> None:
    """All 65,536 payload words, and with them every checksum that a request can carry."""
    request = bytes(ETHER / ip6() / ICMPv6EchoRequest(id=1, seq=1, data=b"\0\0"))
    ends = request[22:54] + struct.pack(">II", 10, 58)
    seen = set()
    for word in range(65536):
        if word % (RATE // 2) == 0:
            alone.refill()
        body = struct.pack(">HHH", 1, 1, word)
        checksums = [
            ones_complement(ends + struct.pack(">BBH", kind, 0, 0) + body) for kind in (128, 129)
        ]
        seen.add(checksums[0])
        head = struct.pack(">BBH", 128, 0, checksums[0])
        verdict, out = alone.run(request[:54] + head + body)
        assert verdict is Verdict.TX
        assert out[54:] == struct.pack(">BBH", 129, 0, checksums[1]) + body
    assert len(seen) >= 65535  # 0 and 0xffff are one number in this arithmetic


def test_a_ping_on_a_vlan_is_answered_on_it(both: Both) -> None:
    """With its tag, and to the MAC address that it came from."""
    both.want(web(backend("b1")))
    frame = bytes(ETHER / Dot1Q(vlan=7) / ip4() / ICMP() / b"data")
    out = Ether(both.send(frame).frame)
    assert (out[Dot1Q].vlan, out.dst, out[IP].dst) == (7, ETHER.src, CLIENT4)
    assert out[ICMP].type == 0


def spend(kernel: Kernel, kind: Answer) -> None:
    """Use up the answers of a kind that are left; more come with the next jiffy."""
    bucket = struct.pack("<QQ", kernel.now() << FRACTION, 0) * maps.cpu_count()
    key = kind.to_bytes(4, "little")
    bpf.map_update(kernel.maps["answer_limits"], key, bucket)


def test_pings_have_a_limit(alone: Kernel) -> None:
    """10,000 at once are answered; the rest is dropped and counted, and it recovers."""
    ping = bytes(ETHER / ip4() / ICMP())
    assert {alone.run(ping)[0] for _ in range(RATE)} == {Verdict.TX}
    verdicts = []
    for _ in range(20):
        spend(alone, Answer.PING)
        verdicts.append(alone.run(ping)[0])
    dropped = verdicts.count(Verdict.DROP)
    assert dropped > 0
    (counters,) = alone.address_counters().values()
    assert counters.drops == {Reason.ECHO_LIMIT: dropped}
    assert counters.answered == RATE + 20 - dropped
    alone.refill()
    assert alone.run(ping)[0] is Verdict.TX


def test_pings_take_nothing_from_packets_too_big(alone: Kernel) -> None:
    """However many pings come, who sends too much is told so: each kind has its own limit."""
    ping, large = bytes(ETHER / ip4() / ICMP()), tcp("A", data="x" * 1460)
    for _ in range(3):
        for _ in range(RATE):
            alone.run(ping)
        verdict, out = alone.run(large)
        assert verdict is Verdict.TX
        assert Ether(out)[ICMP].code == 4


ROADS = {
    # name: (address of the backend, MTU of the link, options of the pool, what fits)
    "IPIP": ("10.1.0.1", 1500, {}, 1480),
    "IP in IPv6": ("fd01::1", 1500, {}, 1460),
    "GUE in IPv4": ("10.1.0.1", 1500, {"encapsulation": "gue"}, 1472),
    "GUE in IPv6": ("fd01::1", 1500, {"encapsulation": "gue"}, 1452),
    "a pool's MTU below the link's": ("10.1.0.1", 1500, {"mtu": 1400}, 1380),
    "a pool's MTU above the link's": ("10.1.0.1", 1500, {"mtu": 9000}, 1480),
    "a larger link": ("10.1.0.1", 3000, {}, 2980),
}


@pytest.mark.parametrize("name", ROADS)
@FAMILIES
def test_what_fits_is_sent_and_one_byte_more_is_not(both: Both, ip: Packet, name: str) -> None:
    """The MTU in the error to a client is exactly what fits (RFC 1191, RFC 8201)."""
    address, mtu, options, fits = ROADS[name]
    both.link(LINK._replace(mtu=mtu))
    both.want(desired([vip("a", VIP4), vip("b", VIP6)], [backend("b1", address)], **options))
    headers = len(bytes(ip)) + 20
    sent = both.send(tcp("A", ip, data="x" * (fits - headers)))
    assert sent.backend == both.id_of("b1")
    assert len(sent.frame) <= 14 + mtu
    result = both.send(tcp("A", ip, data="x" * (fits - headers + 1)))
    assert (result.verdict, result.backend) == (Verdict.TX, None)
    answer = Ether(result.frame)
    found = answer[ICMP].nexthopmtu if isinstance(ip, IP) else answer[ICMPv6PacketTooBig].mtu
    assert found == fits


def test_a_packet_too_big_is_dropped_beyond_the_limit(alone: Kernel) -> None:
    """A limit for each CPU, so that nobody makes a reflector of us."""
    big = tcp("A", data="x" * 1460)
    verdicts = []
    for _ in range(20):
        spend(alone, Answer.TOO_BIG)
        verdicts.append(alone.run(big)[0])
    (counters,) = alone.vip_counters().values()
    assert counters.drops == {Reason.TOO_BIG: verdicts.count(Verdict.DROP)}
    assert counters.drops[Reason.TOO_BIG] > 0


@pytest.mark.parametrize(
    "error",
    [
        IP(src="10.0.0.254", dst=VIP4) / ICMP(type=3, code=1) / ip4(VIP4, CLIENT4) / TCP(sport=80),
        IPv6(src="fd00::fe", dst=VIP6)
        / ICMPv6DestUnreach()
        / ip6(VIP6, CLIENT6)
        / TCP(sport=80, dport=40000),
    ],
    ids=["v4", "v6"],
)
def test_no_error_answers_an_error(both: Both, error: Packet) -> None:
    """RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e): one that is too big is dropped."""
    both.want(web(backend("b1")))
    packet = error / Raw(b"x" * 480)
    both.link(LINK._replace(mtu=len(bytes(packet)) + 10))
    assert both.send(bytes(ETHER / packet)).reason == Reason.TOO_BIG


@pytest.mark.parametrize("flags", ["SA", "A", "PA"])
def test_only_the_first_syn_is_clamped(both: Both, flags: str) -> None:
    """Any other segment leaves as it came."""
    both.want(desired([vip("web", VIP4, mss_clamp=1200)], [backend("b1")]))
    segment = TCP(sport=40000, dport=80, flags=flags, options=[("MSS", 1460)])
    frame = bytes(ETHER / ip4() / segment)
    assert both.send(frame).frame.endswith(frame[14:])


@pytest.mark.parametrize("nops", [0, 1, 2, 3])
@pytest.mark.parametrize("offered", [1201, 1460, 8960, 65535])
def test_the_mss_is_clamped_in_ipv6_at_any_alignment(both: Both, nops: int, offered: int) -> None:
    """Only the option and the checksum change, and the checksum is that of the new segment."""
    both.want(desired([vip("web", VIP6, mss_clamp=1200)], [backend("b1")]))
    options = [("NOP", None)] * nops
    segments = [
        bytes(ip6() / TCP(sport=40000, dport=80, flags="S", options=[*options, ("MSS", mss)]))
        for mss in (offered, 1200)
    ]
    assert both.send(bytes(ETHER)[:12] + b"\x86\xdd" + segments[0]).frame.endswith(segments[1])


def test_malformed_options_are_left_alone(both: Both) -> None:
    """An option of length 0 or 1, one that runs over the header, an MSS of the wrong length."""
    both.want(desired([vip("web", VIP4, mss_clamp=1200)], [backend("b1")]))
    for raw in (b"\x08\x00\x02\x04", b"\x08\x01\x02\x04", b"\x08\x28\0\0", b"\x02\x03\x23\x00"):
        plain = bytearray(tcp("S") + raw + b"\x02\x04\x23\x00")
        plain[16:18] = (48).to_bytes(2)
        plain[46] = 7 << 4
        result = both.send(bytes(plain))
        assert result.frame.endswith(bytes(plain[34:]))


def test_a_ping_that_is_a_first_fragment_is_not_answered(both: Both) -> None:
    """Its checksum is over bytes that are not there."""
    both.want(web(backend("b1")))
    frame = bytes(ETHER / ip4(flags="MF") / ICMP() / (b"x" * 16))
    assert both.send(frame).reason == Reason.FRAGMENT


def test_an_ipv6_ping_to_a_vip_without_echo_passes(both: Both) -> None:
    """The host may answer itself."""
    both.want(desired([vip("web", VIP6, echo=False)], [backend("b1")]))
    frame = bytes(ETHER / ip6() / ICMPv6EchoRequest())
    assert both.send(frame) == Result(Verdict.PASS, frame)


def test_a_port_unreachable_from_a_client_is_an_error_too(both: Both) -> None:
    """A UDP client's host reports that it is gone; the error reaches its flow's backend."""
    both.want(web(*(backend(f"b{i}") for i in range(1, 6))))
    for port in range(40000, 40020):
        quoted = IP(src=VIP4, dst=CLIENT4) / UDP(sport=53, dport=port) / b"answer"
        error = bytes(ETHER / ip4() / ICMP(type=3, code=3) / quoted)
        owner = both.send(bytes(ETHER / ip4() / UDP(sport=port, dport=53)))
        assert both.send(error).backend == owner.backend
