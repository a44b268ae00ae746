# SPDX-License-Identifier: Apache-2.0
"""The state of a pinned data plane, read without changing it: its generation and tracked flows.

Nothing here writes: pins are opened read-only, or mapped to be read. No lock is taken and no
leftover is removed, so an agent may run and publish meanwhile. What is read is then checked to be
of one moment: if the ledger's last complete generation or a table was replaced while it was read,
it is read again. The connection table is mapped, so to read it takes no call; flows come and go
meanwhile, and of those that stay each is seen once.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np

from tidegate.dataplane.inspect.live_flows import Flows, read
from tidegate.dataplane.kernel import layout
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.lines import MappedLines
from tidegate.dataplane.publish import ledger_bytes, tables
from tidegate.dataplane.publish.ledger import Kind, MetaRecord, Place
from tidegate.dataplane.publish.restore import restored_generation
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.model.constants import MAX_POOLS
from tidegate.model.generation import NOTHING, Generation, Table

_ATTEMPTS: Final = 50
_PAUSE_SECONDS: Final = 0.02
_MAPS: Final = ("ledger", "wide_ledger", "outer", "flows")
_MAPPED: Final = "flows"
"""The kernel maps none that was opened read-only; its memory is mapped so that it can be read only.
"""
_META: Final = Place(Kind.META, 0)


class _Found(NamedTuple):
    """What the pins held at one moment, and whether no publishing was under way."""

    generation: Generation
    is_whole: bool


class PinnedDataPlane:
    """What is pinned in a folder, from `with` to its end; nothing at all if there is no folder."""

    def __init__(self, pins: Path) -> None:
        self._pins = pins
        self._fds: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Open the pins.

        Raises:
            CapabilityError: it may not.
            DataplaneError: what is pinned there is not a data plane of this version.
        """
        with ExitStack() as undo:
            undo.callback(self._close)
            try:
                is_there = (self._pins / _MAPS[0]).exists()
                for name in _MAPS if is_there else ():
                    path, is_read = str(self._pins / name), name != _MAPPED
                    self._fds[name] = bpf.open_pin(path, read_only=is_read)
            except PermissionError as error:
                raise CapabilityError(
                    f"may not read the data plane in {self._pins}: run as root"
                ) from error
            except OSError as error:
                raise DataplaneError(
                    f"{self._pins} has no whole data plane ({error.strerror}): start its agent"
                ) from error
            self._check()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _check(self) -> None:
        if not self._fds:
            return
        info = bpf.map_info(self._fds[_MAPPED])
        sizes = info.type, info.key_size, info.value_size
        if sizes != (bpf.ARRAY, layout.ID.itemsize, layout.LINE.itemsize):
            raise DataplaneError(
                f"the connection table in {self._pins} is of another version of Tidegate"
            )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is pinned there."""
        return not self._fds

    def generation(self) -> Generation:
        """Read the generation in force.

        Raises:
            DataplaneError: it cannot be read, or changes faster than it can be read.
        """
        if not self._fds:
            return NOTHING
        for attempt in range(_ATTEMPTS):
            try:
                found = self._read_generation()
            except FileNotFoundError:  # a table's pin went while we looked
                found = None
            # What is not whole is soon, or it was left by a crash, and then it is what is in force.
            if found is not None and (found.is_whole or attempt >= _ATTEMPTS // 2):
                return found.generation
            time.sleep(_PAUSE_SECONDS)
        raise DataplaneError(f"{self._pins} changes faster than it can be read: try again")

    def _read_generation(self) -> _Found | None:
        """Read what is in force; None if it changed meanwhile."""
        slots = self._slots()
        records = ledger_bytes.read(self._fds)
        found = self._tables(slots)
        if found is None or slots != self._slots() or records != ledger_bytes.read(self._fds):
            return None
        meta = records.get(_META)
        is_done = not isinstance(meta, MetaRecord) or meta.attempt <= meta.number
        generation = restored_generation(records, found)
        is_built = all(placed.digest for placed in generation.pools.values())
        return _Found(generation, is_done and is_built)

    def _slots(self) -> dict[int, int]:
        """Read the kernel's id of each pool's table."""
        keys, values, count = bpf.map_items(self._fds["outer"], 4, 4, MAX_POOLS)
        pools, found = (np.frombuffer(raw, "<u4", count).tolist() for raw in (keys, values))
        return dict(zip(pools, found, strict=True))

    def _tables(self, slots: dict[int, int]) -> dict[int, Table] | None:
        """Read the tables that the outer map points to; None if one has no pin."""
        found: dict[int, Table] = {}
        for path in (self._pins / "tables").iterdir():
            pool_id = path.name.split("-")[0]
            if not pool_id.isdecimal() or int(pool_id) not in slots:
                continue
            fd = bpf.open_pin(str(path), read_only=True)
            try:
                if bpf.map_info(fd).id == slots[int(pool_id)]:
                    found[int(pool_id)] = tables.read(fd)
            finally:
                os.close(fd)
        return found if found.keys() == slots.keys() else None

    def flows(self, tick: int) -> Iterator[Flows]:
        """Yield the entries of the connection table as they are at this tick, in parts."""
        if not self._fds:
            return
        pairs = bpf.map_info(self._fds[_MAPPED]).max_entries // 2
        with MappedLines(self._fds[_MAPPED], pairs) as table:
            yield from read(table.lines, tick)
