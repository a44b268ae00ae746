# SPDX-License-Identifier: Apache-2.0
"""Backends' side of the tunnel: bpf/decap.c takes out, whole, what its specification takes out."""

import random
from importlib.resources import files

import pytest
from scapy.layers.inet import IP, UDP

from support.packets.tunnelled import ETHER, KINDS, SETTINGS, TAGGED, Both, gue, inner, tunnelled
from tidegate.dataplane.tunnel import tunnel
from tidegate.dataplane.tunnel.tunnel import Decap
from tidegate.spec.balancer import Verdict
from tidegate.spec.decap import Outcome

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_taken_out_whole(end: Both, kind: Outcome) -> None:
    """The stack gets the client's packet, behind the Ethernet header that the frame came with."""
    verdict, out = end.send(KINDS[kind])

    version = 4 if kind in (Outcome.IPIP, Outcome.FOUR_IN_SIX, Outcome.GUE_OVER_FOUR) else 6
    assert verdict == Verdict.PASS
    assert out == bytes(ETHER / inner(version))
    assert end.check() == {kind: 1}


@pytest.mark.parametrize("over", [4, 6])
@pytest.mark.parametrize("version", [4, 6])
def test_gue_carries_either_version_over_either(end: Both, over: int, version: int) -> None:
    """GUE's first four bits are the version of the packet inside."""
    kind = Outcome.GUE_OVER_FOUR if over == 4 else Outcome.GUE_OVER_SIX
    assert end.send(gue(over, inner(version))) == (Verdict.PASS, bytes(ETHER / inner(version)))
    assert end.check() == {kind: 1}


@pytest.mark.parametrize("tags", TAGGED)
@pytest.mark.parametrize("over", [4, 6])
@pytest.mark.parametrize("version", [4, 6])
def test_vlan_tags_stay(end: Both, tags: str, over: int, version: int) -> None:
    """Up to two tags are kept, and the innermost names what is inside now."""
    ether = TAGGED[tags]
    expected = (Verdict.PASS, bytes(ether / inner(version)))
    assert end.send(tunnelled(over, inner(version), ether)) == expected
    assert end.send(gue(over, inner(version), ether)) == expected
    end.check()


@pytest.mark.parametrize("name", ["no GUE", "GUE elsewhere"])
def test_the_gue_port_is_a_setting(decaps: dict[str, Decap], name: str) -> None:
    """Without one, or with another one, the assigned port is the host's."""
    end = Both(SETTINGS[name], decaps[name])
    frame = gue(4, inner(4))
    assert end.send(frame) == (Verdict.PASS, frame)
    elsewhere = gue(4, inner(4), port=5555)
    taken = name == "GUE elsewhere"
    assert end.send(elsewhere)[1] == (bytes(ETHER / inner(4)) if taken else elsewhere)
    assert end.check() == ({Outcome.GUE_OVER_FOUR: 1} if taken else {})


@pytest.mark.parametrize("over", [4, 6])
def test_a_udp_checksum_of_zero_is_none(end: Both, over: int) -> None:
    """A tunnel may do without one, over IPv6 too (RFC 6935)."""
    assert end.send(gue(over, inner(4), chksum=0)) == (Verdict.PASS, bytes(ETHER / inner(4)))


@pytest.mark.parametrize("over", [4, 6])
def test_udp_checksums_of_any_length_are_verified(end: Both, over: int) -> None:
    """Right ones hold and one wrong bit anywhere is noticed, whatever the length divides by."""
    chance = random.Random(over)  # noqa: S311 - reproducible, not secret
    for size in [*range(70), *range(180, 300), *range(470, 490), 1400, 1401, 3000]:
        frame = gue(over, inner(4, "".join(chr(chance.randrange(32, 127)) for _ in range(size))))
        assert end.send(frame)[0] == Verdict.PASS
        start = 14 + (20 if over == 4 else 40)
        broken = bytearray(frame)
        broken[chance.randrange(start + 8 + 40, len(frame)) if size else -1] ^= 1 << size % 8
        assert end.send(bytes(broken))[0] == Verdict.DROP
    kind = Outcome.GUE_OVER_FOUR if over == 4 else Outcome.GUE_OVER_SIX
    assert end.check().keys() == {kind, Outcome.BAD_CHECKSUM}


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
def test_congestion_marks_come_out_of_the_tunnel(end: Both, over: int, version: int) -> None:
    """All sixteen combinations of outer and inner ECN, with an IPv4 checksum that stays right."""
    for inside, row in ECN.items():
        for outside, expected in enumerate(row):
            packet = inner(version, tos=0xB8 | inside)
            verdict, out = end.send(tunnelled(over, packet, tos=outside))
            if expected is None:
                assert verdict == Verdict.DROP
            else:
                # Scapy computes the checksum of what is expected afresh.
                assert out == bytes(ETHER / inner(version, tos=0xB8 | expected))
    end.check()


def test_ethernet_padding_is_left_to_the_stack(end: Both) -> None:
    """The smallest frames are padded to 60 bytes; the inner length bounds the content."""
    packet = IP(src="10.77.11.2", dst="10.99.0.1") / UDP(dport=7)
    assert end.send(tunnelled(4, packet) + bytes(4))[1] == bytes(ETHER / packet) + bytes(4)


def test_the_header_of_outcomes_is_the_generated_one() -> None:
    """bpf/tunnel.h equals the specification."""
    assert files("tidegate.bpf").joinpath("tunnel.h").read_text() == tunnel.render()
