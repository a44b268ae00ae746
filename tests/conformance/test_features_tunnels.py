# SPDX-License-Identifier: Apache-2.0
"""GUE at every size, and fragments among other traffic."""

import struct

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6TimeExceeded, IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw

from support.documents.roster import VIP4, VIP6, backend, desired, vip, web
from support.packets.both import Both
from support.packets.frames import CLIENT4, CLIENT6, ETHER, ip4, ip6, tcp, udp
from support.packets.kernel import LINK
from tidegate.model.decision import Decision, Reason
from tidegate.spec import Verdict
from tidegate.spec.simulation import LONGEST

pytestmark = pytest.mark.root

FAMILIES = pytest.mark.parametrize("ip", [ip4(), ip6()], ids=["v4", "v6"])


def assert_sum_is_right(out: bytes, outer: int) -> None:
    """Check RFC 1071: a receiver's sum over pseudo-header and datagram is all ones."""
    addresses = out[26:34] if outer == 20 else out[22:54]
    datagram = out[14 + outer :]
    data = addresses + struct.pack(">HH", 17, len(datagram)) + datagram
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
    assert datagram[6:8] != b"\0\0"


def serve_gue(both: Both, address: str, mtu: int = 1500) -> None:
    both.link(LINK._replace(mtu=mtu))
    vips = [vip(f"{p}{i}", v, port, p) for i, v in enumerate((VIP4, VIP6)) for p, port in PORTS]
    both.want(desired(vips, [backend("b1", address)], encapsulation="gue", gue_port=6081))


PORTS = (("tcp", 80), ("udp", 53))
BACKENDS = pytest.mark.parametrize(
    ("address", "outer"), [("10.1.0.1", 20), ("fd01::1", 40)], ids=["to v4", "to v6"]
)


@BACKENDS
@FAMILIES
def test_the_sum_is_right_at_every_size(both: Both, ip: Packet, address: str, outer: int) -> None:
    """Odd and even, around each piece that is summed at once."""
    serve_gue(both, address)
    for size in (*range(300), *range(1300, 1372)):
        frame = tcp("A", ip, data="\x7f" * size)
        assert_sum_is_right(both.send(frame).frame, outer)


@BACKENDS
def test_the_sum_is_right_for_jumbo_frames(both: Both, address: str, outer: int) -> None:
    """As large as a test-run takes."""
    serve_gue(both, address, mtu=9000)
    for size in (*range(2000, 2010), LONGEST - 54 - 1, LONGEST - 54):
        frame = tcp("A", data="\xff" * size)[:LONGEST]
        whole = frame[:16] + (len(frame) - 14).to_bytes(2) + frame[18:]
        result = both.send(whole)
        assert result.verdict is Verdict.TX
        assert_sum_is_right(result.frame, outer)
    assert len(result.frame) > LONGEST


@BACKENDS
@FAMILIES
def test_the_sum_is_right_whatever_is_inside(
    both: Both, ip: Packet, address: str, outer: int
) -> None:
    """No UDP checksum, an unfinished one, an ICMP error, a fragment.

    The ports are a dynamic one and the configured one, and the inner packet is as it was.
    """
    serve_gue(both, address)
    is_v6 = isinstance(ip, IPv6)
    inner = IPv6(src=VIP6, dst=CLIENT6) if is_v6 else IP(src=VIP4, dst=CLIENT4)
    error = ICMPv6TimeExceeded() if is_v6 else ICMP(type=11)
    first = ip / IPv6ExtHdrFragment(m=1, id=3) if is_v6 else ip4(flags="MF", id=3)
    frames = [
        bytes(ETHER / ip / UDP(sport=1, dport=53, chksum=0) / b"odd"),
        bytes(ETHER / ip / UDP(sport=1, dport=53, chksum=0xFFFF) / b"even"),
        bytes(ETHER / ip / TCP(sport=1, dport=80, flags="A", chksum=0x1234)),
        bytes(ETHER / ip / error / inner / TCP(sport=80, dport=1)),
        bytes(ETHER / first / UDP(sport=1, dport=53, len=900) / (b"x" * 64)),
    ]
    for frame in frames:
        out = both.send(frame).frame
        assert_sum_is_right(out, outer)
        assert out[14 + outer + 8 :] == frame[14:]
        source, port, length = struct.unpack_from(">HHH", out, 14 + outer)
        assert (source >= 0xC000, port, length) == (True, 6081, len(frame) - 14 + 8)


