# SPDX-License-Identifier: Apache-2.0
"""The planner's promises: stable ids, equal digests, exact fallbacks, whatever the history."""

import random
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.documents.roster import VIP4, backend, desired, generations, vip, web
from tidegate.errors import GenerationRefused
from tidegate.model.constants import ID_COOLDOWN_SECONDS, MAX_NETWORK_VIPS, MAX_POOLS, TABLE_SIZE
from tidegate.model.generation import NOTHING, Freed, Generation, Identity
from tidegate.model.values import BackendKey, Desired, Fitness, Quic, SourceRoute, SynLimit
from tidegate.planner import confirm, next_moment, plan
from tidegate.planner.ids import Allocator, resting

NAMES = [f"b{i}" for i in range(1, 8)]


@st.composite
def rosters(draw: st.DrawFn) -> Desired:
    """Draw any subset of seven backends with any weights and states."""
    backends = [
        backend(
            name,
            draw(st.sampled_from([f"10.1.0.{i}", f"10.2.0.{i}"])),
            weight=draw(st.sampled_from([0, 1, 100, 300])),
            state=draw(st.sampled_from(["active", "drain", "quarantine", "disabled"])),
        )
        for i, name in enumerate(NAMES)
        if draw(st.booleans())
    ]
    return web(*backends, delay=draw(st.sampled_from([0, 3])), window=draw(st.sampled_from([0, 4])))


def ids(generation: Generation) -> dict[BackendKey, Identity]:
    return {key: placed.identity for key, placed in generation.backends.items()}


@settings(max_examples=60, deadline=None)
@given(st.lists(rosters(), min_size=2, max_size=10))
def test_slots_that_ever_were_in_a_window_stay_marked(steps: list[Desired]) -> None:
    """Exact against each slot's history: flows that were tracked in a window may outlive it.

    So may those of stand-ins, in slots whose owner was out while a table named it.
    """
    marked = np.zeros(TABLE_SIZE, bool)
    previous = NOTHING
    for second, step in enumerate(steps):
        before, previous = previous, plan(step, previous, 1000 + second)
        table = previous.pools["web"].table
        if before.pools and step.pools["web"].transition_window:
            marked |= table.current != before.pools["web"].table.current
        if before.pools:
            out = [p.identity.id for p in previous.backends.values() if not p.reachable]
            marked |= np.isin(before.pools["web"].table.current, out)
        assert np.array_equal(table.tracked, marked)
        assert table.tracked[table.window > 0].all()


@pytest.mark.parametrize("window", [0, 60])
def test_slots_of_an_owner_that_was_out_count_as_changed(window: int) -> None:
    """Also if it is in again before any table did without it: others stood in for it."""
    wanted = web(backend("b1"), backend("b2"), window=window)
    (first,) = generations(wanted)
    key = BackendKey("web", "b1")
    out = replace(first.backends[key], weight=0, reachable=False, fitness=Fitness(is_out=True))
    flagged = replace(first, number=2, backends={**first.backends, key: out})
    again = plan(wanted, flagged, 1001, {})
    table, owner = again.pools["web"].table, first.backends[key].identity.id
    assert again.number == 3
    assert np.array_equal(table.current, first.pools["web"].table.current)
    assert np.array_equal(table.tracked, table.current == owner)
    assert np.array_equal(table.window > 0, (table.current == owner) & (window > 0))


def test_windows_beyond_the_limit_merge_and_lose_no_fallback() -> None:
    """A storm of changes has more windows than fit; merged ones open earlier and close later."""
    chance = random.Random(7)  # noqa: S311 - reproducible, not secret
    weights = {f"b{i}": 1000 for i in range(1, 101)}
    start = web(*(backend(n, weight=w) for n, w in weights.items()), window=3600)
    previous = generations(start)[-1]
    first = previous.pools["web"].table.current
    for second in range(300):
        weights[chance.choice(list(weights))] = chance.randint(900, 1100)
        roster = [backend(n, weight=w) for n, w in weights.items()]
        previous = plan(web(*roster, window=3600), previous, 1001 + second)
    table = previous.pools["web"].table
    assert len(table.windows) == 256
    moved = table.window > 0
    assert np.array_equal(table.fallback[moved], first[moved])
    assert np.array_equal(table.current[~moved], first[~moved])


