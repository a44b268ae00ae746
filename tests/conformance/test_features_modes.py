# SPDX-License-Identifier: Apache-2.0
"""Tracking modes over the life of a window, hash fields and seed, and the limit on new entries."""

from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6EchoRequest

from support.documents.roster import backend, desired, vip
from support.packets.both import Both, both_engines
from support.packets.frames import ETHER, ip4, ip6, tcp, udp
from support.packets.kernel import BUILD
from tidegate.model.decision import Decision
from tidegate.model.document_types import Tracking
from tidegate.model.values import Backend, Desired
from tidegate.spec import Verdict

pytestmark = pytest.mark.root

PORTS = range(40000, 40040)
THREE, FOUR = (tuple(backend(f"b{i}") for i in range(1, n + 1)) for n in (3, 4))


def wanted(tracking: Tracking, backends: tuple[Backend, ...], **options: int) -> Desired:
    vips = [vip("t", "10.99.0.1", tracking=tracking)]
    vips.append(vip("u", "10.99.0.1", 53, "udp", tracking=tracking))
    return desired(vips, list(backends), **options)


def acks(both: Both) -> dict[int, int | None]:
    return {s: both.send(tcp("A", sport=s)).backend for s in PORTS}


def decisions(both: Both) -> dict[int, Decision | None]:
    return {s: both.send(tcp("A", sport=s)).decision for s in PORTS}


def test_transition_reads_no_entry_in_a_steady_state(both: Both) -> None:
    """A slot that never changed is not flagged, so entries that are there are not looked at."""
    both.want(wanted("full", THREE))
    acks(both)
    assert set(decisions(both).values()) == {Decision.TRACKED}
    both.want(wanted("transition", THREE))
    assert set(decisions(both).values()) == {Decision.CURRENT}


def test_a_flow_tracked_in_a_window_is_found_when_it_has_closed(both: Both) -> None:
    """The slot stays marked: its flows may live for as long as they like."""
    both.want(wanted("transition", THREE, window=5))
    before = acks(both)
    both.want(wanted("transition", FOUR, window=5))
    assert acks(both) == before
    tracked = len(both.state.flows.entries)
    both.want(wanted("transition", FOUR, window=5), after=6)
    assert not any(p.table.window.any() for p in both.generation.pools.values())
    after = decisions(both)
    assert acks(both) == before
    assert sum(d is Decision.TRACKED for d in after.values()) == tracked > 0
    assert set(after.values()) == {Decision.TRACKED, Decision.CURRENT}
    fresh = [both.send(tcp("A", sport=s)).decision for s in range(50000, 50040)]
    assert set(fresh) == {Decision.CURRENT}  # a new flow is not tracked, in a marked slot either
    assert len(both.state.flows.entries) == tracked


def test_none_never_tracks_and_follows_the_table(both: Both) -> None:
    """No entry in a window either, of TCP or of UDP: a flow whose slot moves, moves."""
    both.want(wanted("none", THREE))
    before = acks(both)
    both.send(udp())
    both.want(wanted("none", FOUR))
    after = acks(both)
    both.send(udp())
    assert before != after
    assert {s for s in PORTS if before[s] != after[s]} == {
        s for s in PORTS if after[s] == both.id_of("b4")
    }
    assert both.send(tcp("S")).decision == Decision.SYN
    assert both.state.flows.entries == both.state.syns.entries == {}


def test_datagrams_are_tracked_in_transition_too(both: Both) -> None:
    """A datagram does not say whether its flow is new, so each flow has an entry at all times."""
    both.want(wanted("transition", THREE))
    before = {s: both.send(udp(sport=s)).backend for s in PORTS}
    both.want(wanted("transition", FOUR))
    assert {s: both.send(udp(sport=s)).backend for s in PORTS} == before
    assert len(both.state.flows.entries) == len(PORTS)


def test_an_any_port_vip_keeps_flows_by_port_over_a_change(both: Both) -> None:
    """Each of a client's ports has an entry of its own, which holds when the table changes."""
    both.want(desired([vip("any", "10.99.0.1", 0)], list(THREE)))
    frames = [tcp("A", dport=d) for d in range(1, 60)]
    before = both.backends(frames)
    assert set(before) == {"b1", "b2", "b3"}
    both.want(desired([vip("any", "10.99.0.1", 0)], list(FOUR)))
    assert both.backends(frames) == before
    assert "b4" in both.backends(tcp("S", dport=d) for d in range(100, 160))


def moved(tracking: Tracking, pool: str) -> Desired:
    """Return one VIP that either of two pools may serve."""
    servers = [backend(f"b{i}", pool="old" if i < 4 else "new") for i in range(1, 7)]
    spare = vip("spare", "10.99.0.9", pool="old"), vip("spare2", "10.99.0.8", pool="new")
    return desired([vip("t", "10.99.0.1", tracking=tracking, pool=pool), *spare], servers)