def test_source_ports_carry_the_flow(both: Both) -> None:
    """Routers behind spread by them: one for each flow, and many for many."""
    serve_gue(both, "10.1.0.1")
    ports = {
        s: {both.send(tcp(f, sport=s)).frame[34:36] for f in ("S", "A", "PA")} for s in range(100)
    }
    assert {len(of_flow) for of_flow in ports.values()} == {1}
    assert len({next(iter(of_flow)) for of_flow in ports.values()}) > 95


def test_v6_clients_with_one_host_part_have_sources_of_their_own(both: Both) -> None:
    """Outer sources come from the hash of all 128 bits, not from the last ones."""
    both.want(web(backend("b1", "fd01::1")))
    clients = [ip6(f"fd77:{i:x}::9") for i in range(100)]
    assert len({both.send(tcp("S", ip)).frame[22:38] for ip in clients}) == 100


SEVEN = web(*(backend(f"b{i}") for i in range(1, 8)))


def piece(
    kind: str, *, first: bool, id_: int = 77, source: str = CLIENT4, sport: int = 40000
) -> bytes:
    """Return the first fragment of a datagram or segment, or a later one."""
    udp_header = UDP(sport=sport, dport=53, len=1000)
    tcp_header = TCP(sport=sport, dport=80, flags="A")
    layer = udp_header if kind == "udp" else tcp_header
    proto = 17 if kind == "udp" else 6
    if first:
        return bytes(ETHER / ip4(source, id=id_, flags="MF", proto=proto) / layer / (b"x" * 24))
    return bytes(ETHER / ip4(source, id=id_, frag=6, proto=proto) / (b"y" * 24))


def test_ids_of_protocols_are_apart_in_ipv4(both: Both) -> None:
    """RFC 791: an id is unique among those of its source, destination and protocol."""
    both.want(SEVEN)
    owners = {}
    for sport in range(40000, 40020):
        for kind in ("udp", "tcp"):
            owners[kind] = both.send(piece(kind, first=True, sport=sport)).backend
        for kind, owner in owners.items():
            assert both.send(piece(kind, first=False)).backend == owner
    assert both.send(piece("udp", first=False, id_=78)).reason == Reason.FRAGMENT
    assert both.send(piece("udp", first=False, source="10.77.0.8")).reason == Reason.FRAGMENT


def test_the_first_fragment_of_a_tracked_flow_follows_its_entry(both: Both) -> None:
    """And the later ones follow it, though the slot has moved on."""
    both.want(web(backend("b1"), backend("b2")))
    ports = range(40000, 40020)
    owners = {s: both.send(udp(sport=s)).backend for s in ports}
    both.want(SEVEN)
    for id_, sport in enumerate(ports):
        first = both.send(piece("udp", first=True, id_=id_, sport=sport))
        assert (first.decision, first.backend) == (Decision.TRACKED, owners[sport])
        assert both.send(piece("udp", first=False, id_=id_)).backend == owners[sport]


def test_fragments_of_a_quarantined_backend_are_dropped(both: Both) -> None:
    """Half a datagram is of no use to another backend."""
    both.want(web(backend("b1")))
    both.send(piece("udp", first=True))
    both.want(web(backend("b1", state="quarantine"), backend("b2")))
    assert both.send(piece("udp", first=False)).reason == Reason.FRAGMENT


def test_ipv6_fragments_are_distinguished_by_32_bits_of_id(both: Both) -> None:
    """The next header of a later one does not count (RFC 8200 section 4.5)."""
    both.want(SEVEN)
    ids = [5, 5 << 16, 0xFFFFFFFF]
    owners = [
        both.send(
            bytes(
                ETHER
                / ip6()
                / IPv6ExtHdrFragment(nh=17, id=i, m=1)
                / UDP(sport=s, dport=53, len=900)
                / (b"x" * 24)
            )
        ).backend
        for s, i in enumerate(ids)
    ]
    for nh in (17, 60):
        later = [
            bytes(ETHER / ip6() / IPv6ExtHdrFragment(nh=nh, id=i, offset=4) / Raw(b"y" * 8))
            for i in ids
        ]
        assert [both.send(frame).backend for frame in later] == owners


def test_later_fragments_are_kept_for_a_minute(both: Both) -> None:
    """RFC 8200: within 60 s of the first, or never; the clock is two ticks late at most."""
    both.want(SEVEN)
    owner = both.send(piece("udp", first=True)).backend
    both.age(59)
    assert both.send(piece("udp", first=False)).backend == owner
    both.age(12)
    assert both.send(piece("udp", first=False)).reason == Reason.FRAGMENT
