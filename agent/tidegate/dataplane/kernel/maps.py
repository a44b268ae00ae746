# SPDX-License-Identifier: Apache-2.0
"""The kernel's maps: their sizes, their pins, and reading and writing their elements.

The maps outlive the agent through their pins, and a program that is built later is loaded over the
same maps. A pin whose shape is not the one that this version wants is never silently replaced, as
it may hold live flows: it is refused by name here, or taken over (dataplane/takeover).
"""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from tidegate.dataplane.kernel import layout
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.model.constants import (
    MAX_BACKENDS,
    MAX_INTERFACE_INDEX,
    MAX_NETWORK_VIPS,
    MAX_OWN_ADDRESSES,
    MAX_POOLS,
    MAX_ROUTES,
    MAX_VIPS,
    VIP_PLACES,
)
from tidegate.spec.answer import Answer
from tidegate.spec.limit import CELLS

LEDGER_VALUE_BYTES: Final = 256
WIDE_LEDGER_VALUE_BYTES: Final = 4096  # VIPs with a hundred routes, pools with a check
OWNER_BYTES: Final = 1024
_MARK_SHARE: Final = 64
_BATCH: Final = 512
"""Elements that are read at once: many more than a bucket of a hash has."""
VERDICTS: Final = 4
"""XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX (include/uapi/linux/bpf.h)."""


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
    """Entries of the tables whose size the operator chooses.

    Attributes:
        events: bytes of the ring buffer of events, a power of two of at least a page.
    """

    flows: int = 1 << 20
    syns: int = 1 << 16
    fragments: int = 1 << 14
    events: int = 1 << 20

    @property
    def pairs(self) -> dict[str, int]:
        """Return the pairs of lines of each table that packets write, by name of the map."""
        sizes = {"flows": self.flows, "syns": self.syns, "fragments": self.fragments}
        return {name: _pairs(entries) for name, entries in sizes.items()}

    @property
    def mark_rate(self) -> int:
        """Return how many SYNs of one source prefix are marked in a second, wherever there is room.

        In the six seconds that a mark is kept at the most that is a tenth of all marks.
        """
        return max(1, self.syns // _MARK_SHARE)


def _pairs(entries: int) -> int:
    """Return the pairs of lines in which so many entries find room.

    Ten places for 8/3 entries on average: of so many entries, one in 20,000 finds its pair full
    (Poisson; docs/performance.md has it measured).
    """
    return -(-entries * 3 // 8)


def _lines(pairs: int) -> "Shape":
    """Return the shape of a table of lines, which user space can map and read as it stands."""
    line = layout.LINE.itemsize
    return Shape(bpf.ARRAY, layout.ID.itemsize, line, 2 * pairs, bpf.F_MMAPABLE)


def _cells() -> "Shape":
    """Return the shape of limits that all source prefixes share: two rows of cells."""
    cell = layout.LIMIT_CELL.itemsize
    return Shape(bpf.ARRAY, layout.ID.itemsize, cell, 2 * CELLS, bpf.F_MMAPABLE)


def shapes(capacity: Capacity) -> dict[str, Shape]:
    """Return the shape of every pinned map by name."""
    u32 = layout.ID.itemsize
    bucket = layout.BUCKET.itemsize
    percpu = bpf.PERCPU_ARRAY
    return {
        # Two images. Memory that a process may map begins at a page, so a place at a cache line.
        "vips": Shape(bpf.ARRAY, u32, layout.VIP_PLACE.itemsize, 2 * VIP_PLACES, bpf.F_MMAPABLE),
        "vip_image": Shape(bpf.ARRAY, u32, u32, 1),
        "vip_addresses": Shape(bpf.ARRAY, u32, layout.ADDRESS_BITS.itemsize, 1),
        "prefixes": _trie(layout.PREFIX_KEY, layout.VIP, 4 * MAX_NETWORK_VIPS),
        "own_addresses": Shape(
            bpf.HASH, layout.OWN_KEY.itemsize, u32, MAX_OWN_ADDRESSES, bpf.F_NO_PREALLOC
        ),
        "routes": _trie(layout.ROUTE_KEY, layout.ROUTE, 2 * MAX_ROUTES),
        "outer": Shape(bpf.ARRAY_OF_MAPS, u32, u32, MAX_POOLS),
        "backends": Shape(bpf.ARRAY, u32, layout.BACKEND.itemsize, MAX_BACKENDS),
        # One for all CPUs: errors and fragments of a flow come to another one (design section 6).
        **{name: _lines(pairs) for name, pairs in capacity.pairs.items()},
        "quic_servers": Shape(
            bpf.HASH, layout.QUIC_KEY.itemsize, layout.QUIC_SERVER.itemsize, MAX_BACKENDS
        ),
        "stand_ins": Shape(bpf.HASH, u32, layout.STAND_IN_LIST.itemsize, MAX_POOLS),
        "syn_limits": _cells(),
        "mark_limits": _cells(),
        "insert_limits": Shape(percpu, u32, bucket, MAX_VIPS),
        "answer_limits": Shape(percpu, u32, bucket, len(Answer)),
        "error_limits": Shape(percpu, u32, bucket, MAX_VIPS),
        "links": Shape(bpf.ARRAY, u32, layout.LINK.itemsize, MAX_INTERFACE_INDEX),
        "vip_counts": Shape(percpu, u32, layout.VIP_COUNTERS.itemsize, MAX_VIPS),
        "address_counts": Shape(percpu, u32, layout.ADDRESS_COUNTERS.itemsize, MAX_VIPS),
        "backend_counts": Shape(percpu, u32, layout.BACKEND_COUNTERS.itemsize, MAX_BACKENDS),
        "verdict_counts": Shape(percpu, u32, layout.VERDICTS.itemsize, VERDICTS),
        "events": Shape(bpf.RINGBUF, 0, 0, capacity.events),
        "event_space": Shape(percpu, u32, layout.EVENT.itemsize, 1),
        "event_limits": Shape(percpu, u32, bucket, MAX_VIPS),
        "event_counts": Shape(percpu, u32, layout.EVENT_COUNTERS.itemsize, 1),
        # Names and values of what the ids stand for; no packet reads them.
        "ledger": Shape(bpf.HASH, 2 * u32, LEDGER_VALUE_BYTES, MAX_BACKENDS, bpf.F_NO_PREALLOC),
        "wide_ledger": Shape(
            bpf.HASH,
            2 * u32,
            WIDE_LEDGER_VALUE_BYTES,
            MAX_VIPS + MAX_POOLS,
            bpf.F_NO_PREALLOC,
        ),
        # Whose data plane it is, for who finds the program without pins (kernel/owner.py).
        "owner": Shape(bpf.ARRAY, u32, OWNER_BYTES, 1),
    }


def _trie(key: np.dtype[np.void], value: np.dtype[np.void], entries: int) -> Shape:
    """Return the shape of a trie, which the kernel has without preallocation only."""
    return Shape(bpf.LPM_TRIE, key.itemsize, value.itemsize, entries, bpf.F_NO_PREALLOC)


INNER: Final = Shape(bpf.ARRAY, layout.ID.itemsize, layout.TABLE.itemsize, 1)


@cache
def cpu_count() -> int:
    """Count the CPUs that a per-CPU map has values for: the possible ones, not those online."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return int(text.strip().split("-")[-1].split(",")[-1]) + 1


def kernel_name(name: str) -> str:
    """Return what the kernel calls a map; it takes 15 characters."""
    return f"tg_{name}"[:15]


def create_inner() -> int:
    """Create an empty inner table; return its descriptor."""
    return _create("inner", INNER)


def _create(name: str, shape: Shape, inner_fd: int = 0) -> int:
    try:
        return bpf.map_create(
            shape.kind,
            kernel_name(name),
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
        """Close the descriptors; pinned maps live on."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def few(wanted: Mapping[str, Shape], ids: int) -> dict[str, Shape]:
    """Return shapes for few ids: per-CPU arrays are allocated element by element."""
    return {
        name: replace(shape, max_entries=min(shape.max_entries, ids))
        if shape.kind == bpf.PERCPU_ARRAY
        else shape
        for name, shape in wanted.items()
    }


def create(wanted: Mapping[str, Shape]) -> Maps:
    """Create maps without pins, for proofs, tests and simulation; closing them frees them."""
    fds: dict[str, int] = {}
    for name, shape in wanted.items():
        fds[name] = create_one(name, shape)
    return Maps(fds)


def create_one(name: str, shape: Shape) -> int:
    """Create a map without a pin; return its descriptor."""
    if shape.kind != bpf.ARRAY_OF_MAPS:
        return _create(name, shape)
    template = create_inner()  # the outer map learns its leaf's shape from one inner map
    try:
        return _create(name, shape, template)
    finally:
        os.close(template)


def create_or_adopt(pins: Path, capacity: Capacity) -> tuple[Maps, bool]:
    """Open what is pinned in a folder and create what is not.

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
                _check(path, shape_of(fds[name]), shape)
                adopted = True
            else:
                fds[name] = create_one(name, shape)
                bpf.pin(fds[name], str(path))
    except BaseException:
        Maps(fds).close()
        raise
    return Maps(fds), adopted


def shape_of(fd: int) -> Shape:
    """Return the shape of an open map."""
    info = bpf.map_info(fd)
    return Shape(info.type, info.key_size, info.value_size, info.max_entries, info.flags)


def _check(path: Path, found: Shape, wanted: Shape) -> None:
    if found != wanted:
        raise other_shape(path, found, wanted)


def other_shape(path: Path, found: Shape, wanted: Shape) -> DataplaneError:
    """Return the refusal of a pinned map that has another shape than this version wants."""
    return DataplaneError(
        f"the pinned map {path} has another shape ({found}) than this version wants ({wanted}): "
        "it belongs to another version or another capacity setting. Restore that setting, or, "
        "to give up the flows that it tracks, start the agent once with --take-over"
    )


def read_all(name: str, fd: int) -> dict[bytes, bytes]:
    """Read all elements of a hash or a trie that `shapes` has by this name."""
    shape = shapes(Capacity())[name]
    sizes = shape.key_size, shape.value_size
    if shape.kind == bpf.LPM_TRIE:  # kernels before 5.13 have no batches of tries
        batches = iter([bpf.map_walk(fd, *sizes)])
    else:  # in batches, as room for a whole map takes longer to make than the map to read
        batches = bpf.map_batches(fd, *sizes, min(shape.max_entries, _BATCH))
    return {
        keys[i * sizes[0] : (i + 1) * sizes[0]]: values[i * sizes[1] : (i + 1) * sizes[1]]
        for keys, values, count in batches
        for i in range(count)
    }


def read_array(fd: int, dtype: np.dtype[np.void], capacity: int) -> np.ndarray:
    """Read all values of an array map, in the order of their index."""
    _, values, count = bpf.map_items(fd, 4, dtype.itemsize, capacity)
    return np.frombuffer(values, dtype, count)
