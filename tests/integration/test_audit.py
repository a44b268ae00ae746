# SPDX-License-Identifier: Apache-2.0
"""Maps that somebody has damaged: the audit finds it, names it, and puts it right."""

import os
from collections.abc import Callable, Iterator
from ipaddress import ip_network

import numpy as np
import pytest

from support.crash.bench import Bench, Packets, contents, everything, no_descriptors, open_maps
from support.documents.roster import generations
from support.packets import vip_map
from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.publish import entries, ledger_bytes, tables, vip_images, vip_places
from tidegate.dataplane.publish.ledger import Kind, MetaRecord, Place
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.model.constants import MAX_BACKENDS, VIP_PLACES
from tidegate.model.values import BackendKey

pytestmark = pytest.mark.root

IN_FORCE = generations(everything(), now=1_700_000_000)[-1]
WEB4 = entries.vip_key(ip_network("192.0.2.1"), 80, 6)
NOBODY = entries.vip_key(ip_network("192.0.2.99"), 1, 17)
NOBODYS = vip_map.place_of(NOBODY, bytes(layout.VIP.itemsize))
META = ledger_bytes.where(Place(Kind.META, 0))[1]
B1 = IN_FORCE.backends[BackendKey("web", "b1")].identity.id
WEB = IN_FORCE.pools["web"].identity.id


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    built = Bench()
    yield built
    built.close()


def first(bench: Bench, name: str) -> bytes:
    return min(maps.read_all(name, bench.maps[name]))


def lose(name: str) -> Callable[[Bench], object]:
    return lambda bench: bpf.map_delete(bench.maps[name], first(bench, name))


def change(name: str, key: bytes | None = None) -> Callable[[Bench], object]:
    """Invert the bytes of a value."""

    def work(bench: Bench) -> None:
        where = key or first(bench, name)
        value = maps.read_all(name, bench.maps[name])[where]
        bpf.map_update(bench.maps[name], where, bytes(byte ^ 0xFF for byte in value))

    return work


def entry(bench: Bench, id_: int, field: str, value: int) -> None:
    found = maps.read_array(bench.maps["backends"], layout.BACKEND, MAX_BACKENDS)[id_].copy()
    found[field] = value
    bpf.map_update(bench.maps["backends"], id_.to_bytes(4, "little"), found.tobytes())


def older_number(bench: Bench) -> None:
    value = ledger_bytes.encode(Place(Kind.META, 0), MetaRecord(0, 0))
    bpf.map_update(bench.maps["wide_ledger"], META, value)


def other_table(bench: Bench) -> None:
    """Points a pool's slot to the table of another one."""
    there = [p for p in (bench.pins / "tables").iterdir() if not p.name.startswith(f"{WEB}-")]
    fd = bpf.open_pin(str(there[0]))
    slots = np.array([WEB, fd], np.uint32)
    bpf.map_update_batch(bench.maps["outer"], slots[:1].tobytes(), slots[1:].tobytes(), 1)
    os.close(fd)


def spoil_table(bench: Bench) -> None:
    """Give every slot of a table in force to another backend."""
    path = next((bench.pins / "tables").glob(f"{WEB}-*"))
    fd = bpf.open_pin(str(path))
    blob = bytearray(tables.encode(IN_FORCE.pools["web"].table))
    np.frombuffer(blob, layout.TABLE)[0]["slots"]["current"][:] = B1
    bpf.map_update(fd, bytes(4), memoryview(blob))
    os.close(fd)


def spoil_vip(bench: Bench) -> None:
    """Invert the bytes of a VIP's value, not of its key."""
    index = vip_map.index_of(bench.maps, WEB4)
    value = vip_images.read(bench.maps).in_force[WEB4]
    vip_map.put(bench.maps, index, vip_map.place_of(WEB4, bytes(byte ^ 0xFF for byte in value)))


def free_place(bench: Bench) -> int:
    """Return the element of the image in force that a VIP of nobody would be at."""
    return vip_images.read(bench.maps).selected * VIP_PLACES + vip_places.places(NOBODY).first


def other_image(bench: Bench) -> None:
    """Select the image that is not in force."""
    selected = vip_images.read(bench.maps).selected
    bpf.map_update(bench.maps["vip_image"], bytes(4), bytes([1 - selected, 0, 0, 0]))


