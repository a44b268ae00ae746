# SPDX-License-Identifier: Apache-2.0
"""VIPs, tracking, and clients: any port, networks, modes, hash fields, routes, denials, limits."""

from ipaddress import ip_network

import pytest

from support.documents.roster import backend, desired, generations, vip
from support.packets.both import Both
from support.packets.frames import ip4, ip6, tcp, udp
from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import Generation
from tidegate.model.values import SourceRoute, SynLimit, Vip
from tidegate.spec import Verdict

pytestmark = pytest.mark.root

FOUR = [backend(f"b{i}") for i in range(1, 5)]


def serve(both: Both, *vips: Vip, **options: object) -> Generation:
    generation = generations(desired(list(vips), FOUR, **options))[-1]  # type: ignore[arg-type]
    both.install(generation)
    return generation


def id_of(generation: Generation, name: str) -> int:
    return generation.vips[name].identity.id


def test_the_exact_port_comes_before_any_port(both: Both) -> None:
    """And any port before a network, and the longer network before the shorter one."""
    made = serve(
        both,
        vip("exact", "10.99.0.1", 80),
        vip("any", "10.99.0.1", 0),
        vip("near", "10.99.0.0/24", 80),
        vip("far", "10.98.0.0/15", 80),
    )
    wanted = {
        tcp("S"): "exact",
        tcp("S", dport=81): "any",
        tcp("S", ip4(to="10.99.0.2")): "near",
        tcp("S", ip4(to="10.99.1.2")): "far",
    }
    for frame, name in wanted.items():
        assert both.send(frame).vip == id_of(made, name)
    assert both.send(tcp("S", ip4(to="10.99.1.2"), dport=81)).reason == Reason.UNSERVED


def test_an_any_port_vip_keeps_each_port_apart(both: Both) -> None:
    """Flows of one client port to two ports are two flows, each with an entry."""
    serve(both, vip("any", "10.99.0.1", 0))
    for dport in (80, 443, 80, 443):
        both.send(tcp("A", dport=dport))
    assert len(both.state.flows.entries) == 2


@pytest.mark.parametrize(
    ("network", "hosts"),
    [
        ("10.99.4.0/24", [ip4(to="10.99.4.1"), ip4(to="10.99.4.2")]),
        ("fd99:4::/64", [ip6(to="fd99:4::1"), ip6(to="fd99:4::2")]),
    ],
)
def test_a_network_vip_keeps_addresses_apart(both: Both, network: str, hosts: list[object]) -> None:
    """One client port to two addresses of it: two flows."""
    serve(both, vip("net", network))
    for ip in (*hosts, *hosts):
        assert both.send(tcp("A", ip)).verdict == Verdict.TX
    assert len(both.state.flows.entries) == 2


def test_full_tracking_has_an_entry_per_flow_and_none_has_none(both: Both) -> None:
    """What the mode promises of the connection table."""
    serve(both, vip("full", "10.99.0.1"), vip("none", "10.99.0.2", tracking="none"))
    for sport in range(40000, 40010):
        both.send(tcp("A", sport=sport))
        both.send(tcp("A", ip4(to="10.99.0.2"), sport=sport))
    assert len(both.state.flows.entries) == 10


def test_transition_tracking_needs_no_table_in_a_steady_state(both: Both) -> None:
    """Entries are made only in slots that changed, and those slots stay marked."""
    options = {"tracking": "transition"}
    steady = desired([vip("t", "10.99.0.1", **options)], FOUR[:3])
    changed = desired([vip("t", "10.99.0.1", **options)], FOUR)
    first, second = generations(steady, changed)
    both.install(first)
    ports = range(40000, 40040)
    before = {s: both.send(tcp("A", sport=s)).backend for s in ports}
    assert both.state.flows.entries == {}
    both.install(second)
    after = {s: both.send(tcp("A", sport=s)) for s in ports}
    assert {s: result.backend for s, result in after.items()} == before
    moved = [s for s in ports if after[s].decision == Decision.FALLBACK]
    assert 0 < len(moved) == len(both.state.flows.entries) < 40


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ("source", {(80, 1), (80, 2), (81, 1)}),
        ("source+port", {(80, 1), (80, 2)}),
    ],
)
def test_hash_fields_keep_a_client_on_a_slot(
    both: Both, fields: str, same: set[tuple[int, int]]
) -> None:
    """Source alone, or source and destination port: what is left out does not count."""
    serve(both, vip("any", "10.99.0.1", 0, hash=fields))
    slots = {both.send(tcp("S", sport=s, dport=d)).slot for d, s in same}
    assert len(slots) == 1
    many = {both.send(tcp("S", ip4(f"10.77.1.{i}"))).slot for i in range(1, 30)}
    assert len(many) > 20


