# SPDX-License-Identifier: Apache-2.0
"""The real program as an engine of `tidegate simulate`: by test-run, with maps of its own.

The kernel runs the program on a frame (BPF_PROG_TEST_RUN) and returns the verdict and the frame
that it left; no interface is needed. A verdict says nothing of VIP, backend and reason. They are
read from what the frame changed: the program counts each forwarded packet for its VIP, backend and
decision, and each drop by reason, so the counters before and after name them. The thread is held on
one CPU, since counters and free lists are per CPU. The slot is the one thing that the program keeps
to itself: the specification's flow hash gives it, and only if the specification agrees on the rest.

A frame of less than 14 bytes, an Ethernet header, cannot be test-run: the kernel refuses. No driver
would give it to a program, and the program's first check would pass it, so it passes.
"""

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from tidegate.dataplane import host, layout, links, maps, programs
from tidegate.dataplane import syscalls as bpf
from tidegate.dataplane.compiler import load
from tidegate.dataplane.publish import Publisher
from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import NOTHING, Generation
from tidegate.spec import Link, Settings, Verdict
from tidegate.spec.simulation import (
    INTERFACE,
    LONGEST,
    Contents,
    Model,
    Outcome,
    differences,
    names,
)
from tidegate.spec.state import Flow, FlowKey

SHORTEST: Final = 14
"""Bytes of an Ethernet header, the least that the kernel's test-run takes."""


def capacity() -> maps.Capacity:
    """Room for 65,536 flows on one CPU, where there are no more than 16 to share the tables."""
    cpus = maps.cpu_count()
    return maps.Capacity(min(cpus << 16, 1 << 20), min(cpus << 13, 1 << 17))


class Kernel:
    """The balancer with maps of its own, from `with` to its end.

    Args:
        build: what the program is compiled with.
        link: what it knows of the interface that the frames come in on.
    """

    def __init__(self, build: programs.Build, link: Link) -> None:
        self._build = build
        self._link = link
        self._capacity = capacity()
        self._cpus = maps.cpu_count()
        self._name(NOTHING)

    def __enter__(self) -> Self:
        """Builds everything.

        Raises:
            CapabilityError: not root, no BPF file system, or no bcc.
        """
        with ExitStack() as undo:
            self._pins = Path(f"/sys/fs/bpf/tidegate-simulate-{secrets.token_hex(4)}")
            undo.callback(shutil.rmtree, self._pins, ignore_errors=True)
            host._make_folder(self._pins)  # noqa: SLF001 - the same package
            self._maps = maps.create(self._capacity)
            undo.callback(self._maps.close)
            self._publisher = Publisher(self._maps, self._pins, grace=0)
            undo.callback(self._publisher.close)
            self._program = self._load()
            undo.callback(os.close, self._program)
            self._write_link()
            undo.callback(_on_one_cpu())
            self._undo = undo.pop_all()
        self._take_counters()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def _load(self) -> int:
        template = maps.create_inner()
        try:
            program = programs.compile_balancer(self._build)
            return load(program, {**self._maps, "inner": template})
        finally:
            os.close(template)

    def _write_link(self) -> None:
        link = self._link
        facts = links.Link(
            *("lo", INTERFACE, link.mac, link.mtu, None, None),
            *(link.gateway4, link.gateway6, None),
        )
        links.write(self._maps["links"], facts)

    def install(self, generation: Generation) -> None:
        """Publishes a generation as the agent does."""
        self._publisher.publish(generation, 0.0)
        self._publisher.reap(1.0)
        self._name(generation)
        self._take_counters()

    def _name(self, generation: Generation) -> None:
        self._names = names(generation)
        # Elements to read: ids begin at 1, and the lowest free one is given out.
        self._vips = 1 + max(self._names.vips, default=0)
        self._backends = 1 + max(self._names.backends, default=0)

    def run(self, frame: bytes) -> Outcome:
        """What the program did with one frame. The slot stays open: see `Simulation`."""
        if len(frame) < SHORTEST:
            return Outcome(Verdict.PASS, frame)
        seen = frame[:LONGEST]
        result = bpf.run(self._program, seen)
        verdict = Verdict(result.verdict)
        if verdict is Verdict.PASS:
            is_whole = result.frame == seen
            return Outcome(verdict, frame if is_whole else result.frame)
        return self._told_by_counters(verdict, result.frame)

    def _raw(self, name: str, size: int, count: int) -> bytes:
        """The first `count` values of a per-CPU map, each of all CPUs."""
        return bpf.map_items(self._maps[name], 4, size * self._cpus, count)[1]

    def _vip_counts(self) -> bytes:
        return self._raw("vip_counts", layout.VIP_COUNTERS.itemsize, self._vips)

    def _backend_counts(self) -> bytes:
        return self._raw("backend_counts", layout.BACKEND_COUNTERS.itemsize, self._backends)

    def _drop_counts(self) -> bytes:
        return self._raw("drop_counts", layout.DROPS.itemsize, len(Reason))

    def _take_counters(self) -> None:
        self._last_vips = self._vip_counts()
        self._last_backends = self._backend_counts()
        self._last_drops = self._drop_counts()

    def _told_by_counters(self, verdict: Verdict, frame: bytes) -> Outcome:
        if verdict is Verdict.DROP:
            drops, self._last_drops = self._last_drops, self._drop_counts()
            reason = _changed(layout.DROPS.itemsize * self._cpus, drops, self._last_drops)
            return Outcome(
                verdict,
                frame,
                Reason.NONE if reason is None else Reason(reason),
                generation=self._names.number,
            )
        vips, self._last_vips = self._last_vips, self._vip_counts()
        backends, self._last_backends = self._last_backends, self._backend_counts()
        vip = _changed(layout.VIP_COUNTERS.itemsize * self._cpus, vips, self._last_vips)
        backend = _changed(
            layout.BACKEND_COUNTERS.itemsize * self._cpus, backends, self._last_backends
        )
        return Outcome(
            verdict,
            frame,
            vip=None if vip is None else self._names.vips[vip],
            backend=None if backend is None else self._names.backends[backend],
            decision=None if vip is None else self._decision(vip, vips),
            generation=self._names.number,
        )

    def _decision(self, vip: int, before: bytes) -> Decision | None:
        """Which of a VIP's counters of decisions changed."""
        at = vip * self._cpus * layout.VIP_COUNTERS.itemsize
        old, new = (
            np.frombuffer(raw, layout.VIP_COUNTERS, self._cpus, at)["decisions"]
            for raw in (before, self._last_vips)
        )
        changed = np.flatnonzero((old != new).any(axis=0))
        return Decision(int(changed[0])) if len(changed) else None

    def tables(self) -> Contents:
        """The tables that packets write, as the model has them."""
        return {
            "flows": self._flows("flows", self._capacity.flows),
            "syns": self._flows("syns", self._capacity.syns),
        }

    def counters(self) -> Contents:
        """The counters, as the model has them."""
        self._take_counters()
        shape = (-1, self._cpus)
        vips = np.frombuffer(self._last_vips, layout.VIP_COUNTERS).reshape(shape)
        backends = np.frombuffer(self._last_backends, layout.BACKEND_COUNTERS).reshape(shape)
        drops = np.frombuffer(self._last_drops, layout.DROPS).reshape(shape).sum(axis=1).tolist()
        of_vips = zip(
            *(vips[f].sum(axis=1).tolist() for f in ("packets", "bytes")),
            (tuple(row) for row in vips["decisions"].sum(axis=1).tolist()),
            vips["rehashed"].sum(axis=1).tolist(),
            strict=True,
        )
        of_backends = zip(
            *(backends[f].sum(axis=1).tolist() for f in ("packets", "bytes")), strict=True
        )
        return {
            "drops": Counter({Reason(i): n for i, n in enumerate(drops) if n}),
            "vips": {i: row for i, row in enumerate(of_vips) if row[0]},
            "backends": {i: row for i, row in enumerate(of_backends) if row[0]},
        }

    def _flows(self, table: str, capacity: int) -> dict[FlowKey, Flow]:
        raw_keys, raw_values, count = bpf.map_items(
            self._maps[table], layout.FLOW_KEY.itemsize, layout.FLOW.itemsize, capacity
        )
        keys = np.frombuffer(raw_keys, layout.FLOW_KEY, count)
        values = np.frombuffer(raw_values, layout.FLOW, count)
        ports = ([n.to_bytes(2) for n in keys[f].tolist()] for f in ("source_port", "port"))
        named = zip(map(bytes, keys["source"]), keys["vip"].tolist(), *ports, strict=True)
        uses = zip(*(values[f].tolist() for f in Flow._fields), strict=True)
        return dict(zip(map(FlowKey._make, named), map(Flow._make, uses), strict=True))


