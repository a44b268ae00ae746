# SPDX-License-Identifier: Apache-2.0
"""The programs around and beside the balancer: wrappers, and parts of one step each.

They are compiled as the balancer is, and loaded over maps of their own.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Final, Self

from tidegate.dataplane.kernel import compiler, loader
from tidegate.dataplane.kernel import syscalls as bpf

HERE: Final = Path(__file__).parent
PADDING: Final = 6
"""Bytes behind an IPv4 packet of 40 bytes in the shortest frame that Ethernet has."""
SMALL_LINES: Final = 1 << 17
LARGE_LINES: Final = 1 << 20
"""64-byte lines in 8 and in 64 MB."""

_PROG_ARRAY: Final = 3
_TABLE: Final = 1 << 16
"""Entries that a hash has room for."""
_KNOBS: Final = "<8sQQQIIHHBBBxxxxx"


class Kind(StrEnum):
    """What a wrapper does before it calls."""

    BARE = "nothing: the program leaves the frame as it is"
    ONE = "takes the outer header off"
    PADDED = "and puts the padding on again"
    MANY = "takes the outer header off, and writes another flow"
    LIVE = "writes another flow into a frame that the kernel made anew"


_SWITCHES: Final[Mapping[Kind, Mapping[str, int]]] = {
    Kind.BARE: {},
    Kind.ONE: {"WITH_HEAD": 1, "WITH_TYPE": 1},
    Kind.PADDED: {"WITH_HEAD": 1, "WITH_TYPE": 1, "WITH_TAIL": PADDING},
    Kind.MANY: {"WITH_HEAD": 1, "WITH_TYPE": 1, "WITH_FLOWS": 1},
    Kind.LIVE: {"WITH_TYPE": 1, "WITH_FLOWS": 1},
}


class Part(IntEnum):
    """What a small program does (parts.c). The value is its PART there."""

    EMPTY = 0
    EMPTY_TX = 1
    PUSH = 2
    KTIME = 3
    COARSE = 4
    JIFFIES = 5
    ADJUST_HEAD = 6
    CHAIN = 7
    ARRAY = 8
    PERCPU = 9
    HASH12 = 10
    HASH40 = 11
    LRU12 = 12
    LRU40 = 13
    CSUM_DIFF = 14
    RANDOM = 15
    LINE = 16


@dataclass(frozen=True)
class Knobs:
    """What a wrapper has to know: `struct knobs` of wrapper.c, where each field is described."""

    mac: bytes = bytes(8)
    length: int = 0
    type: int = 0
    state: int = 0
    first: int = 0
    flows: int = 1
    vip: int = 0
    port: int = 80
    is_random: bool = False
    is_spread: bool = False
    is_empty: bool = False

    def of(self, frame: bytes, state: int, *, is_empty: bool = False) -> Self:
        """Return the same for a frame, with the generator in this state."""
        kind = int.from_bytes(frame[12:14])
        return replace(
            self, mac=frame[:8], length=len(frame), type=kind, state=state, is_empty=is_empty
        )

    def pack(self) -> bytes:
        """Return the element of the map `settings`."""
        return struct.pack(
            _KNOBS,
            self.mac,
            self.state,
            self.first,
            self.flows,
            self.length,
            self.vip,
            self.type,
            self.port,
            self.is_random,
            self.is_spread,
            self.is_empty,
        )


class Wrapper:
    """A loaded wrapper, and what it calls."""

    def __init__(self, fd: int, jumps: int, settings: int) -> None:
        self.fd, self._jumps, self._settings = fd, jumps, settings

    def call(self, program: int, knobs: Knobs) -> None:
        """Put a program inside, with what there is to know of its frames."""
        bpf.map_update(self._jumps, bytes(4), struct.pack("<I", program))
        bpf.map_update(self._settings, bytes(4), knobs.pack())


def load_wrapper(kind: Kind) -> Wrapper:
    """Compile wrapper.c for one purpose and load it."""
    switches = dict.fromkeys(("WITH_HEAD", "WITH_TAIL", "WITH_TYPE", "WITH_FLOWS"), 0)
    compiled = _compile("wrapper", {**switches, **_SWITCHES[kind]})
    jumps = bpf.map_create(_PROG_ARRAY, "bench_next", 4, 4, 1)
    settings = bpf.map_create(bpf.ARRAY, "bench_knobs", 4, struct.calcsize(_KNOBS), 1)
    return Wrapper(loader.load(compiled, {"next": jumps, "settings": settings}), jumps, settings)


def load_part(part: Part, lines: int = 1) -> int:
    """Compile parts.c for one step and load it, over maps with the one element that it looks for.

    `lines` is how many there are to draw from.
    """
    compiled = _compile("parts", {"PART": part.value, "LINES": lines})
    is_lru = part in (Part.LRU12, Part.LRU40)
    kinds = {"percpu": bpf.PERCPU_ARRAY, "table": bpf.LRU_HASH if is_lru else bpf.HASH}
    sizes = {"table": _TABLE, "lines": lines}
    fds = {}
    for name, leaf in compiled.leaves.items():
        kind = kinds.get(name, bpf.ARRAY)
        fds[name] = bpf.map_create(kind, name, leaf.key_size, leaf.size, sizes.get(name, 1))
        if name == "table":
            bpf.map_update(fds[name], bytes(leaf.key_size), bytes(leaf.size))
    try:
        return loader.load(compiled, fds)
    finally:
        for fd in fds.values():
            os.close(fd)


def _compile(name: str, switches: Mapping[str, int]) -> compiler.Program:
    """Compile a file of this folder whose function has its name."""
    constants = tuple((key, str(value)) for key, value in switches.items())
    return compiler.compile_text(name, (HERE / f"{name}.c").read_text(), constants)
