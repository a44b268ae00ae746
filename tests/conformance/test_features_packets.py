# SPDX-License-Identifier: Apache-2.0
"""What is done to packets: tags, headers, MTU, MSS, pings, errors, fragments, QUIC, GUE."""

import os
import struct

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from support.documents.roster import VIP4, VIP6, backend, desired, generations, vip, web
from support.packets.both import Both
from support.packets.frames import CLIENT4, CLIENT6, ETHER, ip4, ip6, tcp, udp
from support.packets.kernel import Kernel
from tidegate.model.decision import Decision, Reason
from tidegate.model.values import Quic
from tidegate.spec import Verdict

pytestmark = pytest.mark.root

ROSTER = web(backend("b1"), backend("b2"), backend("b3"))
ROUTER4, ROUTER6 = "10.0.0.254", "fd00::fe"


def serve(both: Both, roster: object = ROSTER) -> None:
    both.install(generations(roster)[-1])  # type: ignore[arg-type]


def checked(packet: Packet) -> bytes:
    """Return the packet with every checksum recomputed by scapy."""
    copy = packet.copy()
    layer = copy
    while layer and not isinstance(layer, Raw):
        for name in ("chksum", "cksum"):
            if name in layer.fields:
                delattr(layer, name)
        layer = layer.payload
    return bytes(copy)


@pytest.mark.parametrize("tags", [Dot1Q(vlan=7), Dot1AD(vlan=9) / Dot1Q(vlan=7)], ids=["1", "2"])
def test_vlan_tags_are_kept(both: Both, tags: Packet) -> None:
    """What came in on a VLAN leaves on it."""
    serve(both)
    frame = bytes(ETHER / tags / ip4() / TCP(sport=40000, dport=80, flags="S"))
    out = both.send(frame).frame
    size = len(bytes(tags))
    assert out[12 : 14 + size - 2] == frame[12 : 14 + size - 2]
    assert out[14 + size + 20 :] == frame[14 + size :]


@pytest.mark.parametrize(
    "headers",
    [
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt(),
    ],
)
def test_ipv6_extension_headers_do_not_hide_the_ports(both: Both, headers: Packet) -> None:
    """Up to four of them are walked."""
    serve(both)
    frame = bytes(ETHER / ip6() / headers / TCP(sport=40000, dport=80, flags="S"))
    assert both.send(frame).decision == Decision.SYN


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([("MSS", 1460)], 1200),
        ([("NOP", None), ("MSS", 1460)], 1200),
        ([("MSS", 1000)], 1000),
        ([("SAckOK", b""), ("Timestamp", (1, 0)), ("MSS", 9000)], 1200),
        ([("NOP", None)], None),
    ],
)
def test_the_mss_of_a_syn_is_clamped(
    both: Both, options: list[tuple[str, object]], expected: int | None
) -> None:
    """Lowered, never raised, at any alignment, and the checksum is that of the new segment."""
    serve(both, desired([vip("web", VIP4, mss_clamp=1200)], [backend("b1")]))
    frame = bytes(ETHER / ip4() / TCP(sport=40000, dport=80, flags="S", options=options))
    out = Ether(both.send(frame).frame)[IP].payload
    assert dict(o for o in out[TCP].options if o[0] == "MSS").get("MSS") == expected
    assert checked(out) == bytes(out)


