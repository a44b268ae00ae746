# SPDX-License-Identifier: Apache-2.0
"""What the pinned maps of a data plane hold, by the names of things, for comparing two of them.

Ids and incarnations depend on a host's history, so they are replaced by the names that the ledger
has for them. What is draining is left out, and so are fallbacks and windows: they are history too.
The maps are only read, so an agent may be at work on them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tidegate.dataplane import layout, ledger, maps, tables
from tidegate.dataplane import syscalls as bpf
from tidegate.dataplane.ledger import Kind, Place
from tidegate.model.constants import MAX_BACKENDS

_HISTORY = {"id", "incarnation", "pool"}


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
    wanted = ("vips", "outer", "backends", "ledger", "wide_ledger")
    fds = {name: bpf.open_pin(str(pins / name)) for name in wanted}
    try:
        yield fds
    finally:
        for fd in fds.values():
            os.close(fd)


def read(pins: Path) -> Contents:
    """The contents of the data plane that is pinned in a folder."""
    with _opened(pins) as fds:
        records = ledger.read(fds)
        pools = _names(records, Kind.POOL, ledger.PoolRecord)
        living = {
            place.id: record
            for place, record in records.items()
            if isinstance(record, ledger.BackendRecord) and record.retire_at is None
        }
        owners = {id_: f"{record.pool}/{record.name}" for id_, record in living.items()}
        return Contents(
            _vips(fds["vips"], _names(records, Kind.VIP, ledger.VipRecord), pools),
            {
                pools[id_]: _table(fd, owners)
                for id_, fd in _tables_in_force(pins, fds["outer"])
                if id_ in pools
            },
            _backends(fds["backends"], living),
        )


def _names(records: dict[Place, Any], kind: Kind, of: type[Any]) -> dict[int, str]:
    return {p.id: r.name for p, r in records.items() if p.kind is kind and isinstance(r, of)}


def _vips(fd: int, names: dict[int, str], pools: dict[int, str]) -> dict[bytes, tuple[Any, ...]]:
    found = {}
    for key, value in maps.read_all("vips", fd).items():
        entry = np.frombuffer(value, layout.VIP)[0]
        rest = tuple(entry[f].item() for f in layout.VIP.names or () if f not in _HISTORY)
        found[key] = (names[int(entry["id"])], pools.get(int(entry["pool"]), ""), *rest)
    return found


def _tables_in_force(pins: Path, outer: int) -> Iterator[tuple[int, int]]:
    """Pool id and descriptor of each pinned table that the outer map points to."""
    for path in sorted((pins / "tables").iterdir()):
        pool = int(path.name.split("-")[0])
        fd = bpf.open_pin(str(path))
        try:
            there = bpf.map_lookup(outer, pool.to_bytes(4, "little"), 4)
            if there is not None and int.from_bytes(there, "little") == bpf.map_info(fd).id:
                yield pool, fd
        finally:
            os.close(fd)


def _table(fd: int, owners: dict[int, str]) -> tuple[str, ...]:
    return tuple(owners.get(int(id_), f"id {id_}") for id_ in tables.read(fd).current)


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
