# SPDX-License-Identifier: Apache-2.0
"""The real balancer program over real maps, driven by test-run, with its maps read as spec values.

No interface is needed: the kernel runs the program on a frame (BPF_PROG_TEST_RUN) and returns the
frame that it left. To the program the frame came in on the loopback, whose index is 1.

The verifier needs most of a second for the whole program, so a program and its maps are used again
by the next Kernel of the same build, after every map has been emptied.
"""

import os
import secrets
import shutil
from collections import defaultdict
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from tidegate.dataplane import links
from tidegate.dataplane.inspect import events, map_values
from tidegate.dataplane.kernel import layout, maps, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.jiffies import Jiffies, clock
from tidegate.dataplane.kernel.lines import MappedLines
from tidegate.dataplane.kernel.memory import array_memory
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.model.decision import FOR_ADDRESSES, FOR_VIPS
from tidegate.model.generation import Generation
from tidegate.model.ticks import MOMENTS, TICKS
from tidegate.spec import Link, State, Verdict
from tidegate.spec.answer import Answer
from tidegate.spec.balancer import find_vip
from tidegate.spec.hash import flow_hash, tracking_key
from tidegate.spec.limit import CELLS
from tidegate.spec.lines import LINE_ENTRIES, Entry, mark_state
from tidegate.spec.packet import parse
from tidegate.spec.simulation import tables
from tidegate.spec.state import AddressCounters, VipCounters