DAMAGE: dict[str, tuple[Callable[[Bench], object], str, str, str]] = {
    "a VIP is gone": (
        lambda bench: vip_map.put(bench.maps, vip_map.index_of(bench.maps, WEB4), vip_map.EMPTY),
        "vips",
        "192.0.2.1 port 80 protocol 6",
        "missing",
    ),
    "a VIP is another": (
        spoil_vip,
        "vips",
        "192.0.2.1 port 80 protocol 6",
        "changed",
    ),
    "a VIP is nobody's": (
        lambda bench: vip_map.put(bench.maps, free_place(bench), NOBODYS),
        "vips",
        "192.0.2.99 port 1 protocol 17",
        "foreign",
    ),
    "a VIP not in force is nobody's": (
        lambda bench: vip_map.put(
            bench.maps, (free_place(bench) + VIP_PLACES) % (2 * VIP_PLACES), NOBODYS
        ),
        "vips",
        "192.0.2.99 port 1 protocol 17",
        "foreign",
    ),
    "another image of VIPs is in force": (other_image, "vip_image", "in force", "changed"),
    "no address is a VIP's": (
        lambda bench: bpf.map_update(
            bench.maps["vip_addresses"], bytes(4), bytes(layout.ADDRESS_BITS.itemsize)
        ),
        "vip_addresses",
        "bits of VIP addresses",
        "changed",
    ),
    "a network is gone": (lose("prefixes"), "prefixes", "198.18.0.0/24 port", "missing"),
    "a route is another": (change("routes"), "routes", "client 10.0.0.0/8", "changed"),
    "a server id is gone": (lose("quic_servers"), "quic_servers", "server id 0001", "missing"),
    "a backend's record is damaged": (change("ledger"), "ledger", "backend ", "changed"),
    "a pool's record is gone": (
        lambda bench: bpf.map_delete(
            bench.maps["wide_ledger"], ledger_bytes.where(Place(Kind.POOL, WEB))[1]
        ),
        "wide_ledger",
        f"pool {WEB}",
        "missing",
    ),
    "the number is an older one": (older_number, "wide_ledger", "meta 0", "changed"),
    "a backend is quarantined": (
        lambda bench: entry(bench, B1, "flags", layout.QUARANTINED),
        "backends",
        "web/b1",
        "changed",
    ),
    "an unused id has an entry": (
        lambda bench: entry(bench, 60_000, "incarnation", 1),
        "backends",
        "unused id 60000",
        "foreign",
    ),
    "a pool has no table": (
        lambda bench: tables.clear_slot(bench.maps["outer"], WEB),
        "outer",
        "web",
        "missing",
    ),
    "a pool has another's table": (other_table, "outer", "web", "changed"),
    "a table is damaged": (spoil_table, "tables", "web", "changed"),
    "a table has no pin": (
        lambda bench: next((bench.pins / "tables").glob(f"{WEB}-*")).unlink(),
        "pins",
        f"tables/{WEB}-",
        "missing",
    ),
}


@pytest.fixture
def published(bench: Bench) -> Iterator[Publisher]:
    publisher = bench.start(IN_FORCE)
    yield publisher
    publisher.close()


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_named_and_repaired(
    bench: Bench, published: Publisher, damage: str
) -> None:
    """Afterwards the kernel holds what it held, and packets go where they went."""
    spoil, name, key, fault = DAMAGE[damage]
    packets = Packets(bench.program, IN_FORCE)
    vips = {n: placed.vip for n, placed in IN_FORCE.vips.items()}
    flows, before = packets.establish(vips), contents(bench.maps, bench.pins)
    news = {n: packets.table(vip) for n, vip in vips.items()}
    assert published.audit(deep=True) == []
    spoil(bench)
    (found,) = published.audit(deep=True)
    assert (found.map, found.fault, found.failure) == (name, fault, "")
    assert key in found.key
    assert contents(bench.maps, bench.pins) == before
    assert packets.established(vips) == flows
    assert {n: packets.table(vip) for n, vip in vips.items()} == news
    assert published.audit(deep=True) == []


def test_what_cannot_be_repaired_is_reported_until_it_can(
    bench: Bench, published: Publisher
) -> None:
    """With no descriptor left no table can be made: the reason is given, and it works later."""
    spoil_table(bench)
    with no_descriptors():
        findings = published.audit(deep=True)
    assert [(f.map, f.key) for f in findings] == [("tables", "web")]
    assert "Too many open files" in findings[0].failure
    maps_before = open_maps()
    (found,) = published.audit(deep=True)
    assert (found.map, found.failure) == ("tables", "")
    assert len(open_maps()) == len(maps_before)
    assert published.audit(deep=True) == []
