# SPDX-License-Identifier: Apache-2.0
"""A copy of the maps that hold generations, as they were last read or written.

With it only differences are written, and an audit knows what must be there. It is exact as long as
every call to the kernel succeeds. After one that failed it may not be, since a batch can fail in
its middle: then `load` reads everything again.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.publish import entries, ledger, ledger_bytes, tables
from tidegate.dataplane.publish.ledger import Kind, Place
from tidegate.dataplane.publish.vip_images import VipImages
from tidegate.model.constants import MAX_BACKENDS
from tidegate.model.generation import Slots

FOLLOWING: Final = ("prefixes", "routes", "quic_servers", "stand_ins")
"""Keyed maps whose content follows from a generation alone."""

KEYED: Final = (*FOLLOWING, *ledger_bytes.MAPS)
"""Maps that are mirrored key by key; the others are arrays: backends, VIPs, and the outer map."""

_TRIES: Final = ("prefixes", "routes")


class Loaded(NamedTuple):
    """A table in the kernel: its descriptor and its pin."""

    fd: int
    pin: Path

    def drop(self) -> None:
        """Remove the pin and close the descriptor; the table goes when no slot points to it."""
        self.pin.unlink(missing_ok=True)
        os.close(self.fd)


class Mirror:
    """The kernel's content and the ways to change it.

    Attributes:
        entries: backends by id, as bpf/layout.h defines them.
        written: key and value bytes of each keyed map.
        images: VIPs of one address.
        records: the ledger's records, as values.
        tables: tables in force by pool id.
        held: ids of backends whose record and flag stay as they are, whatever is written.
    """

    def __init__(self, fds: Mapping[str, int], pins: Path) -> None:
        self.fds = fds
        self.pins = pins
        self.entries = np.zeros(MAX_BACKENDS, layout.BACKEND)
        self.written: dict[str, entries.Contents] = {name: {} for name in KEYED}
        self.images = VipImages(fds)
        self.records: dict[Place, ledger.Record] = {}
        self.tables: dict[int, Loaded] = {}
        self.held: set[int] = set()

    def load(self, *, strict: bool) -> None:
        """Read everything but the tables.

        Args:
            strict: refuse records that cannot be read, instead of leaving them out.

        Raises:
            DataplaneError: such a record was found.
        """
        self.entries = self.read_entries().copy()
        self.images.load()
        self.written = {name: maps.read_all(name, self.fds[name]) for name in KEYED}
        found = {k: v for name in ledger_bytes.MAPS for k, v in self.written[name].items()}
        self.records = ledger_bytes.decoded(found, strict=strict)

    def load_tables(self) -> None:
        """Open the tables in force by their pins, and remove pins of tables that are not."""
        found = tables.adopt(self.pins, self.fds["outer"])
        self.tables = {pool_id: Loaded(*table) for pool_id, table in found.items()}

    def close_tables(self) -> None:
        """Close the descriptors of the tables in force; their pins stay."""
        for table in self.tables.values():
            os.close(table.fd)
        self.tables.clear()

    def read_entries(self) -> np.ndarray:
        """Read the kernel's entry of every backend id."""
        return maps.read_array(self.fds["backends"], layout.BACKEND, MAX_BACKENDS)

    def record(self, wanted: Mapping[Place, ledger.Record]) -> None:
        """Write records that are new or changed."""
        records, held = self.records, self.held
        changed = {
            place: record
            for place, record in wanted.items()
            if (old := records.get(place)) is not record
            and old != record
            and not (place.kind is Kind.BACKEND and place.id in held)
        }
        for name, values in ledger_bytes.encoded(changed).items():
            self.put(name, values)
        self.records.update(changed)

    def forget_others(self, places: Collection[Place]) -> None:
        """Delete all records but those at these places, those that cannot be read among them."""
        kept = {ledger_bytes.where(place) for place in places}
        for name in ledger_bytes.MAPS:
            for key in [key for key in self.written[name] if (name, key) not in kept]:
                self.delete(name, key)
        for place in self.records.keys() - set(places):
            del self.records[place]

    def write_entries(self, ids: Slots) -> None:
        """Write these backends' entries as they stand in `entries`."""
        if self.held:
            self.entries["flags"][list(self.held)] = layout.QUARANTINED
        bpf.map_update_batch(
            self.fds["backends"], ids.tobytes(), self.entries[ids].tobytes(), len(ids)
        )

    def clear_entries_but(self, living: Collection[int]) -> None:
        """Empty the entries of all but these ids."""
        is_gone = self.entries["incarnation"] > 0
        is_gone[np.fromiter(living, np.int64, len(living))] = False
        self.clear_entries(np.flatnonzero(is_gone))

    def clear_entries(self, gone: npt.NDArray[np.int64]) -> None:
        """Empty the entries of these ids."""
        self.entries[gone] = np.zeros((), layout.BACKEND)
        self.write_entries(gone.astype(np.uint32))

    def differing(self, name: str, wanted: entries.Contents) -> entries.Contents:
        """Return the elements of a keyed map that are new or changed."""
        written = self.written[name]
        return {key: value for key, value in wanted.items() if written.get(key) != value}

    def put(self, name: str, wanted: entries.Contents) -> None:
        """Write the elements of a keyed map that are new or changed."""
        written, fd = self.written[name], self.fds[name]
        changed = self.differing(name, wanted)
        if name in _TRIES:  # kernels before 5.13 have no batches of tries
            for key, value in changed.items():
                bpf.map_update(fd, key, value)
        else:
            keys, values = b"".join(changed), b"".join(changed.values())
            bpf.map_update_batch(fd, keys, values, len(changed))
        written.update(changed)

    def drop_others(self, name: str, wanted: entries.Contents) -> None:
        """Delete the elements of a keyed map that are not wanted."""
        for key in self.written[name].keys() - wanted.keys():
            self.delete(name, key)

    def replace(self, name: str, wanted: entries.Contents) -> None:
        """Make a keyed map hold what is wanted, and nothing else."""
        self.put(name, wanted)
        self.drop_others(name, wanted)

    def delete(self, name: str, key: bytes) -> None:
        """Delete an element of a keyed map."""
        bpf.map_delete(self.fds[name], key)
        self.written[name].pop(key, None)

    def point(self, new: Mapping[int, Loaded]) -> None:
        """Point slots of the outer map to tables, all in one call, which waits for all packets."""
        slots = np.array(list(new), np.uint32)
        fds = np.array([table.fd for table in new.values()], np.uint32)
        bpf.map_update_batch(self.fds["outer"], slots.tobytes(), fds.tobytes(), len(slots))
        self.images.is_settled = self.images.is_settled or bool(new)

    def drop_unused(self, filled: Iterable[Loaded]) -> None:
        """Drop those of these tables that did not come into force, unless they are dropped."""
        used = {table.fd for table in self.tables.values()}
        for table in filled:
            if table.fd not in used and table.pin.exists():
                table.drop()

    def settle(self) -> None:
        """Wait for an RCU grace period, so that no packet reads the image that is not in force."""
        for pool_id, table in self.tables.items():
            self.point({pool_id: table})
            return
