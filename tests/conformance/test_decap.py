# SPDX-License-Identifier: Apache-2.0
"""Backends' side of the tunnel: bpf/decap.c against its specification, frame by frame."""

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether

from tidegate.dataplane import syscalls as bpf
from tidegate.dataplane import tunnel
from tidegate.dataplane.compiler import compile_program, load
from tidegate.dataplane.tunnel import Decap, compile_decap
from tidegate.spec.balancer import Verdict
from tidegate.spec.decap import ANYTHING, Accept, Outcome, process

pytestmark = pytest.mark.root

MACS = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:b1"}
ETHER = Ether(**MACS)
HERE4, HERE6 = "10.77.101.2", "fd77:0:0:65::2"
FROM4, FROM6 = "10.254.3.7", "fd54::77"
STRICT = Accept(
    addresses=frozenset({ip_address(HERE4), ip_address(HERE6)}),
    sources=(ip_network("10.254.0.0/16"), ip_network("192.0.2.5/32"), ip_network("fd54::/64")),
)


@dataclass
class Both:
    """The program and the specification with the same settings."""

    accept: Accept
    kernel: Decap
    counts: Counter[Outcome] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.before = self.kernel.counters()

    def send(self, frame: bytes) -> tuple[Verdict, bytes]:
        """What both did with a frame, which must be the same."""
        expected = process(self.accept, self.counts, frame)
        result = bpf.run(self.kernel.program, frame)
        assert (result.verdict, result.frame) == expected, frame.hex()
        return expected

    def check(self) -> Counter[Outcome]:
        """What was counted, which must be the same."""
        assert self.kernel.counters() - self.before == self.counts
        return self.counts


SETTINGS = {
    "anything": ANYTHING,
    "strict": STRICT,
    "no GUE": Accept(gue_port=0),
    "GUE elsewhere": Accept(gue_port=5555),
}


@pytest.fixture(scope="module")
def loaded() -> Iterator[dict[str, Decap]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(Decap(accept)) for name, accept in SETTINGS.items()}


@pytest.fixture(params=["anything", "strict"])
def both(request: pytest.FixtureRequest, loaded: dict[str, Decap]) -> Both:
    return Both(SETTINGS[request.param], loaded[request.param])


@pytest.fixture
def strict(loaded: dict[str, Decap]) -> Both:
    return Both(STRICT, loaded["strict"])


def outer(version: int, **fields: Any) -> Any:
    """The outer header of a load balancer; `proto`, `tos` and `source` for either version."""
    source = fields.pop("source", FROM4 if version == 4 else FROM6)
    to = fields.pop("to", HERE4 if version == 4 else HERE6)
    if version == 4:
        return IP(src=source, dst=to, flags=fields.pop("flags", "DF"), **fields)
    names = {"proto": "nh", "tos": "tc", "len": "plen"}
    return IPv6(src=source, dst=to, **{names.get(k, k): v for k, v in fields.items()})


def inner(version: int, data: str = "hello", **fields: Any) -> Any:
    """A client's packet to the VIP."""
    if version == 4:
        ip = IP(src="10.77.11.2", dst="10.99.0.1", **fields)
    else:
        names = {"tos": "tc", "len": "plen"}
        six = {names.get(k, k): v for k, v in fields.items()}
        ip = IPv6(src="fd77:0:0:b::2", dst="fd99::1", **six)
    return ip / TCP(sport=40000, dport=80, flags="PA") / data


def tunnelled(over: int, packet: Any, ether: Any = ETHER, **fields: Any) -> bytes:
    """IP in IP."""
    proto = 4 if isinstance(packet, IP) else 41
    return bytes(ether / outer(over, **{"proto": proto, **fields}) / bytes(packet))


def gue(over: int, packet: Any, ether: Any = ETHER, port: int = 6080, **udp: Any) -> bytes:
    """GUE variant 1, with a right UDP checksum unless one is given."""
    header = UDP(sport=50123, dport=port, **udp)
    return bytes(ether / outer(over) / header / bytes(packet))


KINDS = {
    Outcome.IPIP: tunnelled(4, inner(4)),
    Outcome.SIX_IN_FOUR: tunnelled(4, inner(6)),
    Outcome.FOUR_IN_SIX: tunnelled(6, inner(4)),
    Outcome.SIX_IN_SIX: tunnelled(6, inner(6)),
    Outcome.GUE_OVER_FOUR: gue(4, inner(4)),
    Outcome.GUE_OVER_SIX: gue(6, inner(6)),
}
"""One frame of each kind that is taken out."""


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_taken_out_whole(both: Both, kind: Outcome) -> None:
    """The stack gets the client's packet, behind the Ethernet header that the frame came with."""
    verdict, out = both.send(KINDS[kind])

    version = 4 if kind in (Outcome.IPIP, Outcome.FOUR_IN_SIX, Outcome.GUE_OVER_FOUR) else 6
    assert verdict == Verdict.PASS
    assert out == bytes(ETHER / inner(version))
    assert both.check() == {kind: 1}


