# SPDX-License-Identifier: Apache-2.0
"""The audit: compare the kernel with what it must hold, name what differs, and repair it.

Only the agent writes to these maps, so a difference is a manual change, a defect of ours or of
the kernel, or damaged memory. What was written is known byte for byte (`mirror`), so a look
costs the reading and a comparison. The tables are half a megabyte each and were read back when they
were filled: only a deep look reads them again. A table that is wrong is not repaired where packets
read it, but replaced by a new one like any other.

This is not for what packets change (flows, limits, counters), and not for a generation that is only
half published: the next publishing compares that in full anyway.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from ipaddress import IPv6Address
from typing import Final, NamedTuple

import numpy as np

from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.publish import tables, vip_images
from tidegate.dataplane.publish.aside import Aside
from tidegate.dataplane.publish.ledger import Kind
from tidegate.dataplane.publish.mirror import KEYED, Loaded, Mirror
from tidegate.dataplane.publish.vip_images import VipImages
from tidegate.dataplane.publish.vip_places import key_name
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.model.constants import MAX_BACKENDS
from tidegate.model.generation import Generation, Table

_OF_VIPS: Final = ("prefixes", "routes")
"""Tries, which a flag leaves as they are: there a look-up may find a wider network."""


class Finding(NamedTuple):
    """One difference.

    Attributes:
        map: its name, `tables` for the content of a table, `pins` for a pin.
        key: what it is for, to be read by people.
        fault: `missing`, `changed`, or `foreign` for what should not be there.
        failure: why it could not be repaired; empty if it was.
    """

    map: str
    key: str
    fault: str
    failure: str = ""

    def __str__(self) -> str:
        """Return a sentence."""
        end = f"and could not be repaired: {self.failure}" if self.failure else "and was repaired"
        return f"map {self.map}: {self.key} was {self.fault} {end}"


class Difference(NamedTuple):
    """What was found, and how to repair it."""

    finding: Finding
    repair: Callable[[], object]


def audit(mirror: Mirror, generation: Generation, aside: Aside, *, deep: bool) -> list[Finding]:
    """Compare and repair.

    Args:
        mirror: what must be there.
        generation: in force, complete.
        aside: reads what is large; backends may be flagged meanwhile, which is no difference.
        deep: read tables and unused entries too.

    Raises:
        OSError: the kernel refused to read.
    """
    return repaired(_differences(mirror, generation, aside, deep=deep))


def repaired(differences: Iterable[Difference]) -> list[Finding]:
    """Repair what differs; return what it was, and what could not be repaired."""
    found: list[Finding] = []
    for finding, repair in differences:
        try:
            repair()
        except (OSError, DataplaneError, CapabilityError) as error:
            found.append(finding._replace(failure=str(error)))
        else:
            found.append(finding)
    return found


def _differences(
    mirror: Mirror, generation: Generation, aside: Aside, *, deep: bool
) -> Iterator[Difference]:
    yield from _vips(mirror.images)
    for name in KEYED:
        yield from _keyed(mirror, name, aside)
    yield from _entries(mirror, generation, aside, deep=deep)
    yield from _slots(mirror, generation)
    yield from missing_pins(mirror)
    if deep:
        yield from _tables(mirror, generation, aside)


def _keyed(mirror: Mirror, name: str, aside: Aside) -> Iterator[Difference]:
    fd = mirror.fds[name]
    there, wanted = aside.run(lambda: maps.read_all(name, fd)), mirror.written[name]
    if there == wanted:
        return
    has_flags = name not in _OF_VIPS
    # What is foreign goes first: it may take the room of what is missing.
    for key in there.keys() - wanted.keys():
        finding = Finding(name, _named(name, key), "foreign")
        yield Difference(finding, partial(bpf.map_delete, fd, key))
    for key, value in wanted.items():
        if there.get(key) != value and not (has_flags and _is_there(fd, key, value)):
            fault = "changed" if key in there else "missing"
            finding = Finding(name, _named(name, key), fault)
            yield Difference(finding, partial(bpf.map_update, fd, key, value))


def _is_there(fd: int, key: bytes, value: bytes) -> bool:
    """Return whether an element is as it has to be by now: it was written since it was read."""
    return bpf.map_lookup(fd, key, len(value)) == value


def _vips(images: VipImages) -> Iterator[Difference]:
    """Compare both images, the choice of one, and the address bits.

    The image that is not in force is repaired too: the next change counts on what is there.
    """
    there = vip_images.read(images.fds)
    if there.selected != images.selected:
        finding = Finding("vip_image", f"image {images.selected} in force", "changed")
        yield Difference(finding, images.write_selected)
    if there.bits != images.bits:
        finding = Finding("vip_addresses", "bits of VIP addresses", "changed")
        yield Difference(finding, images.rewrite_bits)
    for image in (images.selected, 1 - images.selected):
        found, wanted = there.images[image], images.images[image]
        for place in vip_images.differing(found, wanted):
            finding = _of_place(found[place], wanted[place])
            yield Difference(finding, partial(images.rewrite, image, np.array([place])))


def _of_place(there: np.void, wanted: np.void) -> Finding:
    """Return what a place that differs has in place of what."""
    if not wanted["key"]["protocol"]:
        return Finding("vips", key_name(there["key"].tobytes()), "foreign")
    fault = "changed" if there["key"]["protocol"] else "missing"
    return Finding("vips", key_name(wanted["key"].tobytes()), fault)


def _entries(
    mirror: Mirror, generation: Generation, aside: Aside, *, deep: bool
) -> Iterator[Difference]:
    names = {placed.identity.id: key for key, placed in generation.backends.items()}
    count = MAX_BACKENDS if deep else max(names, default=0) + 1
    fd = mirror.fds["backends"]
    there = aside.run(lambda: maps.read_array(fd, layout.BACKEND, count))
    wanted = mirror.entries[:count]
    if there.tobytes() == wanted.tobytes():
        return
    rows = [np.frombuffer(a.tobytes(), "u1").reshape(count, -1) for a in (there, wanted)]
    for id_ in np.flatnonzero((rows[0] != rows[1]).any(axis=1)):
        if _is_there(fd, int(id_).to_bytes(4, "little"), wanted[id_].tobytes()):
            continue
        name = str(names.get(int(id_), f"unused id {id_}"))
        ids = np.array([id_], np.uint32)
        yield Difference(
            Finding("backends", name, "changed" if int(id_) in names else "foreign"),
            partial(mirror.write_entries, ids),
        )


def _slots(mirror: Mirror, generation: Generation) -> Iterator[Difference]:
    outer = mirror.fds["outer"]
    there = tables.slots(outer)
    for pool_id in there.keys() - mirror.tables.keys():
        finding = Finding("outer", f"unused slot {pool_id}", "foreign")
        yield Difference(finding, partial(tables.clear_slot, outer, pool_id))
    for pool_id, table in mirror.tables.items():
        if there.get(pool_id) != tables.id_of(table.fd):
            fault = "changed" if pool_id in there else "missing"
            finding = Finding("outer", _pool(generation, pool_id), fault)
            yield Difference(finding, partial(mirror.point, {pool_id: table}))


def missing_pins(mirror: Mirror) -> Iterator[Difference]:
    """Find missing pins of tables: without them the next agent would not find what packets use."""
    for table in mirror.tables.values():
        if not table.pin.exists():
            finding = Finding("pins", f"tables/{table.pin.name}", "missing")
            yield Difference(finding, partial(tables.pin, table.fd, table.pin))


def _tables(mirror: Mirror, generation: Generation, aside: Aside) -> Iterator[Difference]:
    for placed in generation.pools.values():
        aside.between()
        loaded = mirror.tables[placed.identity.id]
        if tables.holds(loaded.fd, placed.table):
            continue
        pool_id, table = placed.identity.id, placed.table

        def replace(pool_id: int = pool_id, table: Table = table) -> None:
            old = mirror.tables[pool_id]
            # Another name, so that at any moment what the slot points to is pinned.
            new = Loaded(tables.fill(table), old.pin.with_name(f"{old.pin.name}-again"))
            try:
                new.pin.unlink(missing_ok=True)
                tables.pin(new.fd, new.pin)
                mirror.point({pool_id: new})
            except (OSError, DataplaneError):
                new.drop()
                raise
            mirror.tables[pool_id] = new
            old.drop()

        yield Difference(Finding("tables", placed.pool.name, "changed"), replace)


def _pool(generation: Generation, pool_id: int) -> str:
    names = [n for n, placed in generation.pools.items() if placed.identity.id == pool_id]
    return names[0] if names else f"slot {pool_id}"


def _named(name: str, key: bytes) -> str:
    """Describe what a key of a keyed map is for."""
    match name:
        case "prefixes":
            vip = np.frombuffer(key, layout.PREFIX_KEY)[0]
            return f"{_network(vip, 'address')} port {vip['port']} protocol {vip['protocol']}"
        case "routes":
            route = np.frombuffer(key, layout.ROUTE_KEY)[0]
            return f"VIP id {route['vip']} client {_network(route, 'source')}"
        case "stand_ins":
            return f"stand-ins of pool id {int.from_bytes(key, 'little')}"
        case "quic_servers":
            server = np.frombuffer(key, layout.QUIC_KEY)[0]
            wanted = server["id"].tobytes()[: int(server["length"])].hex()
            return f"pool id {server['pool']} server id {wanted}"
    kind, id_ = (int.from_bytes(key[at : at + 4], "little") for at in (0, 4))
    return f"{Kind(kind).name.lower() if kind in set(Kind) else kind} {id_}"


def _network(key: np.void, field: str) -> str:
    length = int(key["length"]) - layout.KEY_FIXED_BITS
    address = IPv6Address(key[field].tobytes())
    return f"{address.ipv4_mapped}/{length - 96}" if address.ipv4_mapped else f"{address}/{length}"