LIMITS = {"IPIP": (20, {}), "GUE": (28, {"encapsulation": "gue"}), "pool": (20, {"mtu": 1400})}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("tags", [None, Dot1Q(vlan=7)], ids=["untagged", "tagged"])
def test_a_client_gets_an_error_with_the_mtu(both: Both, name: str, tags: Packet | None) -> None:
    """Fragmentation needed, packet too big: from the VIP, with the MTU that fits, well formed."""
    overhead, options = LIMITS[name]
    mtu = options.get("mtu", 1500) - overhead
    vips = [vip("web4", VIP4), vip("web6", VIP6)]
    serve(both, desired(vips, [backend("b1")], **options))
    ether = ETHER / tags if tags else ETHER
    for ip, size in ((ip4(), 20), (ip6(), 40)):
        fits = bytes(ether / ip / TCP(sport=1, dport=80, flags="A") / (b"x" * (mtu - size - 20)))
        big = bytes(ether / ip / TCP(sport=1, dport=80, flags="A") / (b"x" * (mtu - size - 19)))
        assert both.send(fits).backend is not None
        result = both.send(big)
        assert (result.verdict, result.backend) == (Verdict.TX, None)
        answer = Ether(result.frame)
        assert (answer.src, answer.dst) == (ETHER.dst, ETHER.src)
        assert (Dot1Q in answer) == (tags is not None)
        error = answer[ICMP] if size == 20 else answer[ICMPv6PacketTooBig]
        assert (error.nexthopmtu if size == 20 else error.mtu) == mtu
        packet = answer[IP] if size == 20 else answer[IPv6]
        assert (packet.src, packet.dst) == ((VIP4, CLIENT4) if size == 20 else (VIP6, CLIENT6))
        at = 14 + (4 if tags else 0)
        quoted = bytes(error)[8:]
        assert big[at:].startswith(quoted)
        assert len(quoted) >= size + 8
        whole = packet.copy()
        whole[type(error)].remove_payload()
        whole = whole / Raw(quoted)
        assert checked(whole)[: len(bytes(packet))] == bytes(packet)


