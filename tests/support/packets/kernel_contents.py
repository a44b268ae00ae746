# SPDX-License-Identifier: Apache-2.0
"""What the pinned maps of a data plane hold, by the names of things, for comparing two of them.

Ids and incarnations depend on a host's history, so they are replaced by the names that the ledger
has for them. What is draining is left out, and so are fallbacks and windows: they are history too.
The maps are only read, so an agent may be at work on them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.publish import entries, ledger, ledger_bytes, tables, vip_images
from tidegate.dataplane.publish.ledger import Kind, Place
from tidegate.model.address import packed
from tidegate.model.constants import MAX_BACKENDS
from tidegate.model.generation import Generation, Table
from tidegate.model.values import Pool

_HISTORY = {"id", "incarnation", "pool", "salt", "flags"}


class Contents(NamedTuple):
    """A data plane by names.

    Attributes:
        vips: by key of the map `vips`: name, pool's name, and every field that is not history.
        tables: by pool, the backend's name of each slot.
        backends: by pool and name: address in force, its family, flags, port of GUE, MTU.
    """

    vips: dict[bytes, tuple[Any, ...]]
    tables: dict[str, tuple[str, ...]]
    backends: dict[tuple[str, str], tuple[Any, ...]]


@contextmanager
def _opened(pins: Path) -> Iterator[dict[str, int]]:
    of_vips = ("vips", "vip_image", "vip_addresses")
    wanted = (*of_vips, "outer", "backends", "ledger", "wide_ledger")
    fds = {name: bpf.open_pin(str(pins / name)) for name in wanted}
    try:
        yield fds
    finally:
        for fd in fds.values():
            os.close(fd)


def read(pins: Path) -> Contents:
    """Return the contents of the data plane that is pinned in a folder."""
    with _opened(pins) as fds:
        records = ledger_bytes.read(fds)
        pools = _names(records, Kind.POOL, ledger.PoolRecord)
        living = {
            place.id: record
            for place, record in records.items()
            if isinstance(record, ledger.BackendRecord) and record.retire_at is None
        }
        owners = {id_: f"{record.pool}/{record.name}" for id_, record in living.items()}
        return Contents(
            _vips(fds, _names(records, Kind.VIP, ledger.VipRecord), pools),
            {
                name: _owners(_table_in_force(pins, fds["outer"], id_), owners)
                for id_, name in pools.items()
            },
            _backends(fds["backends"], living),
        )


def planned(generation: Generation) -> Contents:
    """Return the contents that a generation asks for."""
    names = {placed.identity.id: name for name, placed in generation.vips.items()}
    pools = {placed.identity.id: name for name, placed in generation.pools.items()}
    owners = {
        placed.identity.id: f"{key.pool}/{key.name}" for key, placed in generation.backends.items()
    }
    return Contents(
        {k: _vip(v, names, pools) for k, v in entries.vips(generation).items()},
        {name: _owners(placed.table, owners) for name, placed in generation.pools.items()},
        {
            (key.pool, key.name): (
                packed(placed.backend.address),
                placed.backend.address.version,
                0 if placed.reachable else layout.QUARANTINED,
                *_path(generation.pools[key.pool].pool),
            )
            for key, placed in generation.backends.items()
        },
    )


def _path(pool: Pool) -> tuple[int, int]:
    return (pool.gue_port if pool.encapsulation == "gue" else 0), pool.mtu or 0


def _names(records: dict[Place, Any], kind: Kind, of: type[Any]) -> dict[int, str]:
    return {p.id: r.name for p, r in records.items() if p.kind is kind and isinstance(r, of)}


def _vips(
    fds: dict[str, int], names: dict[int, str], pools: dict[int, str]
) -> dict[bytes, tuple[Any, ...]]:
    in_force = vip_images.read(fds).in_force
    return {key: _vip(value, names, pools) for key, value in in_force.items()}


def _vip(value: bytes, names: dict[int, str], pools: dict[int, str]) -> tuple[Any, ...]:
    entry = np.frombuffer(value, layout.VIP)[0]
    rest = tuple(entry[f].item() for f in layout.VIP.names or () if f not in _HISTORY)
    flags = int(entry["flags"]) & ~layout.VIP_MOVED
    return (names[int(entry["id"])], pools.get(int(entry["pool"]), ""), flags, *rest)


def _table_in_force(pins: Path, outer: int, pool: int) -> Table:
    """Return the table that a slot of the outer map points to, by its pin.

    A publication that comes in between takes a pin away; then the slot is looked at again.
    """
    for _ in range(100):
        there = bpf.map_lookup(outer, pool.to_bytes(4, "little"), 4)
        for path in (pins / "tables").glob(f"{pool}-*"):
            with suppress(FileNotFoundError):
                fd = bpf.open_pin(str(path))
                try:
                    if there == bpf.map_info(fd).id.to_bytes(4, "little"):
                        return tables.read(fd)
                finally:
                    os.close(fd)
    raise AssertionError(f"no pinned table is in force for pool {pool}")


def _owners(table: Table, owners: dict[int, str]) -> tuple[str, ...]:
    return tuple(owners.get(id_, f"id {id_}") for id_ in table.current.tolist())


def _backends(
    fd: int, living: dict[int, ledger.BackendRecord]
) -> dict[tuple[str, str], tuple[Any, ...]]:
    entries = maps.read_array(fd, layout.BACKEND, MAX_BACKENDS)
    found = {}
    for id_, record in living.items():
        entry = entries[id_]
        assert entry["incarnation"] == record.incarnation, f"{record.name} has another's entry"
        endpoint = entry["endpoints"][int(entry["selected"])]
        path = (int(entry["flags"]), int(entry["gue_port"]), int(entry["mtu"]))
        found[record.pool, record.name] = (
            bytes(endpoint["address"]),
            int(endpoint["family"]),
            *path,
        )
    return found
