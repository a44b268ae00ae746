# SPDX-License-Identifier: Apache-2.0
"""Hand-written packet cases: what is expected of one frame, from the spec and from the kernel."""

from collections import Counter

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

from support.documents.roster import backend, generations, web
from support.packets.both import Both
from support.packets.frames import CLIENT4, ETHER, ip4, ip6, tcp, udp
from support.packets.kernel import LINK
from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import Generation
from tidegate.model.values import BackendKey
from tidegate.planner import plan
from tidegate.spec import Result, State, Verdict, process

pytestmark = pytest.mark.root


ROSTER4 = web(backend("b1"), backend("b2"), backend("b3"))
ROSTER6 = web(backend("b1", "fd01::1"), backend("b2", "fd01::2"))

NOT_OURS = {
    "ARP": bytes(ETHER / ARP()),
    "an empty Ethernet frame": bytes(ETHER),
    "TCP to another address": tcp("S", ip4(to="10.99.0.77")),
    "a ping to another address": bytes(ETHER / ip4(to="10.99.0.77") / ICMP()),
    "a ping to another IPv6 address": bytes(ETHER / ip6(to="fd99::77") / ICMPv6EchoRequest()),
    "a later fragment for another address": bytes(
        ETHER / ip4(to="10.99.0.77", frag=100) / (b"x" * 40)
    ),
    "a neighbour solicitation for a VIP": bytes(ETHER / ip6() / ICMPv6ND_NS(tgt="fd99::1")),
    "a timestamp request to a VIP": bytes(ETHER / ip4() / ICMP(type=13)),
    "a truncated IPv4 header": tcp("S")[:30],
    "a truncated IPv6 header": tcp("S", ip6())[: 14 + 39],
    "IPv4 with an IPv6 ethertype": bytes(Ether(type=0x86DD) / bytes(ip4() / (b"x" * 60))),
    "an IPv4 header length of 4 words": bytes(ETHER / ip4(ihl=4)) + b"x" * 60,
    "three VLAN tags": bytes(ETHER / Dot1Q() / Dot1Q() / Dot1Q() / ip4() / TCP(dport=80)),
    "a truncated VLAN tag": bytes(ETHER / Dot1Q(vlan=5))[:16],
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_what_is_not_for_a_vip_passes_untouched(both: Both, name: str) -> None:
    """Nothing is dropped, changed or counted before the VIP look-up finds that it is ours."""
    both.install(generations(ROSTER4)[-1])
    frame = NOT_OURS[name]

    assert both.send(frame) == Result(Verdict.PASS, frame)
    assert not both.state.vip_counters


@pytest.mark.parametrize("ip", [ip4(), ip6()], ids=["v4", "v6"])
@pytest.mark.parametrize("roster", [ROSTER4, ROSTER6], ids=["to v4", "to v6"])
def test_a_packet_leaves_whole_inside_an_outer_header(both: Both, ip: IP, roster: object) -> None:
    """IPIP, IP6IP6, IP4IP6 and 6-in-4: fresh outer header, untouched inner packet."""
    both.install(generations(roster)[-1])  # type: ignore[arg-type]
    frame = tcp("S", ip, data="payload")

    out = Ether(both.send(frame).frame)

    assert bytes(out.payload.payload) == frame[14:]
    assert out.src == "02:00:00:00:00:01"
    outer = out.payload
    if isinstance(outer, IP):
        assert (out.dst, outer.ttl, outer.flags) == ("02:00:00:00:00:04", 64, "DF")
        assert outer.src.startswith("10.254.")
        fresh = outer.copy()
        del fresh.chksum
        assert IP(bytes(fresh)).chksum == outer.chksum
        assert outer.len == 20 + len(frame) - 14
    else:
        assert isinstance(outer, IPv6)
        assert (out.dst, outer.hlim) == ("02:00:00:00:00:06", 64)
        assert outer.src.startswith("fd54::")
        assert outer.plen == len(frame) - 14
    assert outer.fields.get("proto", outer.fields.get("nh")) == (4 if isinstance(ip, IP) else 41)


def test_tos_is_copied_to_the_outer_header(both: Both) -> None:
    """ECN and DSCP must be seen by the routers on the way (RFC 6040)."""
    both.install(generations(ROSTER4)[-1])
    assert Ether(both.send(tcp("S", ip4(tos=0xB9))).frame).tos == 0xB9
    assert Ether(both.send(tcp("S", ip6(tc=0xB9))).frame).tos == 0xB9


def test_ip_options_do_not_hide_the_ports(both: Both) -> None:
    """The transport header is looked for behind the options."""
    both.install(generations(ROSTER4)[-1])
    frame = tcp("S", ip4(options=[IPOption_NOP()] * 8))
    assert both.send(frame).verdict == Verdict.TX


def test_ethernet_padding_does_not_count_as_payload(both: Both) -> None:
    """The outer length is that of the inner packet, not of the frame."""
    both.install(generations(ROSTER4)[-1])
    out = Ether(both.send(tcp("A") + b"\0" * 6).frame)
    assert out.len == 20 + 40
    assert len(bytes(out)) == 14 + 20 + 40


def test_flow_of_a_tcp_connection(both: Both) -> None:
    """A SYN takes the current owner and no entry; the first ACK tracks; the rest hit."""
    both.install(generations(ROSTER4)[-1])
    syn, ack, again = (both.send(tcp(flags)) for flags in ("S", "A", "PA"))
    assert [r.decision for r in (syn, ack, again)] == [
        Decision.SYN,
        Decision.CURRENT,
        Decision.TRACKED,
    ]
    assert syn.backend == ack.backend == again.backend
    assert len(both.state.flows.entries) == 1


def test_a_reset_is_forwarded_and_not_tracked(both: Both) -> None:
    """A reset ends its flow, so it is not worth an entry."""
    both.install(generations(ROSTER4)[-1])
    assert both.send(tcp("R")).verdict == Verdict.TX
    assert both.state.flows.entries == {}


def test_a_datagram_is_tracked_at_once(both: Both) -> None:
    """A datagram does not show whether its flow is new."""
    both.install(generations(ROSTER4)[-1])
    assert both.send(udp()).decision == Decision.DATAGRAM
    assert both.send(udp()).decision == Decision.TRACKED


def _moved_source(both: Both, before: Generation, after: Generation) -> int:
    """Return a source port whose slot has another owner after the change, by the spec alone."""
    for sport in range(40000, 41000):
        owners = []
        for generation in (before, after):
            trial = State(both.state.settings, both.state.links)
            trial.install(generation)
            owners.append(process(trial, tcp("S", sport=sport), 1).backend)
        if owners[0] != owners[1]:
            return sport
    raise AssertionError("no slot moved in a thousand")


def test_a_flow_from_before_the_change_stays_with_the_fallback(both: Both) -> None:
    """Untracked and not a SYN: it was born before the window, so the owner of then has it."""
    before, after = generations(ROSTER4, web(*(backend(f"b{i}") for i in range(1, 6))))
    sport = _moved_source(both, before, after)
    both.install(before)
    syn = both.send(tcp("S", sport=sport))
    both.install(after)
    ack = both.send(tcp("A", sport=sport))
    assert (ack.decision, ack.backend) == (Decision.FALLBACK, syn.backend)
    assert both.send(tcp("A", sport=sport)).decision == Decision.TRACKED


def test_a_flow_born_in_the_window_stays_where_its_syn_went(both: Both) -> None:
    """The SYN table distinguishes it from earlier flows, though the slot moves on meanwhile."""
    five = [backend(f"b{i}") for i in range(1, 6)]
    before, after, back = generations(ROSTER4, web(*five), ROSTER4)
    sport = _moved_source(both, before, after)
    both.install(before)
    both.install(after)
    syn = both.send(tcp("S", sport=sport))
    both.install(back)  # the slot is back with its first owner, and its window is still open
    ack = both.send(tcp("A", sport=sport))
    assert (ack.decision, ack.backend) == (Decision.FRESH, syn.backend)


def test_a_mark_counts_for_what_continues_from_its_syn_alone(both: Both) -> None:
    """A forged SYN in a window must not move the flow from before it, which is untracked."""
    five = [backend(f"b{i}") for i in range(1, 6)]
    before, after = generations(ROSTER4, web(*five))
    sport = _moved_source(both, before, after)
    both.install(before)
    owner = both.send(tcp("S", sport=sport)).backend
    both.install(after)
    forged = both.send(tcp("S", sport=sport, seq=0x20000))
    assert forged.backend != owner
    ack = both.send(tcp("A", sport=sport))
    assert (ack.decision, ack.backend) == (Decision.FALLBACK, owner)


@pytest.mark.parametrize(("seq", "is_followed"), [(1, True), (0xFFFF + 1, True), (0x10001, False)])
def test_a_flow_is_found_by_its_mark_within_a_window(
    both: Both, seq: int, *, is_followed: bool
) -> None:
    """The first packet after the SYN may be lost; a SYN-ACK lets a client send 65,535 bytes."""
    five = [backend(f"b{i}") for i in range(1, 6)]
    before, after = generations(ROSTER4, web(*five))
    sport = _moved_source(both, before, after)
    both.install(before)
    both.install(after)
    both.send(tcp("S", sport=sport))
    decision = both.send(tcp("PA", sport=sport, seq=seq)).decision
    assert decision == (Decision.FRESH if is_followed else Decision.FALLBACK)


def test_a_syn_that_is_sent_again_goes_where_it_went(both: Both) -> None:
    """Its server may have answered already, though the slot has moved on meanwhile."""
    five = [backend(f"b{i}") for i in range(1, 6)]
    before, after, back = generations(ROSTER4, web(*five), ROSTER4)
    sport = _moved_source(both, before, after)
    both.install(before)
    both.install(after)
    syn = both.send(tcp("S", sport=sport))
    both.install(back)
    again = both.send(tcp("S", sport=sport))
    assert (again.decision, again.backend) == (Decision.SYN, syn.backend)
    other = both.send(tcp("S", sport=sport, seq=7))
    assert other.backend != syn.backend
    assert both.send(tcp("A", sport=sport, seq=8)).backend == other.backend


def test_drain_keeps_flows_and_takes_no_new_ones(both: Both) -> None:
    """Membership change: out of the table, still there for its flows."""
    drained = web(backend("b1"), backend("b2", state="drain"), backend("b3"))
    before, after = generations(ROSTER4, drained)
    both.install(before)
    first = {s: both.send(tcp("A", sport=s)).backend for s in range(40000, 40020)}
    both.install(after)
    gone = after.backends[next(k for k in after.backends if k.name == "b2")].identity.id
    assert gone in first.values()
    assert {s: both.send(tcp("A", sport=s)).backend for s in first} == first
    assert all(both.send(tcp("S", sport=s)).backend != gone for s in range(50000, 50020))


def test_a_drains_deadline_ends_the_flows_that_are_left(both: Both) -> None:
    """Until then they stay; then they go elsewhere at once, with no change of any table."""
    drained = web(
        backend("b1"), backend("b2", state="drain", drain_deadline=1005), backend("b3"), window=0
    )
    before, after = generations(ROSTER4, drained)
    both.install(before)
    first = {s: both.send(tcp("A", sport=s)).backend for s in range(40000, 40020)}
    both.install(after)
    assert {s: both.send(tcp("A", sport=s)).backend for s in first} == first
    both.install(plan(drained, after, 1005))
    gone = after.backends[BackendKey("web", "b2")].identity.id
    moved = {s: both.send(tcp("A", sport=s)).backend for s in first}
    assert gone in first.values()
    assert gone not in moved.values()
    assert {s: b for s, b in first.items() if b != gone}.items() <= moved.items()


@pytest.mark.parametrize("send", [lambda s: tcp("A", sport=s), lambda s: udp(sport=s)])
def test_quarantine_moves_established_flows_at_once(both: Both, send: object) -> None:
    """Failure: one flag in the entry, and the next packet goes elsewhere, and stays there."""
    failed = web(backend("b1"), backend("b2", state="quarantine"), backend("b3"))
    before, after = generations(ROSTER4, failed)
    both.install(before)
    first = {s: both.send(send(s)).backend for s in range(40000, 40020)}  # type: ignore[operator]
    both.install(after)
    gone = after.backends[next(k for k in after.backends if k.name == "b2")].identity.id
    moved = {s: both.send(send(s)).backend for s in first}  # type: ignore[operator]
    assert gone not in moved.values()
    assert {s: b for s, b in first.items() if b != gone}.items() <= moved.items()
    assert {s: both.send(send(s)).backend for s in moved} == moved  # type: ignore[operator]


def test_a_changed_address_is_followed_by_established_flows(both: Both) -> None:
    """The id stays, so a flow goes where the backend went, to another family too."""
    before, after = generations(web(backend("b1")), web(backend("b1", "fd01::1")), now=1000)
    both.install(before)
    old = both.send(tcp("A"))
    both.install(after)
    new = both.send(tcp("A"))
    assert (old.backend, new.decision) == (new.backend, Decision.TRACKED)
    assert Ether(new.frame)[IPv6].dst == "fd01::1"


def test_a_retired_backend_loses_its_flows_to_the_table(both: Both) -> None:
    """After the deregistration delay the entry's incarnation no longer matches."""
    two = [web(backend("b1"), backend("b2"), delay=1), web(backend("b1"), delay=1)]
    before, draining, retired = generations(two[0], two[1], two[1])
    both.install(before)
    ports = range(40000, 40020)
    first = {s: both.send(tcp("A", sport=s)).backend for s in ports}
    both.install(draining)
    assert {s: both.send(tcp("A", sport=s)).backend for s in ports} == first
    both.install(retired)
    assert len({both.send(tcp("A", sport=s)).backend for s in ports}) == 1


DROPS = {
    Reason.BAD_LENGTH: [tcp("S", ip4(len=41)), tcp("S", ip4(len=39)), tcp("S", ip6(plen=21))],
    Reason.FRAGMENT: [bytes(ETHER / ip4(frag=100) / (b"x" * 40))],
    Reason.ICMP_UNKNOWN: [bytes(ETHER / ip4() / ICMP(type=3, code=1) / (b"x" * 40))],
}


@pytest.mark.parametrize("reason", DROPS)
def test_every_drop_has_a_reason_that_is_counted(both: Both, reason: Reason) -> None:
    """What is for a VIP and cannot be forwarded is dropped by name."""
    both.install(generations(ROSTER4)[-1])
    for frame in DROPS[reason]:
        assert both.send(frame).reason == reason
    assert _all_drops(both) == {reason: len(DROPS[reason])}


def _all_drops(both: Both) -> Counter[Reason]:
    """Return the drops of all VIPs and addresses by reason."""
    state = both.state
    each = (*state.vip_counters.values(), *state.address_counters.values())
    return sum((counters.drops for counters in each), Counter())


def test_no_backend(both: Both) -> None:
    """A pool without a usable backend drops."""
    both.install(generations(web(backend("b1", state="quarantine")))[-1])
    assert both.send(tcp("S")).reason == Reason.NO_BACKEND


def test_no_gateway(both: Both) -> None:
    """Without a next hop there is nowhere to send; the other family is not affected."""
    link = LINK._replace(gateway4=None)
    both.kernel.link(link)
    both.state.links = {1: link}
    both.install(generations(web(backend("b1"), backend("b2", "fd01::2")))[-1])
    results = {both.send(tcp("S", sport=s)).reason for s in range(40000, 40020)}
    assert results == {Reason.NO_GATEWAY, Reason.NONE}


def test_hash_is_the_same_for_every_packet_of_a_flow(both: Both) -> None:
    """Outer source and slot depend on the flow alone, which routers behind rely on."""
    both.install(generations(ROSTER4)[-1])
    sources = {Ether(both.send(tcp(f, ip4(CLIENT4, id=i))).frame).src for i, f in enumerate("SAA")}
    outer = {Ether(both.send(tcp(f)).frame)[IP].src for f in ("S", "A", "FA")}
    assert len(sources) == len(outer) == 1