def ones_complement(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def test_a_ping_is_answered_exactly_for_every_checksum() -> None:
    """All 65,536 values of a payload word, and with them of the checksum (RFC 1624)."""
    with Kernel() as kernel:
        kernel.install(generations(ROSTER)[-1])
        ping_with_every_checksum(kernel)


def ping_with_every_checksum(kernel: Kernel) -> None:
    head = bytes(ETHER / ip4() / ICMP(id=1, seq=1))[:-8]
    for word in range(65536):
        message = struct.pack(">BBHHHH", 8, 0, 0, 1, 1, word)
        request = message[:2] + ones_complement(message).to_bytes(2) + message[4:]
        reply = struct.pack(">BBHHHH", 0, 0, 0, 1, 1, word)
        wanted = reply[:2] + ones_complement(reply).to_bytes(2) + reply[4:]
        verdict, out = kernel.run(head[:16] + (30).to_bytes(2) + head[18:] + request)
        if verdict is Verdict.DROP:  # the limit on answers was reached on a fast machine
            assert sum(c.drops[Reason.ECHO_LIMIT] for c in kernel.address_counters().values())
            kernel.refill()
            verdict, out = kernel.run(head[:16] + (30).to_bytes(2) + head[18:] + request)
        assert (verdict, out[34:44]) == (Verdict.TX, wanted)


def test_pings_of_both_families_are_answered(both: Both) -> None:
    """Addresses and MACs swapped, payload as it was, checksums right."""
    serve(both)
    for ip, echo in ((ip4(ttl=3), ICMP(id=7, seq=9)), (ip6(hlim=3), ICMPv6EchoRequest(id=7))):
        frame = bytes(ETHER / ip / echo / b"payload")
        out = Ether(both.send(frame).frame)
        assert (out.src, out.dst) == (ETHER.dst, ETHER.src)
        assert (out[1].src, out[1].dst) == (ip.dst, ip.src)
        assert checked(out) == bytes(out)
        assert bytes(out).endswith(b"payload")


def test_pings_are_left_to_the_host_where_the_vip_says_so(both: Both) -> None:
    """`echo` off: the packet passes."""
    serve(both, desired([vip("web", VIP4, echo=False)], [backend("b1")]))
    assert both.send(bytes(ETHER / ip4() / ICMP())).verdict == Verdict.PASS


def quote4(**fields: object) -> Packet:
    """Return eight bytes of a segment that a backend sent as the VIP."""
    inner = bytes(IP(src=VIP4, dst=CLIENT4, **fields) / TCP(sport=80, dport=40000, flags="A"))
    return Raw(inner[: (inner[0] & 15) * 4 + 8])


def quote6() -> Packet:
    return Raw(bytes(IPv6(src=VIP6, dst=CLIENT6) / TCP(sport=80, dport=40000))[:48])


ERRORS = {
    "unreachable": IP(src=ROUTER4, dst=VIP4) / ICMP(type=3, code=1) / quote4(),
    "fragmentation needed": IP(src=ROUTER4, dst=VIP4)
    / ICMP(type=3, code=4, nexthopmtu=1400)
    / quote4(),
    "time exceeded": IP(src=ROUTER4, dst=VIP4) / ICMP(type=11) / quote4(),
    "parameter problem": IP(src=ROUTER4, dst=VIP4) / ICMP(type=12) / quote4(),
    "quoted options": IP(src=ROUTER4, dst=VIP4) / ICMP(type=3, code=1) / quote4(options=b"\1" * 8),
    "packet too big": IPv6(src=ROUTER6, dst=VIP6) / ICMPv6PacketTooBig(mtu=1400) / quote6(),
    "time exceeded, IPv6": IPv6(src=ROUTER6, dst=VIP6) / ICMPv6TimeExceeded() / quote6(),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_goes_to_the_owner_of_the_flow(both: Both, name: str) -> None:
    """Found by eight quoted bytes, though it arrives on another CPU and the table has moved on."""
    before, after = generations(ROSTER, web(backend("b3"), backend("b4")))
    both.install(before)
    error = ERRORS[name]
    owner = both.send(tcp("A", ip4() if isinstance(error, IP) else ip6())).backend
    both.install(after)
    os.sched_setaffinity(0, {max(both.kernel._cpus)})
    result = both.send(bytes(ETHER / error))
    assert (result.decision, result.backend) == (Decision.ERROR, owner)
    assert result.frame.endswith(bytes(error))


BAD_ERRORS = {
    "another VIP's packet": (
        IP(src=ROUTER4, dst=VIP4)
        / ICMP(type=3, code=1)
        / Raw(bytes(IP(src="10.99.0.9", dst=CLIENT4) / TCP(sport=80, dport=1))[:28]),
        Reason.ICMP_UNKNOWN,
    ),
    "a port that is no VIP's": (
        IP(src=ROUTER4, dst=VIP4)
        / ICMP(type=3, code=1)
        / Raw(bytes(IP(src=VIP4, dst=CLIENT4) / TCP(sport=81, dport=1))[:28]),
        Reason.ICMP_UNKNOWN,
    ),
    "nothing quoted": (IP(src=ROUTER4, dst=VIP4) / ICMP(type=11), Reason.ICMP_UNKNOWN),
    "MTU 67": (
        IP(src=ROUTER4, dst=VIP4) / ICMP(type=3, code=4, nexthopmtu=67) / quote4(),
        Reason.ICMP_MTU,
    ),
    "MTU 1279 in IPv6": (
        IPv6(src=ROUTER6, dst=VIP6) / ICMPv6PacketTooBig(mtu=1279) / quote6(),
        Reason.ICMP_MTU,
    ),
}


@pytest.mark.parametrize("name", BAD_ERRORS)
def test_an_error_that_nobody_can_mean_is_dropped(both: Both, name: str) -> None:
    """Counted by reason, and no backend sees it."""
    serve(both)
    error, reason = BAD_ERRORS[name]
    assert both.send(bytes(ETHER / error)).reason == reason


ID = b"\xab\xcd"


def quic_short(server: bytes = ID, first: int = 0x41) -> bytes:
    return bytes([first, 0x07]) + server + b"nonce and the rest of it"


def quic_long(kind: int, server: bytes = ID, version: int = 1) -> bytes:
    head = struct.pack(">BIB", 0xC0 | kind << 4, version, 8)
    return head + b"\x07" + server + b"nonce" + bytes(20)


def quic_roster(state: str = "active") -> object:
    backends = [
        backend("b1"),
        backend("b2", quic_server_id=ID, state=state),  # type: ignore[arg-type]
        backend("b3"),
    ]
    return desired([vip("h3", VIP4, 443, "udp", quic=Quic(2, 1))], backends)


ROUTED = {
    "short header": quic_short(),
    "short header without fixed bit": quic_short(first=0x01),
    "handshake": quic_long(2),
    "handshake of version 2": quic_long(3, version=0x6B3343CF),
    "Initial": quic_long(0),
    "0-RTT": quic_long(1),
}
BY_TABLE = {
    "an unknown id": quic_short(b"\x99\x99"),
    "too short": quic_short()[:3],
    "version negotiation": quic_long(2, version=0),
}


def quic(payload: bytes, source: str = CLIENT4) -> bytes:
    return bytes(ETHER / ip4(source) / UDP(sport=40000, dport=443) / payload)


@pytest.mark.parametrize("name", ROUTED)
def test_quic_goes_by_the_server_id(both: Both, name: str) -> None:
    """From any address: a connection that migrated stays."""
    generation = generations(quic_roster())[-1]  # type: ignore[arg-type]
    both.install(generation)
    wanted = next(p.identity.id for k, p in generation.backends.items() if k.name == "b2")
    for source in ("10.77.0.9", "10.77.5.5", "10.78.1.1"):
        result = both.send(quic(ROUTED[name], source))
        assert (result.decision, result.backend) == (Decision.QUIC, wanted)
    assert both.state.flows.entries == {}


@pytest.mark.parametrize("name", BY_TABLE)
def test_other_quic_goes_by_the_table(both: Both, name: str) -> None:
    """What has no id of ours is a datagram like any other, and keeps its backend."""
    serve(both, quic_roster())
    first = both.send(quic(BY_TABLE[name]))
    again = both.send(quic(BY_TABLE[name]))
    assert [first.decision, again.decision] == [Decision.DATAGRAM, Decision.TRACKED]
    assert first.backend == again.backend


def test_quic_to_a_backend_that_is_gone_goes_by_the_table(both: Both) -> None:
    """A quarantined owner loses its connections at once."""
    serve(both, quic_roster("quarantine"))
    assert both.send(quic(quic_short())).decision == Decision.DATAGRAM


@pytest.mark.parametrize("address", ["", "fd01::1"], ids=["v4", "v6"])
@pytest.mark.parametrize("size", [0, 1, 7, 120, 127, 128, 129, 1000, 1391])
def test_gue_has_a_right_checksum(both: Both, address: str, size: int) -> None:
    """Over the whole datagram, whatever the inner checksum says, at any length."""
    roster = desired(
        [vip("web", VIP4), vip("dns", VIP4, 53, "udp")],
        [backend("b1", address)],
        encapsulation="gue",
    )
    serve(both, roster)
    no_checksum = bytes(ETHER / ip4() / UDP(sport=1, dport=53, chksum=0) / (b"\xff" * size))
    partial = bytearray(tcp("A", data="y" * size))
    partial[50:52] = b"\x12\x34"  # as a sender leaves it that offloads checksums
    for frame in (no_checksum, bytes(partial), udp(data="z" * size)):
        outer = Ether(both.send(frame).frame)
        datagram = outer[UDP]
        assert datagram.dport == 6080
        assert datagram.sport >= 0xC000
        assert bytes(datagram.payload) == frame[14:]
        plain = outer[1].copy()
        plain[UDP].remove_payload()
        rebuilt = plain / Raw(frame[14:])
        del rebuilt[UDP].chksum
        assert bytes(rebuilt) == bytes(outer[1])