def test_time_alone_closes_a_window() -> None:
    """At the moment that next_moment names, the fallback becomes the current owner."""
    _, second = generations(
        web(backend("b1"), window=60), web(backend("b1"), backend("b2"), window=60)
    )
    moment = next_moment(second)
    assert moment == 1001 + 60
    closed = plan(web(backend("b1"), backend("b2"), window=60), second, moment)
    table = closed.pools["web"].table
    assert closed.number == second.number + 1
    assert not table.window.any()
    assert np.array_equal(table.fallback, table.current)
    assert next_moment(closed) is None


def test_a_deleted_backend_drains_and_then_retires() -> None:
    """It leaves the table at once and its id rests once the delay has passed."""
    both = web(backend("b1"), backend("b2"), delay=10, window=0)
    one = web(backend("b1"), delay=10, window=0)
    first, draining = generations(both, one)
    gone = BackendKey("web", "b2")
    id_ = first.backends[gone].identity.id
    assert draining.backends[gone].retire_at == 1011
    assert draining.backends[gone].backend.state == "drain"
    assert id_ not in draining.pools["web"].table.current
    retired = plan(one, draining, 1011)
    assert gone not in retired.backends
    assert retired.freed.backends[id_].incarnation == 1


def test_a_deleted_backend_that_comes_back_keeps_its_id() -> None:
    """A key that is deleted and put again within the delay loses no flow."""
    both = web(backend("b1"), backend("b2"))
    first, _, back = generations(both, web(backend("b1")), both)
    assert ids(first) == ids(back)
    assert back.backends[BackendKey("web", "b2")].retire_at is None


def test_a_freed_id_rests_before_its_next_use() -> None:
    """The next use of an id comes after the cooldown, with the next incarnation."""
    two, one = web(backend("b1"), backend("b2"), delay=0), web(backend("b1"), delay=0)
    first, freed = generations(two, one)
    id_ = first.backends[BackendKey("web", "b2")].identity.id
    soon = plan(web(backend("b1"), backend("b3"), delay=0), freed, 1002)
    late = plan(web(backend("b1"), backend("b3"), delay=0), freed, 1001 + ID_COOLDOWN_SECONDS)
    assert soon.backends[BackendKey("web", "b3")].identity.id != id_
    assert late.backends[BackendKey("web", "b3")].identity == Identity(id_, 2)


def test_ids_that_run_out_refuse_the_generation() -> None:
    """The sentence names the kind and the limit."""
    allocator = Allocator("pool", {1, 2}, {}, limit=4, now=0)
    assert allocator.allocate() == Identity(3, 1)
    with pytest.raises(GenerationRefused, match="no free pool id: all 3 are taken"):
        allocator.allocate()


def test_an_id_that_has_rested_longest_is_used_rather_than_none() -> None:
    """With its next incarnation; ids that are reserved are not."""
    freed = {1: Freed(4, at=90), 2: Freed(255, at=80), 3: Freed(1, at=70)}
    allocator = Allocator("pool", {4}, freed, limit=5, now=100)
    allocator.reserve([3])
    assert [allocator.allocate(), allocator.allocate()] == [Identity(2, 256), Identity(1, 5)]
    with pytest.raises(GenerationRefused, match="all 4 are taken"):
        allocator.allocate()


