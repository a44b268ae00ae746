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
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.model.generation import Generation
from tidegate.spec import Link, Settings, State, Verdict
from tidegate.spec.state import Flow, FlowKey, FragmentKey, VipCounters

LOOPBACK = 1
BUILD = programs.Build(b"conformance", IPv4Network("10.254.0.0/16"), IPv6Network("fd54::/64"))
LINK = Link(b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x04", b"\x02\0\0\0\0\x06", 1500)
IDS = 512
"""No test has an id above this."""
CAPACITY = maps.Capacity(flows=8192, syns=8192, fragments=4096)
SHAPES = maps.few(maps.shapes(CAPACITY), IDS)

_idle: dict[tuple[programs.Build, maps.Capacity], list[tuple[maps.Maps, int]]] = defaultdict(list)
"""Loaded programs that nobody uses, with their maps, which are empty."""


def _load(build: programs.Build, capacity: maps.Capacity) -> tuple[maps.Maps, int]:
    fds = maps.create(maps.few(maps.shapes(capacity), IDS))
    return fds, programs.load_balancer(programs.compile_balancer(build), fds)


def empty(fd: int, shape: maps.Shape) -> None:
    """Make a map as it was when it was created; arrays as far as tests have ids."""
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


def spec_state() -> State:
    """Return the specification's state that matches a new Kernel."""
    settings = Settings(BUILD.hash_keys(), BUILD.source4, BUILD.source6)
    return State(settings, {LOOPBACK: LINK})


class Kernel:
    """A balancer whose maps are empty at first and its own, from `with` to its end.

    It stays on one CPU, so that the limits per CPU are those of one.
    """

    def __init__(self, build: programs.Build = BUILD, capacity: maps.Capacity = CAPACITY) -> None:
        self._build, self._capacity = build, capacity

    def __enter__(self) -> Self:
        kind = self._build, self._capacity
        self._cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(self._cpus)})
        self.pins = Path(f"/sys/fs/bpf/tgtest-{secrets.token_hex(4)}")
        make_plane_folder(self.pins)
        self.maps, self.program = _idle[kind].pop() if _idle[kind] else _load(*kind)
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
        if self._capacity == CAPACITY:
            for name, shape in SHAPES.items():
                empty(self.maps[name], shape)
            _idle[self._build, CAPACITY].append((self.maps, self.program))
        else:  # to empty a large table takes longer than to make one
            self.maps.close()
            os.close(self.program)
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

    def flows(self, table: str) -> dict[FlowKey, Flow]:
        """Return the connection table (`flows`) or the SYN table (`syns`)."""
        return map_values.flows(self.maps[table], CAPACITY.flows)

    def fragments(self) -> dict[FragmentKey, Flow]:
        """Return where first fragments went."""
        return map_values.fragments(self.maps["fragments"], CAPACITY.fragments)

    def refill(self) -> None:
        """Refill the limit on answers."""
        size = layout.BUCKET.itemsize * maps.cpu_count()
        bpf.map_update(self.maps["answer_limits"], bytes(4), bytes(size))

    def clear(self, table: str) -> None:
        """Delete every entry of a table."""
        empty(self.maps[table], SHAPES[table])

    def age(self, table: str, seconds: int) -> None:
        """Make every entry of a table of flows look this much older."""
        key_type = layout.FRAGMENT_KEY if table == "fragments" else layout.FLOW_KEY
        size, value_size = key_type.itemsize, layout.FLOW.itemsize
        keys, values, count = bpf.map_items(self.maps[table], size, value_size, CAPACITY.flows)
        older = np.frombuffer(values, layout.FLOW, count).copy()
        older["seen"] -= seconds * 1_000_000_000
        for i in range(count):
            bpf.map_update(self.maps[table], keys[size * i : size * (i + 1)], older[i].tobytes())

    def verdicts(self) -> dict[int, int]:
        """Return packets by verdict."""
        return map_values.verdicts(self.maps["verdict_counts"])

    def vip_counters(self) -> dict[int, VipCounters]:
        """Return what is counted for each VIP id that had packets."""
        fd = self.maps["vip_counts"]
        return map_values.vip_counters(map_values.per_cpu(fd, layout.VIP_COUNTERS, IDS))

    def backend_counters(self) -> dict[int, tuple[int, int]]:
        """Return packets and bytes of each backend id."""
        fd = self.maps["backend_counts"]
        counts = map_values.per_cpu(fd, layout.BACKEND_COUNTERS, IDS)
        return map_values.backend_counters(counts)


def assert_equal(kernel: Kernel, state: State) -> None:
    """Check that every map that packets change is equal on both sides."""
    assert kernel.flows("flows") == state.flows
    assert kernel.flows("syns") == state.syns
    assert kernel.fragments() == state.fragments
    assert kernel.verdicts() == state.verdicts
    assert kernel.vip_counters() == state.vip_counters
    assert kernel.backend_counters() == {
        backend: (packets, state.backend_bytes[backend])
        for backend, packets in state.backend_packets.items()
    }