@pytest.mark.parametrize("over", [4, 6])
@pytest.mark.parametrize("version", [4, 6])
def test_gue_carries_either_version_over_either(both: Both, over: int, version: int) -> None:
    """GUE's first four bits are the version of the packet inside."""
    kind = Outcome.GUE_OVER_FOUR if over == 4 else Outcome.GUE_OVER_SIX
    assert both.send(gue(over, inner(version))) == (Verdict.PASS, bytes(ETHER / inner(version)))
    assert both.check() == {kind: 1}


TAGGED = {
    "802.1Q": Ether(**MACS) / Dot1Q(vlan=5),
    "802.1ad and 802.1Q": Ether(**MACS) / Dot1AD(vlan=7) / Dot1Q(vlan=5),
    "802.1Q twice": Ether(**MACS) / Dot1Q(vlan=7) / Dot1Q(vlan=5),
}


@pytest.mark.parametrize("tags", TAGGED)
@pytest.mark.parametrize("over", [4, 6])
@pytest.mark.parametrize("version", [4, 6])
def test_vlan_tags_stay(both: Both, tags: str, over: int, version: int) -> None:
    """Up to two tags are kept, and the innermost names what is inside now."""
    ether = TAGGED[tags]
    expected = (Verdict.PASS, bytes(ether / inner(version)))
    assert both.send(tunnelled(over, inner(version), ether)) == expected
    assert both.send(gue(over, inner(version), ether)) == expected
    both.check()


