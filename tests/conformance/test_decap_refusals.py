# SPDX-License-Identifier: Apache-2.0
"""What bpf/decap.c leaves alone, refuses, and makes of damage, as its specification does."""

import os
import random
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt
from scapy.layers.l2 import ARP, Dot1Q, Ether

from support.packets.tunnelled import (
    ETHER,
    HERE6,
    KINDS,
    MACS,
    SETTINGS,
    STRICT,
    TAGGED,
    Both,
    gue,
    inner,
    outer,
    tunnelled,
)
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.compiler import compile_program
from tidegate.dataplane.kernel.loader import load
from tidegate.dataplane.tunnel.tunnel import Decap, compile_decap
from tidegate.spec.balancer import Verdict
from tidegate.spec.decap import ANYTHING, Accept, Outcome, process

pytestmark = pytest.mark.root


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
def test_what_is_not_tunnelled_passes_untouched_and_uncounted(end: Both, name: str) -> None:
    """A backend's host has other traffic."""
    assert end.send(UNTOUCHED[name]) == (Verdict.PASS, UNTOUCHED[name])
    assert not end.check()


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
    "congestion that cannot be marked": Case(
        "the sender does not know ECN, so a loss is the only signal (RFC 6040 section 4.2)",
        tunnelled(4, inner(4), tos=3),
        Outcome.BAD_ECN,
    ),
    "congestion that cannot be marked over IPv6": Case(
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


def test_an_empty_set_is_no_restriction(decaps: dict[str, Decap]) -> None:
    """Without settings any source and any destination will do."""
    end = Both(ANYTHING, decaps["anything"])
    for frame in (
        tunnelled(4, inner(4), to="10.77.101.9"),
        tunnelled(4, inner(4), source="203.0.113.1"),
    ):
        assert end.send(frame) == (Verdict.PASS, bytes(ETHER / inner(4)))
    assert end.check() == {Outcome.IPIP: 2}


def test_a_prefix_of_one_family_does_not_cover_the_other() -> None:
    """All of IPv6 is no IPv4 source, nor the other way round."""
    for network, version in (("::/0", 6), ("0.0.0.0/0", 4)):
        accept = Accept(sources=(ip_network(network),))
        with Decap(accept) as kernel:
            end = Both(accept, kernel)
            for over in (4, 6):
                expected = Verdict.PASS if over == version else Verdict.DROP
                assert end.send(tunnelled(over, inner(4)))[0] == expected


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


def test_mutated_and_cut_frames(decaps: dict[str, Decap]) -> None:
    """Any damage to a tunnelled frame is judged the same by program and specification."""
    chance = random.Random(6040)  # noqa: S311 - reproducible, not secret
    good = [*KINDS.values(), gue(4, inner(6)), gue(6, inner(4), chksum=0)]
    good += [tunnelled(4, inner(4), ether) for ether in TAGGED.values()]
    good += [tunnelled(6, inner(6, tos=2), tos=3), tunnelled(4, inner(4, tos=2), tos=1)]
    for name in ("anything", "strict"):
        end = Both(SETTINGS[name], decaps[name])
        for _ in range(6000):
            end.send(mutated(chance, chance.choice(good)))
        assert set(end.check()) >= set(KINDS) | {Outcome.BAD_LENGTH, Outcome.BAD_INNER}


def mutated(chance: random.Random, frame: bytes) -> bytes:
    """Return a frame with up to three damaged bytes, half with a repaired checksum, maybe cut."""
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