def test_names_that_come_and_go_hold_no_change_up() -> None:
    """2,000 pools within an hour, then a quarantine and a new pool: both come into force."""
    generation = NOTHING
    for step in range(20):
        names = [f"p{step}-{n}" for n in range(100)]
        servers = [backend("b1", "10.1.0.1", pool=name) for name in ("web", *names)]
        wanted = desired([vip("a", VIP4)], [backend("b2", "10.1.0.2"), *servers], delay=0)
        generation = plan(wanted, generation, 1000 + step)
    after = [backend("b1", "10.1.0.1", state="quarantine"), backend("b2", "10.1.0.2")]
    fresh = backend("b1", "10.1.0.3", pool="new")
    found = plan(desired([vip("a", VIP4)], [*after, fresh], delay=0), generation, 1030)
    assert not found.backends[BackendKey("web", "b1")].reachable
    assert found.pools["new"].identity.incarnation > 1
    assert resting(found.freed, 1030)["pools"] == MAX_POOLS - 1 - len(found.pools)
    assert set(resting(found.freed, 1030 + ID_COOLDOWN_SECONDS).values()) == {0}


def test_a_vip_that_comes_back_finds_its_id_though_ids_are_short() -> None:
    """What rests for an endpoint that is wanted now is given to no other, whatever its name."""
    first = desired([vip("old", "10.99.0.1")], [backend("b1")])
    many = [vip(f"v{n}", f"10.98.{n >> 8}.{n & 255}") for n in range(4094)]
    before = plan(first, NOTHING, 1000)
    gone = plan(desired(many, [backend("b1")]), before, 1001)
    back = plan(desired([*many, vip("z", "10.99.0.1")], [backend("b1")]), gone, 1002)
    assert back.vips["z"].identity == before.vips["old"].identity


def test_nothing_changed_keeps_the_number() -> None:
    """A new revision that no packet can tell from the last one is no new generation."""
    first, again = generations(web(backend("b1")), web(backend("b1")))
    assert (again.number, again.digest) == (first.number, first.digest)


def test_a_vip_that_moves_address_gets_another_id() -> None:
    """Entries of flows to the old address must not catch flows to the new one."""
    before, after = generations(
        desired([vip("web", "10.99.0.1")], [backend("b1")]),
        desired([vip("web", "10.99.0.2")], [backend("b1")]),
    )
    assert before.vips["web"].identity == Identity(1, 1)
    assert after.vips["web"].identity == Identity(2, 1)


def test_what_was_read_back_is_confirmed_or_built_anew() -> None:
    """A table that is not the one its backends give has no digest, so the next plan renews it."""
    two, one = web(backend("b1"), backend("b2"), window=0), web(backend("b1"), window=0)
    before, after = generations(two, one)
    assert confirm(before).digest == before.digest
    torn = Generation(3, 2, "", before.vips, before.pools, after.backends)
    assert confirm(torn).pools["web"].digest == b""
    mended = plan(one, confirm(torn), 1001)
    assert np.array_equal(mended.pools["web"].table.current, after.pools["web"].table.current)


@pytest.mark.parametrize(
    "change",
    [
        {"port": 0},
        {"tracking": "transition"},
        {"tracking": "none"},
        {"hash": "source"},
        {"hash": "source+port"},
        {"udp_idle_timeout": 61},
        {"tcp_idle_timeout": 0},
        {"insert_limit": 1},
        {"syn_limit": SynLimit(1)},
        {"mss_clamp": 1400},
        {"echo": False},
        {"quic": Quic(8)},
        {"source_routes": (SourceRoute(ip_network("10.0.0.0/8"), "web"),)},
        {"deny": (ip_network("10.0.0.0/8"),)},
        {"flow_sampling": 1},
        {"sorry_pool": "web"},
    ],
)
def test_each_option_of_a_vip_makes_another_generation(change: dict[str, Any]) -> None:
    """Its number and its digest tell it from the one before."""
    before = desired([vip("a", "10.99.0.1")], [backend("b1")])
    changed = replace(before.vips["a"], **change)
    first, second = generations(before, replace(before, vips={"a": changed}))
    assert second.number == first.number + 1
    assert second.digest != first.digest