def test_a_udp_flow_is_forgotten_when_idle(both: Both) -> None:
    """After the timeout the entry no longer counts, and the next datagram makes a new one."""
    serve(both, vip("dns", "10.99.0.1", 53, "udp", udp_idle_timeout=30))
    decisions = []
    for idle in (0, 29, 45):
        both.age(idle)
        decisions.append(both.send(udp()).decision)
    assert decisions == [Decision.DATAGRAM, Decision.TRACKED, Decision.DATAGRAM]


def test_new_entries_have_a_limit(both: Both) -> None:
    """Beyond it flows are forwarded and not tracked, so that a flood evicts nobody."""
    serve(both, vip("web", "10.99.0.1", insert_limit=1))
    results = [both.send(tcp("A", sport=s)) for s in range(40000, 40005)]
    assert {r.verdict for r in results} == {Verdict.TX}
    (counters,) = both.state.vip_counters.values()
    assert (counters.tracked, counters.untracked) == (1, 4)
    assert len(both.state.flows.entries) == 1


@pytest.mark.parametrize(
    ("near", "far"),
    [
        ([ip4("10.77.0.1"), ip4("10.77.0.2")], ip4("10.77.1.1")),
        ([ip6("fd77::1"), ip6("fd77::2")], ip6("fd77:1::1")),
    ],
)
def test_syns_have_a_limit_by_source_prefix(both: Both, near: list[object], far: object) -> None:
    """One prefix's share is its own; what is established is not touched."""
    limit = SynLimit(1, 24, 48)
    serve(both, vip("w4", "10.99.0.1", syn_limit=limit), vip("w6", "fd99::1", syn_limit=limit))
    assert both.send(tcp("S", near[0])).verdict == Verdict.TX
    assert both.send(tcp("S", near[1])).reason == Reason.SYN_LIMIT
    assert both.send(tcp("A", near[1])).verdict == Verdict.TX
    assert both.send(tcp("S", far)).verdict == Verdict.TX


def test_clients_are_routed_and_denied_by_the_longest_prefix(both: Both) -> None:
    """A pool of their own for some, nothing for others, also for what is established."""
    routes = (SourceRoute(ip_network("10.77.0.0/16"), "canary"),)
    deny = (ip_network("10.77.9.0/24"), ip_network("10.66.0.0/16"))
    canary = backend("c1", "10.3.0.1", pool="canary")
    open_ = desired([vip("web", "10.99.0.1")], [*FOUR, canary])
    closed = desired([vip("web", "10.99.0.1", source_routes=routes, deny=deny)], [*FOUR, canary])
    before, after = generations(open_, closed)
    both.install(before)
    both.send(tcp("A", ip4("10.66.0.1")))
    both.install(after)
    id_ = after.backends[canary.key].identity.id
    assert both.send(tcp("S", ip4("10.77.1.1"))).backend == id_
    assert both.send(tcp("S", ip4("10.78.1.1"))).backend != id_
    assert both.send(tcp("S", ip4("10.77.9.1"))).reason == Reason.DENIED
    assert both.send(tcp("A", ip4("10.66.0.1"))).reason == Reason.DENIED


def test_ipv6_clients_are_routed_and_denied(both: Both) -> None:
    """The same in the other family."""
    serve(both, vip("web", "fd99::1", deny=(ip_network("fd66::/32"),)))
    assert both.send(tcp("S", ip6("fd66::5"))).reason == Reason.DENIED
    assert both.send(tcp("S", ip6("fd77::5"))).verdict == Verdict.TX
