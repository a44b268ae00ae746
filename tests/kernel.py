# SPDX-License-Identifier: Apache-2.0
"""The real balancer program over real maps, driven by test-run, with its maps read as spec values.

No interface is needed: the kernel runs the program on a frame (BPF_PROG_TEST_RUN) and returns the
frame that it left. The program is told that the frame came in on the loopback, whose index is 1.
"""

import os
import secrets
import shutil
from collections import Counter
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from tidegate.dataplane import compiler, host, layout, links, maps, programs
from tidegate.dataplane import syscalls as bpf
from tidegate.dataplane.publish import Publisher
from tidegate.model.constants import MAX_BACKENDS, MAX_VIPS
from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import Generation
from tidegate.spec import Link, Settings, State, Verdict
from tidegate.spec.state import Flow, FlowKey

LOOPBACK = 1
BUILD = programs.Build(b"conformance", IPv4Network("10.254.0.0/16"), IPv6Network("fd54::/64"))
LINK = Link(b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x04", b"\x02\0\0\0\0\x06", 1500)
CAPACITY = maps.Capacity(flows=8192, syns=8192)


def model() -> State:
    """The specification's state that matches a new Kernel."""
    settings = Settings(BUILD.hash_keys(), BUILD.source4, BUILD.source6)
    return State(settings, {LOOPBACK: LINK})


class Kernel:
    """A balancer with maps of its own, from `with` to its end."""

    def __enter__(self) -> Self:
        self.pins = Path(f"/sys/fs/bpf/tgtest-{secrets.token_hex(4)}")
        host._make_folder(self.pins)
        self.maps = maps.create(CAPACITY)
        self.publisher = Publisher(self.maps, self.pins, grace=0)
        template = maps.create_inner()
        program = programs.compile_balancer(BUILD)
        self.program = compiler.load(program, {**self.maps, "inner": template})
        os.close(template)
        self.link(LINK)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.publisher.close()
        os.close(self.program)
        self.maps.close()
        shutil.rmtree(self.pins)

    def link(self, link: Link) -> None:
        """Sets what the program knows of the interface."""
        facts = links.Link(
            *("lo", LOOPBACK, link.mac, link.mtu, None, None),
            *(link.gateway4, link.gateway6, None),
        )
        links.write(self.maps["links"], facts)

    def install(self, generation: Generation) -> None:
        """Publishes a generation as the agent does."""
        self.publisher.publish(generation, 0.0)
        self.publisher.reap(1.0)

    def run(self, frame: bytes) -> tuple[Verdict, bytes]:
        """Runs one frame through the program."""
        result = bpf.run(self.program, frame)
        return Verdict(result.verdict), result.frame

    def flows(self, table: str) -> dict[FlowKey, Flow]:
        """The connection table (`flows`) or the SYN table (`syns`)."""
        keys, values, count = bpf.map_items(
            self.maps[table], layout.FLOW_KEY.itemsize, layout.FLOW.itemsize, CAPACITY.flows
        )
        found = {}
        for key, value in zip(
            np.frombuffer(keys, layout.FLOW_KEY, count),
            np.frombuffer(values, layout.FLOW, count),
            strict=True,
        ):
            name = FlowKey(
                bytes(key["source"]),
                int(key["vip"]),
                int(key["source_port"]).to_bytes(2),
                int(key["port"]).to_bytes(2),
            )
            found[name] = Flow(
                *(int(value[f]) for f in ("backend", "backend_incarnation")),
                *(int(value[f]) for f in ("vip_incarnation", "generation")),
            )
        return found

    def _counters(self, name: str, dtype: np.dtype[np.void], entries: int) -> np.ndarray:
        cpus = maps.cpu_count()
        _, values, count = bpf.map_items(self.maps[name], 4, dtype.itemsize * cpus, entries)
        return np.frombuffer(values, dtype).reshape(count, cpus)

    def drops(self) -> Counter[Reason]:
        """Dropped packets by reason."""
        counts = self._counters("drop_counts", layout.DROPS, len(Reason)).sum(axis=1)
        return Counter({Reason(i): int(n) for i, n in enumerate(counts) if n})

    def vip_counters(self) -> dict[int, tuple[int, int, tuple[int, ...], int]]:
        """Packets, bytes, packets by decision, and rehashed packets of each VIP id."""
        counts = self._counters("vip_counts", layout.VIP_COUNTERS, MAX_VIPS)
        return {
            i: (
                int(one["packets"].sum()),
                int(one["bytes"].sum()),
                tuple(int(n) for n in one["decisions"].sum(axis=0)),
                int(one["rehashed"].sum()),
            )
            for i, one in enumerate(counts)
            if one["packets"].any()
        }

    def backend_counters(self) -> dict[int, tuple[int, int]]:
        """Packets and bytes of each backend id."""
        counts = self._counters("backend_counts", layout.BACKEND_COUNTERS, MAX_BACKENDS)
        packets, total = counts["packets"].sum(axis=1), counts["bytes"].sum(axis=1)
        return {int(i): (int(packets[i]), int(total[i])) for i in np.flatnonzero(packets)}


def assert_equal(kernel: Kernel, state: State) -> None:
    """Every map that packets change is equal on both sides."""
    assert kernel.flows("flows") == state.flows
    assert kernel.flows("syns") == state.syns
    assert kernel.drops() == state.drops
    assert kernel.vip_counters() == {
        vip: (
            packets,
            state.vip_bytes[vip],
            tuple(state.decisions[vip, decision] for decision in Decision),
            state.rehashed[vip],
        )
        for vip, packets in state.vip_packets.items()
    }
    assert kernel.backend_counters() == {
        backend: (packets, state.backend_bytes[backend])
        for backend, packets in state.backend_packets.items()
    }