@pytest.mark.parametrize(
    "change",
    [
        {"pool": "other"},
        {"source_routes": (SourceRoute(ip_network("10.0.0.0/8"), "other"),)},
        {"deny": (ip_network("10.0.0.0/8"),)},
        {"sorry_pool": "other"},
    ],
)
def test_a_vip_that_is_led_elsewhere_has_moved(change: dict[str, Any]) -> None:
    """From then on, until it is another service; the digest knows nothing of it."""
    before = desired([vip("a", "10.99.0.1")], [backend("b1"), backend("b2", pool="other")])
    other = replace(before, vips={"a": replace(before.vips["a"], **change)})
    elsewhere = replace(before, vips={"a": replace(before.vips["a"], port=81)})
    found = generations(before, other, before, elsewhere)
    assert [each.vips["a"].moved for each in found] == [False, True, True, False]
    assert found[2].digest == found[0].digest
    assert found[2].number == 3
    assert plan(before, found[2], 2000).number == 3


def test_a_vip_on_its_sorry_pool_has_moved() -> None:
    """Its document is as it was; other options and backends move no VIP."""
    service = vip("a", "10.99.0.1", sorry_pool="sorry")
    last_resort = backend("s1", pool="sorry")
    up, more = [backend("b1"), last_resort], [backend("b1"), backend("b2"), last_resort]
    steps = [
        desired([service], up),
        desired([replace(service, tcp_idle_timeout=1)], more),
        desired([service], [backend("b1", state="disabled"), last_resort]),
    ]
    assert [each.vips["a"].moved for each in generations(*steps)] == [False, False, True]


def test_a_network_is_another_service_than_its_first_address() -> None:
    """Flows to one must not be caught by entries of the other."""
    first, second = generations(
        desired([vip("a", "10.99.0.0")], [backend("b1")]),
        desired([vip("a", "10.99.0.0/24")], [backend("b1")]),
    )
    assert second.vips["a"].identity == Identity(2, 1)
    assert second.digest != first.digest


@pytest.mark.parametrize("change", [{"encapsulation": "gue"}, {"gue_port": 1}, {"mtu": 1400}])
def test_each_option_of_a_pool_makes_another_generation(change: dict[str, Any]) -> None:
    """As those of VIPs do, and the table is the same one."""
    before = web(backend("b1"))
    pools = {"web": replace(before.pools["web"], **change)}
    first, second = generations(before, replace(before, pools=pools))
    assert second.number == first.number + 1
    assert second.digest != first.digest
    assert second.pools["web"].table is first.pools["web"].table


def test_a_server_id_makes_another_generation() -> None:
    """Packets can tell the two apart, though the table is the same one."""
    first, second = generations(web(backend("b1")), web(backend("b1", quic_server_id=b"\x01")))
    assert second.digest != first.digest
    assert second.pools["web"].table is first.pools["web"].table


def test_another_seed_makes_another_generation() -> None:
    """Two hosts with different seeds do not choose alike, so their digests differ."""
    first, second, third = generations(
        web(backend("b1")),
        replace(web(backend("b1")), hash_seed="a"),
        replace(web(backend("b1")), hash_seed="b"),
    )
    assert len({first.digest, second.digest, third.digest}) == 3
    assert [g.number for g in (first, second, third)] == [1, 2, 3]
    assert confirm(third).digest == third.digest
    assert (first.hash_seed, third.hash_seed) == (None, "b")


def test_more_than_the_maps_hold_is_refused() -> None:
    """The sentence has the number that is wanted and the limit."""
    networks = [vip(f"v{i}", f"10.{i}.0.0/16") for i in range(MAX_NETWORK_VIPS)]
    assert plan(desired(networks, []), NOTHING, 0).number == 1
    networks.append(vip("one-more", "192.0.2.0/24"))
    with pytest.raises(GenerationRefused, match=r"257 VIPs that are networks .* limit is 256"):
        plan(desired(networks, []), NOTHING, 0)
    deny = tuple(ip_network((i << 8, 24)) for i in range(100))
    routed = [vip(f"v{i}", "10.99.0.1", 1 + i, deny=deny) for i in range(82)]
    with pytest.raises(GenerationRefused, match=r"8200 source routes .* limit is 8192"):
        plan(desired(routed, []), NOTHING, 0)
