# SPDX-License-Identifier: Apache-2.0
"""Fragments: where the later ones go, and for whom they and other packets of no flow count."""

from dataclasses import replace
from ipaddress import ip_network

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw

from support.documents.roster import VIP4, backend, desired, generations, vip, web
from support.packets.both import Both
from support.packets.frames import ETHER, ip4, ip6, tcp
from tidegate.model.decision import Decision, Reason

pytestmark = pytest.mark.root

ROSTER = web(backend("b1"), backend("b2"), backend("b3"))


def serve(both: Both, roster: object = ROSTER) -> None:
    both.install(generations(roster)[-1])  # type: ignore[arg-type]


def fragments_of(ip: Packet) -> list[bytes]:
    """Return a datagram of 3,000 bytes in three fragments."""
    payload = bytes(UDP(sport=40000, dport=53) / (b"x" * 2992))
    parts = [payload[i : i + 1200] for i in range(0, len(payload), 1200)]
    found = []
    for i, part in enumerate(parts):
        more = i < len(parts) - 1
        if isinstance(ip, IP):
            head = IP(src=ip.src, dst=ip.dst, id=77, proto=17, flags="MF" if more else 0)
            head.frag = i * 150
        else:
            head = IPv6(src=ip.src, dst=ip.dst) / IPv6ExtHdrFragment(
                nh=17, id=77, offset=i * 150, m=int(more)
            )
        found.append(bytes(ETHER / head / Raw(part)))
    return found


@pytest.mark.parametrize("ip", [ip4(), ip6()], ids=["v4", "v6"])
def test_fragments_of_a_datagram_reach_one_backend(both: Both, ip: Packet) -> None:
    """In any order behind the first; before it, or too late, they are dropped and counted."""
    serve(both)
    first, second, third = fragments_of(ip)
    assert both.send(second).reason == Reason.FRAGMENT
    owner = both.send(first).backend
    for later in (third, second, third):
        result = both.send(later)
        assert (result.decision, result.backend) == (Decision.FRAGMENT, owner)
    both.age(70)
    assert both.send(second).reason == Reason.FRAGMENT


def test_later_fragments_count_for_the_vip_of_the_first(both: Both) -> None:
    """Though they are found by their address, which another VIP has, too."""
    vips = [vip("a", VIP4, 1), vip("dns", VIP4, 53, "udp"), vip("z", VIP4, 99)]
    serve(both, desired(vips, [backend("b1")]))
    first, second, _ = fragments_of(ip4())
    assert both.send(first).vip == both.send(second).vip
    counted = {id_: c.packets for id_, c in both.state.vip_counters.items() if c.packets}
    assert list(counted.values()) == [2]
    assert not both.state.address_counters


def test_what_is_of_no_flow_counts_for_the_address(both: Both) -> None:
    """Whichever of its VIPs came first has no drops and no answers by it; two addresses are two."""
    vips = [vip("a", VIP4, 80), vip("b", VIP4, 443), vip("c", "192.0.2.77", 80)]
    serve(both, desired(vips, [backend("b1")]))
    ping, strange = ETHER / ip4() / ICMP(), ETHER / ip4() / ICMP(type=3, code=1) / (b"x" * 40)
    orphan = ETHER / ip4(frag=100) / (b"x" * 40)
    other = tcp("S", ip4(to="192.0.2.77"), dport=81)
    results = [both.send(bytes(frame)) for frame in (ping, strange, orphan, other)]
    assert [result.vip for result in results] == [None] * 4
    assert not both.state.vip_counters
    first, second = both.state.address_counters.values()
    assert (first.answered, first.drops) == (1, {Reason.ICMP_UNKNOWN: 1, Reason.FRAGMENT: 1})
    assert (second.answered, second.drops) == (0, {Reason.UNSERVED: 1})


def test_a_denied_later_fragment_counts_for_its_vip(both: Both) -> None:
    """The first one said whose it is, though it passed before the client was denied."""
    vips = [vip("a", VIP4, 1), vip("dns", VIP4, 53, "udp")]
    both.want(desired(vips, [backend("b1")]))
    first, second, _ = fragments_of(ip4())
    owner = both.send(first).vip
    denied = [vips[0], replace(vips[1], deny=(ip_network("10.77.0.0/24"),))]
    both.want(desired(denied, [backend("b1")]))
    result = both.send(second)
    assert (result.reason, result.vip) == (Reason.DENIED, owner)
    assert both.state.vip_counters[owner].drops == {Reason.DENIED: 1}