class Simulation:
    """The kernel with the model beside it.

    The model gives the slot. With `compare` it is also held against the kernel: verdict, frame and
    counters after each frame, and the tables of flows after each frame while they are small.
    Reading a table takes longer the fuller it is, so with n entries it is read every 1 + n/16
    frames.

    Args:
        build: what the program is compiled with, and the model does likewise.
    """

    def __init__(self, build: programs.Build, link: Link, *, compare: bool) -> None:
        self.kernel = Kernel(build, link)
        self.model = Model(Settings(build.hash_keys(), build.source4, build.source6), link)
        self._compare = compare
        self._unread = 0  # frames since the tables were last compared

    def install(self, generation: Generation) -> None:
        """Puts a generation in force on both."""
        self.kernel.install(generation)
        self.model.install(generation)

    def run(self, frame: bytes) -> tuple[Outcome, list[str]]:
        """What the kernel did with one frame, and in what the model differs."""
        real, expected = self.kernel.run(frame), self.model.run(frame)
        faults = []
        if self._compare:
            if (real.verdict, real.frame) != (expected.verdict, expected.frame):
                faults += [_line("kernel", real), _line("model ", expected)]
            faults += differences(self.kernel.counters(), self.model.counters())
            self._unread += 1
            entries = len(self.model.state.flows) + len(self.model.state.syns)
            if self._unread > entries // 16:
                faults += self.compare_tables()
        agree = (real.verdict, real.backend) == (expected.verdict, expected.backend)
        return replace(real, slot=expected.slot if agree else None), faults

    def compare_tables(self) -> list[str]:
        """In what the tables of flows differ, and how many frames ago they were equal."""
        found = differences(self.kernel.tables(), self.model.tables())
        if found and self._unread > 1:
            found.append(f"the tables were equal {self._unread} frames before")
        self._unread = 0
        return found


def _line(engine: str, outcome: Outcome) -> str:
    why = outcome.reason.name.lower() if outcome.reason else ""
    return f"{engine}: {outcome.verdict.name} {why} {outcome.frame.hex()}"


def _on_one_cpu() -> Callable[[], None]:
    """Holds the thread on one CPU, and returns what sets it free."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    return lambda: os.sched_setaffinity(0, allowed)


def _changed(size: int, before: bytes, after: bytes) -> int | None:
    """Index of the one element of this size, over all CPUs, that differs; None if none does."""
    if before == after:
        return None
    for at in range(0, len(after), size):
        if before[at : at + size] != after[at : at + size]:
            return at // size
    return None