UNTOUCHED = {
    "ARP": bytes(ETHER / ARP()),
    "a bare Ethernet header": bytes(ETHER),
    "TCP to the host itself": bytes(ETHER / outer(4, proto=6) / TCP(dport=22, flags="S")),
    "UDP to another port": gue(4, inner(4), port=6081),
    "a UDP datagram without content": bytes(ETHER / outer(4) / UDP(dport=6080)),
    "GUE variant 0": bytes(ETHER / outer(4) / UDP(dport=6080) / b"\x00\x04\0\0" / inner(4)),
    "the unassigned GUE variants": bytes(ETHER / outer(6) / UDP(dport=6080) / b"\x80" / inner(4)),
    "a cut outer IPv4 header": tunnelled(4, inner(4))[: 14 + 19],
    "a cut outer IPv6 header": tunnelled(6, inner(4))[: 14 + 39],
    "a header length of 4 words": tunnelled(4, inner(4), ihl=4),
    "an IPv4 version in an IPv6 frame": bytes(Ether(**MACS, type=0x86DD) / bytes(inner(4))),
    "three VLAN tags": bytes(
        ETHER / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / outer(4, proto=4) / inner(4)
    ),
    "a tunnel behind an extension header": bytes(
        ETHER / outer(6, proto=60) / IPv6ExtHdrDestOpt(nh=4) / bytes(inner(4))
    ),
    "a fragment of a datagram": bytes(ETHER / outer(4, flags="MF") / UDP(dport=6080) / inner(4)),
    "the client's own packet": bytes(ETHER / inner(4)),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_is_not_tunnelled_passes_untouched_and_uncounted(both: Both, name: str) -> None:
    """A backend's host has other traffic."""
    assert both.send(UNTOUCHED[name]) == (Verdict.PASS, UNTOUCHED[name])
    assert not both.check()


@dataclass(frozen=True)
class Case:
    """A tunnel packet that is not taken out by the strict program."""

    why: str
    frame: bytes
    outcome: Outcome


REFUSED = {
    "for another address": Case(
        "the host may be the end of other tunnels",
        tunnelled(4, inner(4), to="10.77.101.9"),
        Outcome.OTHER_DESTINATION,
    ),
    "for another address over IPv6": Case(
        "the same",
        gue(6, inner(4)).replace(ip_address(HERE6).packed, b"\xfd" * 16),
        Outcome.OTHER_DESTINATION,
    ),
    "for another address from a stranger": Case(
        "the destination is looked at first: only what is ours is ours to drop",
        tunnelled(4, inner(4), to="10.77.101.9", source="203.0.113.1"),
        Outcome.OTHER_DESTINATION,
    ),
    "outer IPv4 options": Case(
        "the balancer writes none",
        tunnelled(4, inner(4), options=[IPOption_NOP()] * 4),
        Outcome.NOT_PLAIN,
    ),
    "a first fragment": Case(
        "the balancer sends none, and what is inside is not whole",
        tunnelled(4, inner(4), flags="MF"),
        Outcome.NOT_PLAIN,
    ),
    "a later fragment": Case(
        "the same", tunnelled(4, inner(4), flags=0, frag=20), Outcome.NOT_PLAIN
    ),
    "a stranger's source": Case(
        "anybody can write an outer header; only the load balancers' network is trusted",
        tunnelled(4, inner(4), source="10.253.255.255"),
        Outcome.BAD_SOURCE,
    ),
    "a stranger's IPv6 source": Case(
        "the same", tunnelled(6, inner(4), source="fd54:0:0:1::77"), Outcome.BAD_SOURCE
    ),
    "a stranger's GUE": Case(
        "the same",
        bytes(ETHER / outer(4, source="192.0.2.4") / UDP(dport=6080) / inner(4)),
        Outcome.BAD_SOURCE,
    ),
    "an IPv4-mapped source over IPv6": Case(
        "on the wire it means nothing (RFC 4291 section 2.5.5.2), so an allowed IPv4 prefix "
        "must not let it in",
        tunnelled(6, inner(4), source="::ffff:10.254.3.7"),
        Outcome.BAD_SOURCE,
    ),
    "an IPv4 length beyond the frame": Case(
        "the packet was cut", tunnelled(4, inner(4), len=66), Outcome.BAD_LENGTH
    ),
    "an IPv4 length below its header": Case(
        "no packet has it", tunnelled(4, inner(4), len=19), Outcome.BAD_LENGTH
    ),
    "an IPv6 length beyond the frame": Case(
        "the packet was cut", tunnelled(6, inner(6), len=66), Outcome.BAD_LENGTH
    ),
    "a UDP length beyond the IP packet": Case(
        "the datagram was cut", gue(4, inner(4), len=54, chksum=0), Outcome.BAD_LENGTH
    ),
    "a UDP length below its header": Case(
        "no datagram has it", gue(4, inner(4), len=7, chksum=0), Outcome.BAD_LENGTH
    ),
    "a wrong IPv4 header checksum": Case(
        "the addresses that were just looked at may be wrong",
        tunnelled(4, inner(4), chksum=0x1234),
        Outcome.BAD_CHECKSUM,
    ),
    "a wrong UDP checksum": Case(
        "it is there, so it holds", gue(4, inner(4), chksum=0x1234), Outcome.BAD_CHECKSUM
    ),
    "a wrong UDP checksum over IPv6": Case(
        "the same", gue(6, inner(6, "x" * 999), chksum=1), Outcome.BAD_CHECKSUM
    ),
    "nothing inside": Case("an empty tunnel", tunnelled(4, b"", proto=4), Outcome.BAD_INNER),
    "an IPv6 packet announced as IPv4": Case(
        "the protocol number decides", tunnelled(4, inner(6), proto=4), Outcome.BAD_INNER
    ),
    "an IPv4 packet announced as IPv6": Case(
        "the same", tunnelled(6, inner(4), proto=41), Outcome.BAD_INNER
    ),
    "GUE with version 5 inside": Case(
        "01 are its first bits, but no IP version is 5",
        gue(4, b"\x55" + bytes(60)),
        Outcome.BAD_INNER,
    ),
    "a cut inner header": Case(
        "19 bytes are no header", tunnelled(4, bytes(inner(4))[:19], proto=4), Outcome.BAD_INNER
    ),
    "a cut inner IPv6 header": Case(
        "39 bytes are none", tunnelled(4, bytes(inner(6))[:39], proto=41), Outcome.BAD_INNER
    ),
    "an inner length beyond the outer": Case(
        "the outer length is what the tunnel carried",
        tunnelled(4, inner(4, len=46)),
        Outcome.BAD_INNER,
    ),
    "an inner IPv6 length beyond the outer": Case(
        "the same", tunnelled(6, inner(6, len=26)), Outcome.BAD_INNER
    ),
    "an inner length that only padding would hold": Case(
        "Ethernet padding is not content",
        tunnelled(4, inner(4, len=46)) + bytes(6),
        Outcome.BAD_INNER,
    ),
    "an inner header of 4 words": Case(
        "no header has it", tunnelled(4, inner(4, ihl=4)), Outcome.BAD_INNER
    ),
    "an inner length below its header": Case(
        "the same", tunnelled(4, inner(4, len=19)), Outcome.BAD_INNER
    ),
    "congestion that cannot be told": Case(
        "the sender does not know ECN, so a loss is the only signal (RFC 6040 section 4.2)",
        tunnelled(4, inner(4), tos=3),
        Outcome.BAD_ECN,
    ),
    "congestion that cannot be told over IPv6": Case(
        "the same", tunnelled(6, inner(6), tos=3), Outcome.BAD_ECN
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_out_is_counted_by_reason(strict: Both, name: str) -> None:
    """Somebody else's tunnel passes; what is ours and not right is dropped. Neither is changed."""
    case = REFUSED[name]
    passes = case.outcome in (Outcome.OTHER_DESTINATION, Outcome.NOT_PLAIN)
    verdict = Verdict.PASS if passes else Verdict.DROP
    assert strict.send(case.frame) == (verdict, case.frame), case.why
    assert strict.check() == {case.outcome: 1}


def test_an_empty_set_is_no_restriction(loaded: dict[str, Decap]) -> None:
    """Without settings any source and any destination will do."""
    both = Both(ANYTHING, loaded["anything"])
    for frame in (
        tunnelled(4, inner(4), to="10.77.101.9"),
        tunnelled(4, inner(4), source="203.0.113.1"),
    ):
        assert both.send(frame) == (Verdict.PASS, bytes(ETHER / inner(4)))
    assert both.check() == {Outcome.IPIP: 2}


def test_a_prefix_of_one_family_does_not_cover_the_other() -> None:
    """All of IPv6 is no IPv4 source, nor the other way round."""
    for network, version in (("::/0", 6), ("0.0.0.0/0", 4)):
        accept = Accept(sources=(ip_network(network),))
        with Decap(accept) as kernel:
            both = Both(accept, kernel)
            for over in (4, 6):
                expected = Verdict.PASS if over == version else Verdict.DROP
                assert both.send(tunnelled(over, inner(4)))[0] == expected


def test_prefixes_end_where_they_say(strict: Both) -> None:
    """The first and last address of each prefix are in, their neighbours are out."""
    inside = ["10.254.0.0", "10.254.255.255", "192.0.2.5"]
    outside = ["10.253.255.255", "10.255.0.0", "192.0.2.4", "192.0.2.6"]
    for source in inside:
        assert strict.send(tunnelled(4, inner(4), source=source))[0] == Verdict.PASS
    for source in outside:
        assert strict.send(tunnelled(4, inner(4), source=source))[0] == Verdict.DROP
    for source in ("fd54::", "fd54::ffff:ffff:ffff:ffff"):
        assert strict.send(tunnelled(6, inner(6), source=source))[0] == Verdict.PASS
    for source in ("fd53:ffff::1", "fd54:0:0:1::"):
        assert strict.send(tunnelled(6, inner(6), source=source))[0] == Verdict.DROP
    assert strict.check() == {Outcome.IPIP: 3, Outcome.SIX_IN_SIX: 2, Outcome.BAD_SOURCE: 6}


@pytest.mark.parametrize("name", ["no GUE", "GUE elsewhere"])
def test_the_gue_port_is_a_setting(loaded: dict[str, Decap], name: str) -> None:
    """Without one, or with another one, the assigned port is the host's."""
    both = Both(SETTINGS[name], loaded[name])
    frame = gue(4, inner(4))
    assert both.send(frame) == (Verdict.PASS, frame)
    elsewhere = gue(4, inner(4), port=5555)
    taken = name == "GUE elsewhere"
    assert both.send(elsewhere)[1] == (bytes(ETHER / inner(4)) if taken else elsewhere)
    assert both.check() == ({Outcome.GUE_OVER_FOUR: 1} if taken else {})


@pytest.mark.parametrize("over", [4, 6])
def test_a_udp_checksum_of_zero_is_none(both: Both, over: int) -> None:
    """A tunnel may do without one, over IPv6 too (RFC 6935)."""
    assert both.send(gue(over, inner(4), chksum=0)) == (Verdict.PASS, bytes(ETHER / inner(4)))


@pytest.mark.parametrize("over", [4, 6])
def test_udp_checksums_of_any_length_are_verified(both: Both, over: int) -> None:
    """Right ones hold and one wrong bit anywhere is noticed, whatever the length divides by."""
    chance = random.Random(over)  # noqa: S311 - reproducible, not secret
    for size in [*range(70), *range(180, 300), *range(470, 490), 1400, 1401, 3000]:
        frame = gue(over, inner(4, "".join(chr(chance.randrange(32, 127)) for _ in range(size))))
        assert both.send(frame)[0] == Verdict.PASS
        start = 14 + (20 if over == 4 else 40)
        broken = bytearray(frame)
        broken[chance.randrange(start + 8 + 40, len(frame)) if size else -1] ^= 1 << size % 8
        assert both.send(bytes(broken))[0] == Verdict.DROP
    kind = Outcome.GUE_OVER_FOUR if over == 4 else Outcome.GUE_OVER_SIX
    assert both.check().keys() == {kind, Outcome.BAD_CHECKSUM}


NOT_ECT, ECT1, ECT0, CE = range(4)
ECN = {
    # inner: what it becomes under an outer Not-ECT, ECT(1), ECT(0), CE; None is a drop
    NOT_ECT: (NOT_ECT, NOT_ECT, NOT_ECT, None),
    ECT0: (ECT0, ECT1, ECT0, CE),
    ECT1: (ECT1, ECT1, ECT1, CE),
    CE: (CE, CE, CE, CE),
}
"""RFC 6040 section 4.2, figure 4."""


@pytest.mark.parametrize("over", [4, 6])
@pytest.mark.parametrize("version", [4, 6])
def test_congestion_marks_come_out_of_the_tunnel(both: Both, over: int, version: int) -> None:
    """All sixteen combinations of outer and inner ECN, with an IPv4 checksum that stays right."""
    for inside, row in ECN.items():
        for outside, expected in enumerate(row):
            packet = inner(version, tos=0xB8 | inside)
            verdict, out = both.send(tunnelled(over, packet, tos=outside))
            if expected is None:
                assert verdict == Verdict.DROP
            else:
                # Scapy computes the checksum of what is expected afresh.
                assert out == bytes(ETHER / inner(version, tos=0xB8 | expected))
    both.check()


def test_ethernet_padding_is_left_to_the_stack(both: Both) -> None:
    """The smallest frames are padded to 60 bytes; the inner length tells what is content."""
    packet = IP(src="10.77.11.2", dst="10.99.0.1") / UDP(dport=7)
    assert both.send(tunnelled(4, packet) + bytes(4))[1] == bytes(ETHER / packet) + bytes(4)


def test_mutated_and_cut_frames(loaded: dict[str, Decap]) -> None:
    """Any damage to a tunnelled frame is judged the same by program and specification."""
    chance = random.Random(6040)  # noqa: S311 - reproducible, not secret
    good = [*KINDS.values(), gue(4, inner(6)), gue(6, inner(4), chksum=0)]
    good += [tunnelled(4, inner(4), ether) for ether in TAGGED.values()]
    good += [tunnelled(6, inner(6, tos=2), tos=3), tunnelled(4, inner(4, tos=2), tos=1)]
    for name in ("anything", "strict"):
        both = Both(SETTINGS[name], loaded[name])
        for _ in range(6000):
            both.send(mutated(chance, chance.choice(good)))
        assert set(both.check()) >= set(KINDS) | {Outcome.BAD_LENGTH, Outcome.BAD_INNER}


def mutated(chance: random.Random, frame: bytes) -> bytes:
    """A frame with up to three damaged bytes, half of them with a repaired checksum, maybe cut."""
    damaged = bytearray(frame)
    for _ in range(chance.randint(0, 3)):
        at = chance.randrange(12, min(len(damaged), 110))
        damaged[at] = chance.choice([0, 1, 4, 6, 0x11, 0x29, 0x45, 0x60, chance.randrange(256)])
    if chance.random() < 0.5 and damaged[12:14] == b"\x08\x00":
        ip = IP(bytes(damaged[14:34]))
        del ip.chksum
        damaged[24:26] = bytes(ip)[10:12] if len(bytes(ip)) >= 12 else b"\0\0"
    if chance.random() < 0.2:
        damaged = damaged[: chance.randrange(14, len(damaged) + 1)]
    return bytes(damaged)


def test_the_plain_build_takes_out_the_same() -> None:
    """Built without settings the program accepts anything, and has no counters to pay for."""
    fd = load(compile_program("decap"), {})
    try:
        for frame in [*KINDS.values(), *UNTOUCHED.values(), *(c.frame for c in REFUSED.values())]:
            result = bpf.run(fd, frame)
            assert (result.verdict, result.frame) == process(ANYTHING, Counter(), frame)
    finally:
        os.close(fd)
    assert len(compile_program("decap").code) < len(compile_decap(STRICT).code)


def test_the_header_of_outcomes_is_the_generated_one() -> None:
    """bpf/tunnel.h says what the specification says."""
    assert files("tidegate.bpf").joinpath("tunnel.h").read_text() == tunnel.render()
