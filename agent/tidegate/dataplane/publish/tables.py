# SPDX-License-Identifier: Apache-2.0
"""Inner tables: filling, checking, pinning, and reading them back.

An inner table is one array element, so it is written by one call, and nobody reads it before the
outer map's slot points to it. Each is pinned as tables/<pool id>-<generation>: opening a map by the
id that the outer map returns would take CAP_SYS_ADMIN.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.publish.steps import Reached, Step, unwatched
from tidegate.errors import DataplaneError
from tidegate.model.constants import MAX_POOLS
from tidegate.model.generation import Table, Window

_FIRST: Final = b"\0\0\0\0"
_IN_WINDOW: Final = np.uint32(layout.IN_WINDOW)
_MAY_BE_TRACKED: Final = np.uint32(layout.MAY_BE_TRACKED)
_OWNER: Final = np.uint32(layout.OWNER)


def encode(table: Table) -> bytearray:
    """Encode a table as bpf/layout.h defines it."""
    blob = bytearray(layout.TABLE.itemsize)
    leaf = np.frombuffer(blob, layout.TABLE)[0]
    leaf["generation"] = table.generation
    leaf["window_count"] = len(table.windows)
    leaf["windows"][: len(table.windows)] = np.array(list(table.windows), layout.WINDOW)
    leaf["slots"]["current"] = table.current
    leaf["slots"]["fallback"] = (
        table.fallback
        | np.where(table.window > 0, _IN_WINDOW, np.uint32(0))
        | np.where(table.tracked, _MAY_BE_TRACKED, np.uint32(0))
    )
    leaf["window"] = table.window
    return blob


def decode(blob: bytes) -> Table:
    """Decode a table; the arrays are copies that own their memory."""
    leaf = np.frombuffer(blob, layout.TABLE)[0]
    windows = leaf["windows"][: int(leaf["window_count"])]
    table = Table(
        generation=int(leaf["generation"]),
        current=leaf["slots"]["current"].copy(),
        fallback=leaf["slots"]["fallback"] & _OWNER,
        window=leaf["window"].copy(),
        tracked=leaf["slots"]["fallback"] & _MAY_BE_TRACKED > 0,
        windows=tuple(Window(int(w["opened"]), int(w["closes_at"])) for w in windows),
    )
    for array in (table.current, table.fallback, table.window, table.tracked):
        array.flags.writeable = False
    return table


def fill(table: Table, reached: Reached = unwatched) -> int:
    """Create an inner map with this table, read back and compared; return its descriptor.

    Args:
        table: the table.
        reached: called when it is written, before it is read back.

    Raises:
        DataplaneError: no memory, or what was read back is not what was written.
    """
    fd = maps.create_inner()
    blob = encode(table)
    try:
        bpf.map_update(fd, _FIRST, memoryview(blob))
        reached(Step.TABLE_WRITTEN)
        again = bpf.map_lookup(fd, _FIRST, len(blob))
    except OSError as error:
        os.close(fd)
        raise DataplaneError(f"cannot fill an inner table: {error.strerror}") from error
    if again != bytes(
        blob
    ):  # bytes compare as memory; a memoryview would compare element by element
        os.close(fd)
        raise DataplaneError(
            f"table of generation {table.generation} reads back differently than it was written"
        )
    return fd


def read(fd: int) -> Table:
    """Read the table in an inner map."""
    blob = bpf.map_lookup(fd, _FIRST, layout.TABLE.itemsize)
    if blob is None:
        raise DataplaneError("an inner table has no element")  # an array always has its elements
    return decode(blob)


def holds(fd: int, table: Table) -> bool:
    """Return whether an inner map has this table in it, byte for byte."""
    blob = encode(table)
    return bpf.map_lookup(fd, _FIRST, len(blob)) == bytes(blob)


def pin_path(pins: Path, pool_id: int, generation: int) -> Path:
    """Return where a pool's table of a generation is pinned."""
    return pins / "tables" / f"{pool_id}-{generation}"


def pin(fd: int, path: Path) -> None:
    """Pin a table. In a folder that is gone nothing is pinned: the slot keeps the table alive.

    Raises:
        DataplaneError: the kernel refused.
    """
    try:
        with suppress(FileNotFoundError):
            bpf.pin(fd, str(path))
    except OSError as error:
        raise DataplaneError(f"cannot pin table {path.name}: {error.strerror}") from error


def id_of(fd: int) -> int:
    """Return the kernel's id of a table, which is what a look-up in the outer map returns."""
    return bpf.object_id(fd)


def slots(outer: int) -> dict[int, int]:
    """Read the ids of the tables that the outer map points to, by pool id."""
    keys, values, count = bpf.map_items(outer, 4, 4, MAX_POOLS)
    found = zip(np.frombuffer(keys, "<u4", count), np.frombuffer(values, "<u4", count), strict=True)
    return {int(pool): int(table) for pool, table in found}


def clear_slot(outer: int, pool_id: int) -> None:
    """Take a pool's table out of the outer map."""
    bpf.map_delete(outer, pool_id.to_bytes(4, "little"))


def adopt(pins: Path, outer: int) -> dict[int, tuple[int, Path]]:
    """Open each pool's table in force; return descriptor and pin by pool id.

    Pins that the outer map does not point to are left over from a crash and are removed.
    """
    in_force: dict[int, tuple[int, Path]] = {}
    for path in sorted((pins / "tables").iterdir()):
        owner = path.name.split("-")[0]
        if not owner.isdecimal():
            continue  # not ours
        pool_id = int(owner)
        fd = bpf.open_pin(str(path))
        points_to = bpf.map_lookup(outer, pool_id.to_bytes(4, "little"), 4)
        if points_to is not None and int.from_bytes(points_to, "little") == bpf.map_info(fd).id:
            in_force[pool_id] = (fd, path)
        else:
            os.close(fd)
            path.unlink()
    return in_force
