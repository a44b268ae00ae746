# SPDX-License-Identifier: Apache-2.0
"""Floods against small tables: what they may not do to flows and handshakes that were there.

`./dev bench flood` sends millions of packets at tables of the default size.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest

from support.documents.roster import VIP4, backend, desired, vip
from support.packets.both import Both, both_engines
from support.packets.frames import ip4, tcp, udp
from support.packets.kernel import BUILD
from tidegate.dataplane.kernel.maps import Capacity
from tidegate.model.document_types import Tracking
from tidegate.model.values import Desired
from tidegate.spec.lines import SPOKE

pytestmark = [pytest.mark.root, pytest.mark.parametrize("tracking", ["full", "transition"])]

SMALL = replace(BUILD, capacity=Capacity(flows=128, syns=64, fragments=32))
NO_LIMIT = 10_000_000
FLOWS = range(20_000, 20_040)


@pytest.fixture(name="small")
def fixture_small() -> Iterator[Both]:
    with both_engines(SMALL) as both:
        yield both


def roster(tracking: Tracking, count: int) -> Desired:
    options = {"tracking": tracking, "insert_limit": NO_LIMIT}
    vips = [vip("web", VIP4, **options), vip("dns", VIP4, 53, "udp", **options)]
    return desired(vips, [backend(f"b{n}") for n in range(1, count + 1)], window=60)


def drained(tracking: Tracking) -> Desired:
    """Return the roster of four when all but one drain: what is before the window takes nothing."""
    whole = roster(tracking, 4)
    first = min(whole.backends)
    states = {key: "active" if key == first else "drain" for key in whole.backends}
    backends = {key: replace(b, state=states[key]) for key, b in whole.backends.items()}
    return replace(whole, backends=backends)


def homes(both: Both, flags: str, seq: int, ports: range = FLOWS) -> list[str | None]:
    return [both.backend(both.send(tcp(flags, ip4(), sport=port, seq=seq))) for port in ports]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kind", ["same VIP", "another VIP"])
def test_idle_flows_outlive_packets_from_nowhere(
    small: Both, tracking: Tracking, kind: str, times: int
) -> None:
    """However often these are sent: who was followed is, after an hour of silence and a change."""
    small.want(roster(tracking, 3))
    small.want(roster(tracking, 4))
    before = homes(small, "S", 0)
    assert [homes(small, "A", 1) for _ in range(2)] == [before, before]
    small.age(3600)
    for number in range(600):
        source = ip4(f"10.8.{number >> 8}.{number & 255}")
        forged = tcp("A", source) if kind == "same VIP" else udp(source)
        for _ in range(times):
            small.send(forged)
    small.want(roster(tracking, 6), after=400)
    assert homes(small, "A", 2) == before


def test_a_flood_of_one_vip_leaves_places_for_others(small: Both, tracking: Tracking) -> None:
    """Its packets come twice, and fill what they can: new flows of another VIP still stay."""
    small.want(roster(tracking, 3))
    small.want(roster(tracking, 4))
    for number in range(1000):
        small.backends([tcp("A", ip4(f"10.8.{number >> 8}.{number & 255}"))] * 2)
    clients = [udp(ip4(f"10.7.{number}.1")) for number in range(10)]
    before = [small.backends(clients) for _ in range(2)][-1]
    small.want(roster(tracking, 8), after=400)
    assert small.backends(clients) == before
    (id_,) = (p.identity.id for n, p in small.generation.vips.items() if n == "dns")
    assert (small.state.counters(id_).tracked, small.state.counters(id_).untracked) == (10, 0)


def test_handshakes_of_a_window_outlive_a_flood_of_syns(small: Both, tracking: Tracking) -> None:
    """Marks that are young stay; who finds no room for one begins where it needs none."""
    small.want(roster(tracking, 3))
    small.want(roster(tracking, 4))
    first: list[str | None] = []
    for port in FLOWS:
        first += homes(small, "S", 0, range(port, port + 1))
        for forged in range(20):
            source = ip4(f"10.9.{port - FLOWS.start}.{forged}")
            small.send(tcp("S", source, sport=port))
    assert homes(small, "A", 1) == first
    small.want(roster(tracking, 4), after=400)
    assert homes(small, "A", 2) == first


def test_one_prefix_splits_no_handshake_of_others(small: Both, tracking: Tracking) -> None:
    """Nor where the owner from before the window takes no new flows, and so each SYN is marked."""
    small.want(roster(tracking, 4))
    small.want(drained(tracking))
    flood = (tcp("S", ip4("10.9.9.1"), sport=sport) for sport in range(30_000, 31_000))
    small.backends(islice(flood, 400))
    for batch in range(6):  # each of which is over while its marks are young
        clients = [ip4(f"10.7.{8 * batch + number}.1") for number in range(8)]
        first = small.backends(tcp("S", client) for client in clients)
        small.backends(islice(flood, 100))
        assert small.backends(tcp("A", client) for client in clients) == first


def test_who_answered_a_handshake_outlives_who_came_from_nowhere(
    small: Both, tracking: Tracking
) -> None:
    """Its first packet after the SYN makes an entry that stays, with a mark to show for it."""
    small.want(roster(tracking, 3))
    small.want(roster(tracking, 4))
    before = homes(small, "S", 0)
    there = homes(small, "A", 1)
    assert there == before
    marked = [entry for entry in small.state.flows.entries.values() if entry.flags & SPOKE]
    assert marked
    for number in range(600):
        small.send(tcp("A", ip4(f"10.8.{number >> 8}.{number & 255}")))
    kept = small.state.flows.entries.values()
    assert {entry.fingerprint for entry in marked} <= {entry.fingerprint for entry in kept}
