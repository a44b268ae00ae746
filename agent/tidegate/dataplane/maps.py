# SPDX-License-Identifier: Apache-2.0
"""The kernel's maps: their sizes, their pins, and reading and writing their elements.

The maps outlive the agent through their pins, and a program that is built later is loaded over the
same maps. A pin whose shape is not the one that this version wants is refused by name, never
silently replaced: it may hold live flows.
"""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tidegate.dataplane import layout
from tidegate.dataplane import syscalls as bpf
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.model.constants import MAX_BACKENDS, MAX_POOLS, MAX_VIPS
from tidegate.model.decision import Reason

LEDGER_VALUE_BYTES: Final = 256


@dataclass(frozen=True)
class Shape:
    """What a map is made of. Sizes in bytes."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


@dataclass(frozen=True)
class Capacity:
    """Entries of the tables whose size the operator chooses."""

    flows: int = 1 << 20
    syns: int = 1 << 16


def shapes(capacity: Capacity) -> dict[str, Shape]:
    """Every pinned map by name."""
    u32 = layout.ID.itemsize
    flow = (layout.FLOW_KEY.itemsize, layout.FLOW.itemsize)
    percpu = bpf.PERCPU_ARRAY
    return {
        "vips": Shape(bpf.HASH, layout.VIP_KEY.itemsize, layout.VIP.itemsize, MAX_VIPS),
        "outer": Shape(bpf.ARRAY_OF_MAPS, u32, u32, MAX_POOLS),
        "backends": Shape(bpf.ARRAY, u32, layout.BACKEND.itemsize, MAX_BACKENDS),
        # LRU lists per CPU, entries visible to every CPU (design section 6).
        "flows": Shape(bpf.LRU_HASH, *flow, capacity.flows, bpf.F_NO_COMMON_LRU),
        "syns": Shape(bpf.LRU_HASH, *flow, capacity.syns, bpf.F_NO_COMMON_LRU),
        "links": Shape(bpf.HASH, u32, layout.LINK.itemsize, 64),
        "vip_counts": Shape(percpu, u32, layout.VIP_COUNTERS.itemsize, MAX_VIPS),
        "backend_counts": Shape(percpu, u32, layout.BACKEND_COUNTERS.itemsize, MAX_BACKENDS),
        "drop_counts": Shape(percpu, u32, layout.DROPS.itemsize, len(Reason)),
        # Names and values of what the ids stand for; no packet reads it.
        "ledger": Shape(
            bpf.HASH,
            2 * u32,
            LEDGER_VALUE_BYTES,
            MAX_VIPS + MAX_POOLS + MAX_BACKENDS,
            bpf.F_NO_PREALLOC,
        ),
    }


INNER: Final = Shape(bpf.ARRAY, layout.ID.itemsize, layout.TABLE.itemsize, 1)


def cpu_count() -> int:
    """CPUs that a per-CPU map has values for: the possible ones, not those online."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return int(text.strip().split("-")[-1].split(",")[-1]) + 1


def create_inner() -> int:
    """An inner table, empty, as a descriptor."""
    return _create("inner", INNER)


def _create(name: str, shape: Shape, inner_fd: int = 0) -> int:
    try:
        return bpf.map_create(
            shape.kind,
            f"tg_{name}",
            shape.key_size,
            shape.value_size,
            shape.max_entries,
            shape.flags,
            inner_fd,
        )
    except OSError as error:
        if error.errno == errno.EPERM:
            raise CapabilityError(
                f"may not create BPF map {name!r}: run as root, or with CAP_BPF and CAP_NET_ADMIN"
            ) from error
        raise DataplaneError(
            f"cannot create BPF map {name!r} of {shape.max_entries} entries of "
            f"{shape.value_size} bytes: {error.strerror}"
        ) from error


class Maps(Mapping[str, int]):
    """The descriptors of all maps by name, closed together."""

    def __init__(self, fds: dict[str, int]) -> None:
        self._fds = fds

    def __getitem__(self, name: str) -> int:
        return self._fds[name]

    def __iter__(self):  # type: ignore[no-untyped-def]  # noqa: ANN204
        return iter(self._fds)

    def __len__(self) -> int:
        return len(self._fds)

    def close(self) -> None:
        """Closes the descriptors; pinned maps live on."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def create(capacity: Capacity) -> Maps:
    """Maps without pins, which die with their descriptors: for tests and simulation."""
    fds: dict[str, int] = {}
    for name, shape in shapes(capacity).items():
        fds[name] = _create_named(name, shape)
    return Maps(fds)


def _create_named(name: str, shape: Shape) -> int:
    if shape.kind != bpf.ARRAY_OF_MAPS:
        return _create(name, shape)
    template = create_inner()  # the outer map learns its leaf's shape from one inner map
    try:
        return _create(name, shape, template)
    finally:
        os.close(template)


def create_or_adopt(pins: Path, capacity: Capacity) -> tuple[Maps, bool]:
    """Opens what is pinned in a folder and creates what is not.

    Returns:
        The maps, and whether they were there before.

    Raises:
        DataplaneError: a pinned map has another shape than this version wants.
    """
    fds: dict[str, int] = {}
    adopted = False
    try:
        for name, shape in shapes(capacity).items():
            path = pins / name
            if path.exists():
                fds[name] = bpf.open_pin(str(path))
                _compare(path, shape, bpf.map_info(fds[name]))
                adopted = True
            else:
                fds[name] = _create_named(name, shape)
                bpf.pin(fds[name], str(path))
    except BaseException:
        Maps(fds).close()
        raise
    return Maps(fds), adopted


def _compare(path: Path, shape: Shape, info: bpf.MapInfo) -> None:
    found = Shape(info.type, info.key_size, info.value_size, info.max_entries, info.flags)
    if found != shape:
        raise DataplaneError(
            f"the pinned map {path} has another shape ({found}) than this version wants ({shape}): "
            "it belongs to another version or another capacity setting. Restore that setting, or, "
            f"to give up the flows that it tracks, detach the program and remove {path.parent}"
        )


def read_array(fd: int, dtype: np.dtype[np.void], capacity: int) -> np.ndarray:
    """All values of an array map, in the order of their index."""
    _, values, count = bpf.map_items(fd, 4, dtype.itemsize, capacity)
    return np.frombuffer(values, dtype, count)
