# SPDX-License-Identifier: Apache-2.0
"""Publishing into real maps: what they hold afterwards, after a restart, and after a crash."""

import secrets
import shutil
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import numpy as np
import pytest

from support.documents.roster import backend, desired, generations, vip, web
from support.packets import vip_map
from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish import entries, tables, vip_images, vip_places
from tidegate.dataplane.publish.address_bits import address_bits
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.dataplane.publish.restore import restored_generation
from tidegate.dataplane.publish.steps import Step
from tidegate.errors import DataplaneError
from tidegate.model.constants import MAX_BACKENDS, MAX_VIP_ROUTES, VIP_PLACES
from tidegate.model.generation import Generation
from tidegate.model.values import BackendKey, Desired, Fitness, Quic, SourceRoute, SynLimit
from tidegate.planner import plan

pytestmark = pytest.mark.root

CANARY = SourceRoute(ip_network("198.51.100.0/24"), "canary")
SMALL = maps.Capacity(flows=1024, syns=1024, fragments=1024)


@pytest.fixture
def pins() -> Iterator[Path]:
    """Give a folder of the test's own on the BPF file system."""
    folder = Path(f"/sys/fs/bpf/tgtest-{secrets.token_hex(4)}")
    make_plane_folder(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def kernel(pins: Path) -> Iterator[maps.Maps]:
    """Give all maps, pinned."""
    found, _ = maps.create_or_adopt(pins, SMALL)
    yield found
    found.close()


def everything() -> Desired:
    """VIPs of every kind, with every kind of option."""
    vips = [
        vip("plain", "192.0.2.1"),
        vip("dns", "192.0.2.1", 53, "udp", flow_sampling=7, echo=False),
        vip("any", "2001:db8::1", 0, "udp", quic=Quic(2), udp_idle_timeout=0),
        vip("net", "203.0.113.0/24", source_routes=(CANARY,), deny=(ip_network("10.0.0.0/8"),)),
        vip("net6", "2001:db8:1::/48", 0, mss_clamp=1400, syn_limit=SynLimit(9)),
    ]
    servers = [
        backend("b1", quic_server_id=b"\1\2"),
        backend("b2", "fd00::2", quic_server_id=b"\1\3"),
        backend("b3", pool="canary"),
    ]
    return desired(vips, servers, encapsulation="gue", gue_port=6081, mtu=1400)


def assert_holds(kernel: maps.Maps, generation: Generation) -> None:
    """Every map that follows from a generation alone has its content and nothing else."""
    for name in ("prefixes", "routes", "quic_servers"):
        assert maps.read_all(name, kernel[name]) == getattr(entries, name)(generation), name
    held = vip_images.read(kernel)
    assert held.in_force == entries.vips(generation)
    used = np.count_nonzero(held.images[held.selected].view("V128") != np.void(bytes(128)))
    assert used == len(held.in_force)
    assert held.bits == address_bits(generation)


def entry(kernel: maps.Maps, generation: Generation, name: str, pool: str = "web") -> np.void:
    id_ = generation.backends[BackendKey(pool, name)].identity.id
    return maps.read_array(kernel["backends"], layout.BACKEND, MAX_BACKENDS)[id_]


def test_the_maps_follow_the_generations(kernel: maps.Maps, pins: Path) -> None:
    """After each step they hold that generation and nothing of the one before."""
    full = everything()
    fewer = replace(full, vips={n: full.vips[n] for n in ("dns", "net")})
    moved = replace(full, vips=full.vips | {"net": vip("net", "203.0.113.0/25")})
    one = desired([vip("plain", "192.0.2.1")], [backend("b1")], delay=0)
    publisher = Publisher(kernel, pins, grace=0)
    for generation in generations(full, fewer, moved, full, one):
        publisher.publish(generation, 0.0)
        assert_holds(kernel, generation)
        publisher.reap(1.0)
    publisher.close()


def test_a_restart_finds_every_option(kernel: maps.Maps, pins: Path) -> None:
    """VIPs, pools, backends, tables and the seed come back equal from the pinned maps."""
    steps = [everything(), replace(everything(), hash_seed="s" * 128)]
    publisher = Publisher(kernel, pins, grace=0)
    for generation in generations(*steps):
        publisher.publish(generation, 0.0)
    publisher.close()
    again = Publisher(kernel, pins, grace=0)
    found = again.adopt()
    assert (found.vips, found.backends, found.hash_seed) == (
        generation.vips,
        generation.backends,
        "s" * 128,
    )
    assert (found.digest, found.number) == (generation.digest, generation.number)
    assert {n: p.pool for n, p in found.pools.items()} == {
        n: p.pool for n, p in generation.pools.items()
    }
    assert plan(steps[-1], found, 1002).number == generation.number
    again.close()


def test_marks_of_tracked_slots_survive_a_restart(kernel: maps.Maps, pins: Path) -> None:
    """They are in the tables themselves."""
    one, two = web(backend("b1"), window=60), web(backend("b1"), backend("b2"), window=60)
    closed = plan(two, generations(one, two)[-1], 2000)
    publisher = Publisher(kernel, pins, grace=0)
    publisher.publish(closed, 0.0)
    publisher.close()
    again = Publisher(kernel, pins, grace=0)
    table = again.adopt().pools["web"].table
    assert np.array_equal(table.tracked, closed.pools["web"].table.tracked)
    assert table.tracked.any()
    assert not table.window.any()
    again.close()


def test_a_pools_path_reaches_its_backends(kernel: maps.Maps, pins: Path) -> None:
    """Port and MTU are in the entries of backends, and follow the pool without a new address."""
    ipip = desired([vip("a", "192.0.2.1")], [backend("b1")])
    gue = desired([vip("a", "192.0.2.1")], [backend("b1")], encapsulation="gue", mtu=1400)
    moved = replace(gue, backends={k: _at(b, "10.9.9.9") for k, b in gue.backends.items()})
    publisher = Publisher(kernel, pins, grace=0)
    seen = []
    for generation in generations(ipip, gue, moved, ipip):
        publisher.publish(generation, 0.0)
        found = entry(kernel, generation, "b1")
        address = bytes(found["endpoints"]["address"][found["selected"]])
        seen.append((int(found["gue_port"]), int(found["mtu"]), address[12:]))
    home, away = ip_address("10.1.0.1").packed, ip_address("10.9.9.9").packed
    assert seen == [(0, 0, home), (6080, 1400, home), (6080, 1400, away), (0, 0, home)]
    publisher.close()


def _at(server: object, address: str) -> object:
    return replace(server, address=ip_address(address))  # type: ignore[type-var]


def test_a_start_after_a_crash_writes_what_is_missing(kernel: maps.Maps, pins: Path) -> None:
    """The records of a generation were written, what they stand for was not, or only in part."""
    generation = generations(everything())[-1]
    publisher = Publisher(kernel, pins, grace=0)
    publisher.publish(generation, 0.0)
    publisher.close()
    for name in ("prefixes", "routes", "quic_servers"):
        key = next(iter(maps.read_all(name, kernel[name])))
        assert bpf.map_delete(kernel[name], key)
    held = vip_images.read(kernel)
    vip_map.put(kernel, vip_map.index_of(kernel, min(held.in_force)), vip_map.EMPTY)
    stray = entries.vip_key(ip_network("192.0.2.99"), 80, 6)
    for place in vip_places.places(stray):
        index = held.selected * VIP_PLACES + place
        vip_map.put(kernel, index, vip_map.place_of(stray, bytes(layout.VIP.itemsize)))
    bpf.map_update(kernel["vip_addresses"], bytes(4), bytes(layout.ADDRESS_BITS.itemsize))
    broken = entry(kernel, generation, "b1").copy()
    for index, changes in (
        (generation.backends[BackendKey("web", "b1")].identity.id, {"flags": 1}),
        (4000, {"incarnation": 7}),
    ):
        one = broken.copy()
        for field, value in changes.items():
            one[field] = value
        bpf.map_update(kernel["backends"], index.to_bytes(4, "little"), one.tobytes())

    again = Publisher(kernel, pins, grace=0)
    found = again.adopt()
    same = plan(everything(), found, 1001)
    assert same.number == found.number
    again.publish(same, 0.0)
    assert_holds(kernel, same)
    assert int(entry(kernel, same, "b1")["flags"]) == 0
    assert not maps.read_array(kernel["backends"], layout.BACKEND, MAX_BACKENDS)[4000][
        "incarnation"
    ]
    again.close()


def test_as_many_routes_as_a_vip_may_have(kernel: maps.Maps, pins: Path) -> None:
    """They fit the ledger and the trie, and the longest match is what a packet finds."""
    routes = tuple(
        SourceRoute(ip_network(f"10.{i}.0.0/16"), "canary") for i in range(MAX_VIP_ROUTES - 1)
    )
    service = vip("a", "192.0.2.1", source_routes=routes, deny=(ip_network("10.0.0.0/24"),))
    generation = generations(desired([service], [backend("b1")]))[-1]
    publisher = Publisher(kernel, pins, grace=0)
    publisher.publish(generation, 0.0)
    assert_holds(kernel, generation)

    def look_up(client: str, vip_id: int = 1) -> tuple[int, int] | None:
        key = entries.route_key(vip_id, ip_network(client))
        value = bpf.map_lookup(kernel["routes"], key, layout.ROUTE.itemsize)
        if value is None:
            return None
        found = np.frombuffer(value, layout.ROUTE)[0]
        return int(found["pool"]), int(found["flags"])

    canary = generation.pools["canary"].identity.id
    assert look_up("10.0.0.9") == (0, layout.ROUTE_DENY)
    assert look_up("10.0.1.9") == (canary, 0)
    assert look_up("11.0.0.1") is None
    assert look_up("10.0.1.9", vip_id=2) is None
    publisher.close()
    again = Publisher(kernel, pins, grace=0)
    assert again.adopt().vips == generation.vips
    again.close()


def flags(kernel: maps.Maps, generation: Generation, name: str) -> int:
    return int(entry(kernel, generation, name)["flags"])


def out(wanted: Desired, before: Generation, *names: str) -> Generation:
    """Return the next generation while health takes these backends out."""
    fitness = {BackendKey("web", name): Fitness(is_out=True) for name in names}
    return plan(wanted, before, 1000, fitness)


def test_a_flag_is_set_before_the_tables_and_stays(kernel: maps.Maps, pins: Path) -> None:
    """A flag ahead of its generation is there at each step, and an audit expects it."""
    wanted = web(backend("b1"), backend("b2"), backend("b3"))
    seen: list[tuple[Step, int]] = []
    publisher = Publisher(
        kernel, pins, 0, reached=lambda step: seen.append((step, flags(kernel, first, "b1")))
    )
    (first,) = generations(wanted)
    publisher.publish(first, 0)
    seen.clear()
    slots = tables.slots(kernel["outer"])
    assert publisher.flag_unhealthy([BackendKey("web", "b1")]) == 1
    assert publisher.flag_unhealthy([BackendKey("web", "b1")]) == 0
    assert (flags(kernel, first, "b1"), flags(kernel, first, "b2")) == (layout.QUARANTINED, 0)
    assert tables.slots(kernel["outer"]) == slots
    assert publisher.audit(deep=True) == []
    publisher.publish(out(wanted, first, "b1"), 0)
    assert Step.TABLES_SWAPPED in dict(seen)
    assert {flag for _, flag in seen} == {layout.QUARANTINED}
    assert publisher.audit(deep=True) == []
    publisher.close()


def test_a_flag_whose_verdict_is_taken_back_goes(kernel: maps.Maps, pins: Path) -> None:
    """When the next generation is the one in force, the flag and its record are as before."""
    wanted = web(backend("b1"), backend("b2"))
    (first,) = generations(wanted)
    publisher = Publisher(kernel, pins, 0)
    publisher.publish(first, 0)
    publisher.flag_unhealthy([BackendKey("web", "b1")])
    publisher.publish(plan(wanted, first, 1000, {}), 0)
    assert publisher.in_force.number == first.number
    assert flags(kernel, first, "b1") == 0
    publisher.close()
    again = Publisher(kernel, pins, 0)
    assert again.adopt().backends[BackendKey("web", "b1")].reachable
    again.close()


def test_who_comes_back_does_so_behind_its_new_table(kernel: maps.Maps, pins: Path) -> None:
    """While a table names it that has nobody look for its stand-ins' flows, it stays out.

    So does its record, in case the agent dies there.
    """
    wanted = web(backend("b1"), backend("b2"))
    seen: list[tuple[Step, int, bool]] = []
    key = BackendKey("web", "b1")

    def look(step: Step) -> None:
        if publisher.in_force.number:
            there = restored_generation(publisher.mirror.records, {})
            seen.append((step, flags(kernel, first, "b1"), there.backends[key].reachable))

    (first,) = generations(wanted)
    publisher = Publisher(kernel, pins, 0, reached=look)
    publisher.publish(first, 0)
    publisher.flag_unhealthy([key])
    publisher.publish(plan(wanted, publisher.standing, 1000, {}), 0)
    before = [each for each in seen if each[0] is not Step.TABLE_FREED]
    swapped = [step for step, _, _ in before].index(Step.TABLES_SWAPPED)
    assert {each[1:] for each in before[: swapped + 1]} == {(layout.QUARANTINED, False)}
    assert before[-1][1:] == (0, True)
    assert publisher.audit(deep=True) == []
    publisher.close()


def test_a_start_after_a_flag_keeps_the_backend_out(kernel: maps.Maps, pins: Path) -> None:
    """What an agent flagged before it ended, without a generation, its next start finds out."""
    wanted = web(backend("b1"), backend("b2"))
    (first,) = generations(wanted)
    publisher = Publisher(kernel, pins, 0)
    publisher.publish(first, 0)
    publisher.flag_unhealthy([BackendKey("web", "b1")])
    publisher.close()
    again = Publisher(kernel, pins, 0)
    found = again.adopt()
    assert not found.backends[BackendKey("web", "b1")].reachable
    again.publish(plan(wanted, found, 1000, None), 0)
    assert again.in_force.number == first.number + 1
    assert flags(kernel, first, "b1") == layout.QUARANTINED
    again.publish(plan(wanted, again.in_force, 1001, {}), 0)
    assert flags(kernel, first, "b1") == 0
    again.close()


def test_what_is_put_back_keeps_the_flag(kernel: maps.Maps, pins: Path) -> None:
    """A generation that the kernel refuses goes, and the flag that was ahead of it stays."""
    wanted = web(backend("b1"), backend("b2"))
    (first,) = generations(wanted)
    publisher = Publisher(kernel, pins, 0)
    publisher.publish(first, 0)
    publisher.flag_unhealthy([BackendKey("web", "b1")])
    following = out(wanted, first, "b1")
    pool = following.pools["web"]
    bpf.pin(kernel["outer"], str(tables.pin_path(pins, pool.identity.id, following.number)))
    with pytest.raises(DataplaneError):  # the place of its table's pin is taken
        publisher.publish(following, 0)
    assert publisher.in_force.number == first.number
    assert flags(kernel, first, "b1") == layout.QUARANTINED
    assert publisher.audit(deep=True) == []
    publisher.publish(out(wanted, first, "b1"), 0)
    assert publisher.audit(deep=True) == []
    publisher.close()