LOOPBACK = 1
LINK = Link(b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x04", b"\x02\0\0\0\0\x06", 1500)
IDS = 512
"""No test has an id above this."""
CAPACITY = maps.Capacity(flows=8192, syns=8192, fragments=4096)
BUILD = programs.Build(
    b"conformance",
    IPv4Network("10.254.0.0/16"),
    IPv6Network("fd54::/64"),
    capacity=CAPACITY,
)
SHAPES = maps.few(maps.shapes(CAPACITY), IDS)

_idle: dict[programs.Build, list[tuple[maps.Maps, int]]] = defaultdict(list)
"""Loaded programs that nobody uses, with their maps, which are empty."""


def _load(build: programs.Build) -> tuple[maps.Maps, int]:
    fds = maps.create(maps.few(maps.shapes(build.capacity), IDS))
    return fds, programs.load_balancer(programs.compile_balancer(build), fds)


def empty(fd: int, shape: maps.Shape) -> None:
    """Make a map as it was when it was created; arrays as far as tests have ids."""
    if shape.flags & bpf.F_MMAPABLE:
        _empty_mapped(fd, shape)
        return
    if shape.kind in (bpf.ARRAY, bpf.PERCPU_ARRAY):
        count = min(shape.max_entries, IDS)
        cpus = maps.cpu_count() if shape.kind == bpf.PERCPU_ARRAY else 1
        size = (shape.value_size + 7) // 8 * 8 if cpus > 1 else shape.value_size
        keys = np.arange(count, dtype=np.uint32).tobytes()
        bpf.map_update_batch(fd, keys, bytes(size * cpus * count), count)
        return
    if shape.kind == bpf.RINGBUF:
        with events.Reader(fd) as reader:
            reader.read()
        return
    keys, _, count = bpf.map_walk(fd, shape.key_size, shape.value_size)
    for at in range(0, count * shape.key_size, shape.key_size):
        bpf.map_delete(fd, keys[at : at + shape.key_size])


def _empty_mapped(fd: int, shape: maps.Shape) -> None:
    """Clear the elements of a large array that are not zero."""
    memory = array_memory(fd, shape.max_entries * shape.value_size)
    used = np.flatnonzero(np.frombuffer(memory, "<u8").reshape(shape.max_entries, -1).any(axis=1))
    zeros = bytes(shape.value_size * len(used))
    bpf.map_update_batch(fd, used.astype(np.uint32).tobytes(), zeros, len(used))


def spec_state(build: programs.Build = BUILD) -> State:
    """Return the specification's state that matches a new Kernel."""
    return State(build.settings(), {LOOPBACK: LINK})


def ticks(seconds: int) -> int:
    """Return how many ticks fit in so many seconds."""
    return clock().limit(seconds) - 1


def moments(seconds: int) -> int:
    """Return how many moments of marks fit in so many seconds, as far as they are told apart."""
    return min(4 * ticks(seconds), 40)


def age(state: State, seconds: int) -> None:
    """Make entries of the specification older, as `Kernel.age` does the kernel's."""
    for place, mark in state.syns.entries.items():
        moment = (mark.moment - moments(seconds)) % MOMENTS
        state.syns.entries[place] = mark._replace(state=mark_state(mark.sequence, moment))
    for lines in (state.flows, state.fragments):
        for place, entry in lines.entries.items():
            tick = (entry.tick - ticks(seconds)) % TICKS
            lines.entries[place] = entry._replace(state=tick << 16 | entry.state & 0xFFFF)


def key_of(state: State, frame: bytes) -> int:
    """Return the key of a frame's flow in the connection table."""
    packet = parse(frame)
    assert packet is not None
    vip = find_vip(state, packet)
    assert vip is not None, "the frame is for no VIP"
    keys = state.settings.hash_keys
    return tracking_key(keys, packet, vip, flow_hash(keys, packet, vip))


class Kernel:
    """A balancer whose maps are empty at first and its own, from `with` to its end.

    It stays on one CPU, so that the limits per CPU are those of one.
    """

    def __init__(self, build: programs.Build = BUILD) -> None:
        self._build = build

    def __enter__(self) -> Self:
        self._cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(self._cpus)})
        self.pins = Path(f"/sys/fs/bpf/tgtest-{secrets.token_hex(4)}")
        make_plane_folder(self.pins)
        idle = _idle[self._build]
        self.maps, self.program = idle.pop() if idle else _load(self._build)
        self._lines = {
            name: MappedLines(self.maps[name], pairs, writable=True)
            for name, pairs in self._build.capacity.pairs.items()
        }
        self._jiffies = Jiffies()
        self._jiffies.__enter__()
        self.publisher = Publisher(self.maps, self.pins, grace=0)
        self.link(LINK)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.publisher.close()
        self._jiffies.__exit__(None, None, None)
        if self._build.capacity == CAPACITY:
            for name, shape in SHAPES.items():
                if name in self._lines:
                    self.clear(name)
                else:
                    empty(self.maps[name], shape)
            _idle[self._build].append((self.maps, self.program))
        else:  # to empty a large table takes longer than to make one
            self.maps.close()
            os.close(self.program)
        for lines in self._lines.values():
            lines.close()
        shutil.rmtree(self.pins)
        os.sched_setaffinity(0, self._cpus)

    def load(self, build: programs.Build) -> int:
        """Load another program over the same maps; its descriptor is the caller's."""
        return programs.load_balancer(programs.compile_balancer(build), self.maps)

    def link(self, link: Link, index: int = LOOPBACK) -> None:
        """Set what the program knows of an interface."""
        links.write(self.maps["links"], links.of_spec("", index, link))

    def install(self, generation: Generation) -> None:
        """Publish a generation as the agent does."""
        self.publisher.publish(generation, 0.0)
        self.publisher.reap(1.0)

    def run(self, frame: bytes) -> tuple[Verdict, bytes]:
        """Run one frame through the program."""
        result = bpf.run(self.program, frame)
        return Verdict(result.verdict), result.frame

    def now(self) -> int:
        """Return the time as the program sees it, jiffies."""
        return self._jiffies.now()

    def entries(self, table: str) -> dict[int, Entry]:
        """Return a table that packets write (`flows`, `syns` or `fragments`) by place."""
        return self._lines[table].entries()

    def tables(self) -> dict[str, dict[int, Entry]]:
        """Return the three tables that packets write."""
        return {name: self.entries(name) for name in self._lines}

    def cells(self, name: str) -> dict[int, int]:
        """Return the cells of a limit that source prefixes share, as far as anything was taken."""
        memory = array_memory(self.maps[name], 2 * CELLS * layout.LIMIT_CELL.itemsize)
        cells = np.frombuffer(memory, layout.LIMIT_CELL)
        taken = np.flatnonzero(cells)
        return dict(zip(taken.tolist(), cells[taken].tolist(), strict=True))

    def refill(self) -> None:
        """Refill the limits on answers."""
        size = layout.BUCKET.itemsize * maps.cpu_count()
        for kind in Answer:
            bpf.map_update(self.maps["answer_limits"], kind.to_bytes(4, "little"), bytes(size))

    def clear(self, table: str) -> None:
        """Delete every entry of a table that packets write."""
        self._lines[table].lines[:] = np.zeros((), layout.LINE)

    def age(self, seconds: int) -> None:
        """Make every entry look older by as many ticks as fit in so many seconds."""
        marks = self._lines["syns"].lines
        fields = [marks["moments"] >> 6 * at & 63 for at in range(LINE_ENTRIES)]
        aged = [(field - moments(seconds) & 63) << 6 * at for at, field in enumerate(fields)]
        taken = marks["owners"] > 0
        marks["moments"] = sum(
            np.where(taken[:, at], aged[at], fields[at] << 6 * at) for at in range(LINE_ENTRIES)
        )
        for table in ("flows", "fragments"):
            lines = self._lines[table].lines
            states = lines["states"]
            older = (states >> 16) - ticks(seconds) & 0xFFFF
            lines["states"] = np.where(lines["owners"] > 0, older << 16 | states & 0xFFFF, states)

    def verdicts(self) -> dict[int, int]:
        """Return packets by verdict."""
        return map_values.verdicts(self.maps["verdict_counts"])

    def vip_counters(self) -> dict[int, VipCounters]:
        """Return what is counted for each VIP id that had packets."""
        fd = self.maps["vip_counts"]
        return map_values.vip_counters(map_values.per_cpu(fd, layout.VIP_COUNTERS, IDS))

    def address_counters(self) -> dict[int, AddressCounters]:
        """Return what is counted for each address, by the lowest id of its VIPs."""
        fd = self.maps["address_counts"]
        return map_values.address_counters(map_values.per_cpu(fd, layout.ADDRESS_COUNTERS, IDS))

    def backend_counters(self) -> dict[int, tuple[int, int]]:
        """Return packets and bytes of each backend id."""
        fd = self.maps["backend_counts"]
        counts = map_values.per_cpu(fd, layout.BACKEND_COUNTERS, IDS)
        return map_values.backend_counters(counts)


def assert_equal(kernel: Kernel, state: State) -> None:
    """Check that every map that packets change is equal on both sides."""
    assert kernel.tables() == tables(state)
    assert kernel.cells("syn_limits") == state.syn_limits.cells
    assert kernel.cells("mark_limits") == state.mark_limits.cells
    assert kernel.verdicts() == state.verdicts
    assert kernel.vip_counters() == state.vip_counters
    assert kernel.address_counters() == state.address_counters
    assert all(each.drops.keys() <= FOR_VIPS for each in state.vip_counters.values())
    assert all(each.drops.keys() <= FOR_ADDRESSES for each in state.address_counters.values())
    assert kernel.backend_counters() == {
        backend: (packets, state.backend_bytes[backend])
        for backend, packets in state.backend_packets.items()
    }