def test_established_flows_stay_when_the_vip_changes_its_pool(both: Both) -> None:
    """An entry names a backend, whatever pool the VIP has now; new flows go to the new pool."""
    both.want(moved("full", "old"))
    before = acks(both)
    both.want(moved("full", "new"))
    assert acks(both) == before
    fresh = both.backends(tcp("S", sport=s) for s in range(50000, 50040))
    assert set(fresh) == {"b4", "b5", "b6"}


def test_full_tracking_first_makes_a_change_of_pool_safe(both: Both) -> None:
    """In a steady state `transition` has no entries; with `full` the next packet makes one."""
    both.want(moved("transition", "old"))
    before = acks(both)
    both.want(moved("full", "old"))
    assert acks(both) == before
    both.want(moved("full", "new"))
    assert acks(both) == before


def test_source_and_port_spread_over_ports_alone(both: Both) -> None:
    """One client: all flows to one port share a slot, and ports spread."""
    both.want(desired([vip("any", "10.99.0.1", 0, hash="source+port")], list(FOUR)))
    slots = {d: {both.send(tcp("S", dport=d, sport=s)).slot for s in PORTS} for d in range(1, 20)}
    assert {len(of_port) for of_port in slots.values()} == {1}
    assert len({slot for of_port in slots.values() for slot in of_port}) > 15


def test_the_five_tuple_spreads_one_client(both: Both) -> None:
    """The default: a client's flows go to all backends."""
    both.want(desired([vip("web", "10.99.0.1")], list(FOUR)))
    assert set(both.backends(tcp("S", sport=s) for s in PORTS)) == {"b1", "b2", "b3", "b4"}


def test_another_seed_aims_elsewhere(both: Both) -> None:
    """Who does not know the fleet's seed cannot choose flows that share a slot."""
    both.want(wanted("full", THREE))
    slots = [both.send(tcp("S", sport=s)).slot for s in PORTS]
    with both_engines(replace(BUILD, hash_seed=b"another fleet", features=frozenset())) as other:
        other.want(desired([vip("t", "10.99.0.1")], list(THREE)))
        others = [other.send(tcp("S", sport=s)).slot for s in PORTS]
    assert sum(a == b for a, b in zip(slots, others, strict=True)) <= 1
    assert len(set(slots)) == len(set(others)) == len(PORTS)


def test_a_flow_beyond_the_entry_limit_keeps_its_backend(both: Both) -> None:
    """It is not tracked, and the table names the same owner for each of its packets."""
    both.want(desired([vip("web", "10.99.0.1", insert_limit=1)], list(THREE)))
    both.send(tcp("A", sport=1))
    first = both.send(tcp("S", sport=2))
    found = [both.send(tcp(flags, sport=2)) for flags in ("A", "PA", "FA")]
    assert {r.backend for r in found} == {first.backend}
    assert {r.decision for r in found} == {Decision.CURRENT}
    assert len(both.state.flows.entries) == 1


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.98.4.0/24", "10.98.4.255", "10.98.5.0"),
        ("fd98:4::/64", "fd98:4::ffff:ffff:ffff:ffff", "fd98:4:0:1::"),
    ],
)
def test_every_address_of_a_network_is_the_vip(
    both: Both, network: str, inside: str, outside: str
) -> None:
    """To its last address: for TCP, and for pings, which that address answers."""
    ip, echo = (ip6, ICMPv6EchoRequest()) if ":" in network else (ip4, ICMP())
    both.want(desired([vip("net", network)], list(THREE)))
    assert both.send(tcp("S", ip(to=inside))).verdict == Verdict.TX
    assert both.send(bytes(ETHER / ip(to=inside) / echo)).verdict == Verdict.TX
    assert both.send(tcp("S", ip(to=outside))).verdict == Verdict.PASS
    assert both.send(bytes(ETHER / ip(to=outside) / echo)).verdict == Verdict.PASS


def test_the_longest_network_wins(both: Both) -> None:
    """Networks within networks, each with a pool of its own."""
    nets = {"wide": "10.96.0.0/14", "middle": "10.98.0.0/16", "narrow": "10.98.4.0/24"}
    vips = [vip(name, net, pool=name) for name, net in nets.items()]
    pools = [backend(f"b{i}", pool=name) for i, name in enumerate(nets, 1)]
    both.want(desired(vips, pools))
    frames = [tcp("S", ip4(to=to)) for to in ("10.97.0.1", "10.98.0.1", "10.98.4.1")]
    assert both.backends(frames) == ["b1", "b2", "b3"]
