# SPDX-License-Identifier: Apache-2.0
"""Puts a generation into the kernel, in an order in which every moment is safe to crash at.

    1. ledger records and entries of backends that are new or changed, and their QUIC server ids
    2. new inner tables, filled and read back; nothing reads them yet
    3. the outer map's slots, all in one call, which returns after an RCU grace period
    4. source routes, then VIP entries; then those that are gone, in the opposite order
    5. the generation number; what is gone becomes free; the old tables go after the grace delay

Why this order. A table must not name a backend without an entry (1 before 3), a VIP must not point
to a slot without a table (3 before 4), and a backend's entry must stay while a table or VIP that is
still in force may lead to it (5 last). The flag that quarantines a backend is in its entry, so it
takes effect in step 1, before any table is rebuilt. A crash after a step leaves each VIP on its old
or its new table. The next start reads the kernel, plans from what it finds, and thereby finishes or
discards the rest: a backend with an entry and no slot is as good as one that was just added.

What follows from a generation alone (`entries`) is compared with what the maps hold, and only the
difference is written. A crash may have come between a ledger record and what it stands for, so the
first generation after a start is compared in full, though it may have the number that was found.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from tidegate.dataplane import entries, layout, ledger, tables
from tidegate.dataplane import syscalls as bpf
from tidegate.dataplane.ledger import Kind, MetaRecord, Place
from tidegate.dataplane.maps import read_all, read_array
from tidegate.errors import DataplaneError
from tidegate.model.address import packed
from tidegate.model.constants import MAX_BACKENDS
from tidegate.model.generation import NOTHING, Generation, PlacedBackend, PlacedPool, Slots, Table
from tidegate.model.values import Pool
from tidegate.planner import confirm

_FOLLOWING: Final = ("vips", "prefixes", "routes", "quic_servers")
"""Maps whose content follows from a generation alone."""


class _Retired(NamedTuple):
    """An old table that stays until the grace delay has passed."""

    until: float
    fd: int
    pin: Path


class Publisher:
    """Owns the maps that hold generations.

    Args:
        maps: descriptors by name.
        pins: folder of the pins, which has a folder `tables`.
        grace: seconds for which a replaced table stays loaded.
    """

    def __init__(self, maps: Mapping[str, int], pins: Path, grace: float) -> None:
        self._maps = maps
        self._pins = pins
        self.grace = grace
        self._entries = np.zeros(MAX_BACKENDS, layout.BACKEND)
        self._written: dict[str, dict[bytes, bytes]] = {name: {} for name in _FOLLOWING}
        self._records: dict[Place, ledger.Record] = {}
        self._tables: dict[int, tuple[int, Path]] = {}
        self._retired: list[_Retired] = []
        self._is_certain = True
        self.in_force: Generation = NOTHING

    def adopt(self) -> Generation:
        """Reads what the kernel holds, so that publishing goes on from there."""
        self._entries = read_array(self._maps["backends"], layout.BACKEND, MAX_BACKENDS).copy()
        self._written = {name: read_all(name, self._maps[name]) for name in _FOLLOWING}
        self._records = ledger.read(self._maps)
        self._tables = tables.adopt(self._pins, self._maps["outer"])
        found = {id_: tables.read(fd) for id_, (fd, _) in self._tables.items()}
        self.in_force = found_generation(self._records, found)
        self._is_certain = False
        return self.in_force

    def publish(self, generation: Generation, now: float) -> None:
        """Brings the kernel from the generation in force to this one.

        Args:
            generation: what the kernel shall hold.
            now: monotonic clock, s; starts the grace delay of the tables that it replaces.

        Raises:
            DataplaneError: the kernel refused a step. Each VIP is then on its old or its new table,
                and publishing again goes on from there.
        """
        if generation.number == self.in_force.number and self._is_certain:
            self._note_origin(generation)
            self.in_force = generation  # a new revision that no packet can tell from the last one
            return
        wanted = ledger.records(generation)
        try:
            self._write_backends(generation, wanted)
            self._swap(self._fill_tables(generation), now)
            self._write_vips(generation, wanted)
            self._retire(generation, wanted)
        except (OSError, DataplaneError) as error:
            # The number is spent: pins of the attempt carry it, and may be in force already.
            self.in_force = replace(self.in_force, number=generation.number)
            raise DataplaneError(
                f"publishing generation {generation.number} failed: {error}"
            ) from error
        self.in_force = generation
        self._is_certain = True

    @property
    def next_reap(self) -> float | None:
        """Monotonic second at which the next replaced table may be freed, or None."""
        return min((r.until for r in self._retired), default=None)

    def reap(self, now: float) -> None:
        """Frees the tables whose grace delay has passed by this monotonic second."""
        for retired in [r for r in self._retired if r.until <= now]:
            retired.pin.unlink(missing_ok=True)
            os.close(retired.fd)
            self._retired.remove(retired)

    def close(self) -> None:
        """Closes descriptors. What is pinned stays, and replaced tables lose their pins."""
        self.reap(float("inf"))
        for fd, _ in self._tables.values():
            os.close(fd)
        self._tables.clear()

    def _record(self, found: Mapping[Place, ledger.Record]) -> None:
        """Writes the records that differ from what the ledger holds."""
        changed = {place: r for place, r in found.items() if self._records.get(place) != r}
        ledger.write(self._maps, changed)
        self._records.update(changed)

    def _write_backends(
        self, generation: Generation, wanted: Mapping[Place, ledger.Record]
    ) -> None:
        living = (ledger.PoolRecord, ledger.BackendRecord)
        self._record(
            {place: record for place, record in wanted.items() if isinstance(record, living)}
        )
        changed = self._changed_backends(generation)
        ids = np.array([placed.identity.id for placed in changed], np.uint32)
        for placed in changed:
            self._stage(placed, generation.pools.get(placed.backend.pool))
        self._write_entries(ids)
        # Every address is in place; now select it. A packet sees the old one or the new one.
        for placed in changed:
            entry = self._entries[placed.identity.id]
            address = packed(placed.backend.address)
            entry["selected"] = int(bytes(entry["endpoints"]["address"][0]) != address)
        self._write_entries(ids)
        self._put("quic_servers", entries.quic_servers(generation))

    def _changed_backends(self, generation: Generation) -> list[PlacedBackend]:
        """Backends whose entry differs, for what they say or for what their pool says."""
        before, pools = self.in_force.backends, self.in_force.pools
        same_pools = {
            name
            for name, placed in generation.pools.items()
            if name in pools and _path(pools[name].pool) == _path(placed.pool)
        }
        return [
            placed
            for key, placed in generation.backends.items()
            if not self._is_certain
            or before.get(key) != placed
            or (key.pool in generation.pools and key.pool not in same_pools)
        ]

    def _stage(self, placed: PlacedBackend, pool: PlacedPool | None) -> None:
        """Everything of an entry but a changed address, which goes where no packet looks yet."""
        backend = placed.backend
        entry = self._entries[placed.identity.id]
        address = packed(backend.address)
        if entry["incarnation"] != placed.identity.incarnation:
            entry["endpoints"] = np.zeros(2, layout.ENDPOINT)
            entry["selected"] = 0
            entry["endpoints"][0] = (address, backend.address.version)
            entry["incarnation"] = placed.identity.incarnation
        selected = int(entry["selected"])
        if bytes(entry["endpoints"]["address"][selected]) != address:
            entry["endpoints"][1 - selected] = (address, backend.address.version)
        entry["flags"] = 0 if placed.reachable else layout.QUARANTINED
        if pool is not None:  # a draining backend may outlive its pool: it stays as it was
            entry["gue_port"], entry["mtu"] = _path(pool.pool)

    def _write_entries(self, ids: Slots) -> None:
        bpf.map_update_batch(
            self._maps["backends"], ids.tobytes(), self._entries[ids].tobytes(), len(ids)
        )

    def _fill_tables(self, generation: Generation) -> dict[int, tuple[int, Path]]:
        filled: dict[int, tuple[int, Path]] = {}
        for name, placed in generation.pools.items():
            old = self.in_force.pools.get(name)
            if old is not None and old.table is placed.table and placed.identity == old.identity:
                continue
            pool_id = placed.identity.id
            path = tables.pin_path(self._pins, pool_id, placed.table.generation)
            try:
                fd = tables.fill(placed.table)
                filled[pool_id] = (fd, path)
                bpf.pin(fd, str(path))
            except (OSError, DataplaneError):
                for fd, path in filled.values():
                    os.close(fd)
                    path.unlink(missing_ok=True)
                raise
        return filled

    def _swap(self, new: Mapping[int, tuple[int, Path]], now: float) -> None:
        slots = np.array(list(new), np.uint32)
        fds = np.array([fd for fd, _ in new.values()], np.uint32)
        bpf.map_update_batch(self._maps["outer"], slots.tobytes(), fds.tobytes(), len(slots))
        for pool_id, table in new.items():
            old = self._tables.get(pool_id)
            if old is not None:
                self._retired.append(_Retired(now + self.grace, *old))
            self._tables[pool_id] = table

    def _write_vips(self, generation: Generation, wanted: Mapping[Place, ledger.Record]) -> None:
        self._record({p: r for p, r in wanted.items() if isinstance(r, ledger.VipRecord)})
        contents = {
            "routes": entries.routes(generation),
            "vips": entries.vips(generation),
            "prefixes": entries.prefixes(generation),
        }
        for name, wanted_here in contents.items():
            self._put(name, wanted_here)
        # Last of all, so that a VIP that becomes a network is never away, and routes outlive VIPs.
        for name in reversed(contents):
            self._drop_others(name, contents[name])

    def _put(self, name: str, wanted: entries.Contents) -> None:
        """Writes the elements of a map that are new or changed."""
        written, fd = self._written[name], self._maps[name]
        changed = {key: value for key, value in wanted.items() if written.get(key) != value}
        if name in ("prefixes", "routes"):  # kernels before 5.13 have no batches of tries
            for key, value in changed.items():
                bpf.map_update(fd, key, value)
        else:
            keys, values = b"".join(changed), b"".join(changed.values())
            bpf.map_update_batch(fd, keys, values, len(changed))
        written.update(changed)

    def _drop_others(self, name: str, wanted: entries.Contents) -> None:
        """Deletes the elements of a map that are not wanted."""
        written, fd = self._written[name], self._maps[name]
        for key in written.keys() - wanted.keys():
            bpf.map_delete(fd, key)
            del written[key]

    def _note_origin(self, generation: Generation) -> None:
        """Records that what is in force is of another release now, if it is."""
        before, after = _meta(self.in_force), _meta(generation)
        if (before.release, before.pointer) != (after.release, after.pointer):
            try:
                self._record({Place(Kind.META, 0): after})
            except OSError as error:
                raise DataplaneError(f"the ledger cannot be written: {error}") from error

    def _retire(self, generation: Generation, wanted: Mapping[Place, ledger.Record]) -> None:
        self._record({**wanted, Place(Kind.META, 0): _meta(generation)})
        self._drop_others("quic_servers", entries.quic_servers(generation))
        living = [placed.identity.id for placed in generation.backends.values()]
        gone = np.setdiff1d(np.flatnonzero(self._entries["incarnation"]), living)
        self._entries[gone] = np.zeros((), layout.BACKEND)
        self._write_entries(gone.astype(np.uint32))
        kept = {placed.identity.id for placed in generation.pools.values()}
        for pool_id in self._tables.keys() - kept:
            bpf.map_delete(self._maps["outer"], pool_id.to_bytes(4, "little"))
            fd, pin = self._tables.pop(pool_id)
            os.close(fd)
            pin.unlink(missing_ok=True)


def _meta(generation: Generation) -> MetaRecord:
    return MetaRecord(
        generation.number,
        generation.revision,
        generation.hash_seed,
        generation.release,
        generation.pointer,
    )


def found_generation(
    records: Mapping[Place, ledger.Record], found: Mapping[int, Table]
) -> Generation:
    """The generation that a ledger's records and the tables in force (by pool id) are of."""
    contents = ledger.contents(records)
    pools = {
        name: PlacedPool(identity, pool, found[identity.id], b"")
        for name, (identity, pool) in contents.pools.items()
        if identity.id in found
    }
    meta = contents.meta
    number = max([meta.number, *(placed.table.generation for placed in pools.values())])
    vips = {n: p for n, p in contents.vips.items() if pools.keys() >= {*p.vip.pools}}
    return confirm(
        Generation(
            *(number, meta.revision, "", vips, pools, contents.backends, contents.freed),
            hash_seed=meta.hash_seed,
            release=meta.release,
            pointer=meta.pointer,
        )
    )


def _path(pool: Pool) -> tuple[int, int]:
    """How packets travel to a pool's backends: port of GUE or 0, MTU or 0."""
    return pool.gue_port if pool.encapsulation == "gue" else 0, pool.mtu or 0
