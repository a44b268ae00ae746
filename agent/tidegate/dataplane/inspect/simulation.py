# SPDX-License-Identifier: Apache-2.0
"""The real program as an engine of `tidegate simulate`: by test-run, with maps of its own.

The kernel runs the program on a frame (BPF_PROG_TEST_RUN) and returns the verdict and the frame
that it left; no interface is needed. The verdict does not include VIP, backend and reason. They are
read from what the frame changed: the program counts each forwarded packet for its VIP, backend and
decision, and each drop by reason, so the counters before and after name them. The thread is held on
one CPU, since counters and free lists are per CPU. The slot alone is not visible from outside: the
specification's flow hash gives it, and only if the specification agrees on the rest.

A frame of less than 14 bytes, an Ethernet header, cannot be test-run: the kernel refuses. No driver
would give it to a program, and the program's first check would pass it, so it passes.
"""

import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from tidegate.dataplane import links
from tidegate.dataplane.inspect import map_values
from tidegate.dataplane.kernel import layout, maps, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.jiffies import Jiffies
from tidegate.dataplane.kernel.lines import MappedLines
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import NOTHING, Generation
from tidegate.spec import Link, Verdict
from tidegate.spec.simulation import (
    INTERFACE,
    LONGEST,
    Contents,
    Outcome,
    Specification,
    counters,
    differences,
    names,
    tables,
)

SHORTEST: Final = 14
"""Bytes of an Ethernet header, the least that the kernel's test-run takes."""


def capacity() -> maps.Capacity:
    """Return room for 65,536 flows."""
    return maps.Capacity(flows=1 << 16, syns=1 << 13)


class Kernel:
    """The balancer with maps of its own, from `with` to its end.

    Args:
        build: what the program is compiled with.
        link: what it knows of the interface that the frames come in on.
    """

    def __init__(self, build: programs.Build, link: Link) -> None:
        self._build = build
        self._link = link
        self._cpus = maps.cpu_count()
        self._name(NOTHING)

    def __enter__(self) -> Self:
        """Create the maps and load the program.

        Raises:
            CapabilityError: not root, no BPF file system, or no bcc.
        """
        with ExitStack() as undo:
            name = f"tidegate-simulate-{os.getpid()}-{secrets.token_hex(4)}"
            self._pins = Path("/sys/fs/bpf") / name
            undo.callback(shutil.rmtree, self._pins, ignore_errors=True)
            make_plane_folder(self._pins)
            self._maps = maps.create(maps.shapes(self._build.capacity))
            undo.callback(self._maps.close)
            self._lines = {
                name: undo.enter_context(MappedLines(self._maps[name], pairs))
                for name, pairs in self._build.capacity.pairs.items()
            }
            self._jiffies = undo.enter_context(Jiffies())
            self._publisher = Publisher(self._maps, self._pins, grace=0)
            undo.callback(self._publisher.close)
            program = programs.compile_balancer(self._build)
            self._program = programs.load_balancer(program, self._maps)
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

    def _write_link(self) -> None:
        link = self._link
        links.write(self._maps["links"], links.of_spec("lo", INTERFACE, link))

    def now(self) -> int:
        """Return the time as the program sees it, jiffies."""
        return self._jiffies.now()

    def install(self, generation: Generation) -> None:
        """Publish a generation as the agent does."""
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
        """Run the program on one frame. The slot is not known here: see `Simulation`."""
        if len(frame) < SHORTEST:
            return Outcome(Verdict.PASS, frame)
        seen = frame[:LONGEST]
        result = bpf.run(self._program, seen)
        verdict = Verdict(result.verdict)
        if verdict is Verdict.PASS:
            is_whole = result.frame == seen
            return Outcome(verdict, frame if is_whole else result.frame)
        return self._outcome_by_counters(verdict, result.frame)

    def _vip_counts(self) -> npt.NDArray[np.void]:
        return map_values.per_cpu(self._maps["vip_counts"], layout.VIP_COUNTERS, self._vips)

    def _address_counts(self) -> npt.NDArray[np.void]:
        fd = self._maps["address_counts"]
        return map_values.per_cpu(fd, layout.ADDRESS_COUNTERS, self._vips)

    def _backend_counts(self) -> npt.NDArray[np.void]:
        fd = self._maps["backend_counts"]
        return map_values.per_cpu(fd, layout.BACKEND_COUNTERS, self._backends)

    def _take_counters(self) -> None:
        self._last_vips = self._vip_counts()
        self._last_addresses = self._address_counts()
        self._last_backends = self._backend_counts()

    def _outcome_by_counters(self, verdict: Verdict, frame: bytes) -> Outcome:
        vips, self._last_vips = self._last_vips, self._vip_counts()
        vip = _changed(vips, self._last_vips)
        if vip is None:
            return self._at_address(Outcome(verdict, frame, generation=self._names.number))
        old, new = vips[vip], self._last_vips[vip]
        outcome = Outcome(verdict, frame, vip=self._names.vips[vip], generation=self._names.number)
        if verdict is Verdict.DROP:
            return replace(outcome, reason=Reason(_risen(old["drops"], new["drops"]) or 0))
        backends, self._last_backends = self._last_backends, self._backend_counts()
        backend = _changed(backends, self._last_backends)
        decision = _risen(old["decisions"], new["decisions"])
        return replace(
            outcome,
            backend=None if backend is None else self._names.backends[backend],
            decision=None if decision is None else Decision(decision),
        )

    def _at_address(self, outcome: Outcome) -> Outcome:
        """Add the reason of what was for a VIP's address, and for no VIP."""
        before, self._last_addresses = self._last_addresses, self._address_counts()
        id_ = _changed(before, self._last_addresses)
        if id_ is None or outcome.verdict is not Verdict.DROP:
            return outcome
        reason = _risen(before[id_]["drops"], self._last_addresses[id_]["drops"])
        return replace(outcome, reason=Reason(reason or 0))

    def tables(self) -> Contents:
        """Read the tables that packets write, as the specification's values."""
        return {name: lines.entries() for name, lines in self._lines.items()}

    def counters(self) -> Contents:
        """Read the counters, as the specification's values."""
        self._take_counters()
        return {
            "vips": map_values.vip_counters(self._last_vips),
            "addresses": map_values.address_counters(self._last_addresses),
            "backends": map_values.backend_counters(self._last_backends),
            "verdicts": map_values.verdicts(self._maps["verdict_counts"]),
        }


class Simulation:
    """The kernel with the specification beside it.

    The spec gives the slot. With `compare` it is also held against the kernel: verdict, frame and
    counters after each frame, and the tables of flows after each frame while they are small.
    Reading a table takes longer the fuller it is, so with n entries it is read every 1 + n/16
    frames.

    Args:
        build: what the program is compiled with, and the specification does likewise.
    """

    def __init__(self, build: programs.Build, link: Link, *, compare: bool) -> None:
        self.kernel = Kernel(build, link)
        self.spec = Specification(build.settings(), link, self.kernel.now)
        self._compare = compare
        self._unread = 0  # frames since the tables were last compared

    def install(self, generation: Generation) -> None:
        """Put a generation in force on both."""
        self.kernel.install(generation)
        self.spec.install(generation)

    def run(self, frame: bytes) -> tuple[Outcome, list[str]]:
        """Run one frame; return its outcome in the kernel, and how the specification differs."""
        real, expected = self.kernel.run(frame), self.spec.run(frame)
        faults = []
        if self._compare:
            if (real.verdict, real.frame) != (expected.verdict, expected.frame):
                faults += [_line("kernel", real), _line("spec  ", expected)]
            faults += differences(self.kernel.counters(), counters(self.spec.state))
            self._unread += 1
            state = self.spec.state
            entries = sum(len(each) for each in tables(state).values())
            if self._unread > entries // 16:
                faults += self.compare_tables()
        agree = (real.verdict, real.backend) == (expected.verdict, expected.backend)
        return replace(real, slot=expected.slot if agree else None), faults

    def compare_tables(self) -> list[str]:
        """Return how the tables of flows differ, and how many frames ago they were equal."""
        found = differences(self.kernel.tables(), tables(self.spec.state))
        if found and self._unread > 1:
            found.append(f"the tables were equal {self._unread} frames before")
        self._unread = 0
        return found


def _line(engine: str, outcome: Outcome) -> str:
    why = outcome.reason.name.lower() if outcome.reason else ""
    return f"{engine}: {outcome.verdict.name} {why} {outcome.frame.hex()}"


def _on_one_cpu() -> Callable[[], None]:
    """Keep the thread on one CPU; return the function that ends this."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    return lambda: os.sched_setaffinity(0, allowed)


def _changed(before: npt.NDArray[np.void], after: npt.NDArray[np.void]) -> int | None:
    """Return the index of the one element, over all CPUs, that differs; None if none does."""
    # As plain numbers: numpy compares structures ten times slower.
    words = (each.view(np.uint64).reshape(len(each), -1) for each in (before, after))
    differing = np.flatnonzero(np.not_equal(*words).any(axis=1))
    return int(differing[0]) if len(differing) else None


def _risen(before: npt.NDArray[np.uint64], after: npt.NDArray[np.uint64]) -> int | None:
    """Return which of a VIP's counters (shape: CPUs, counters) has risen."""
    risen = np.flatnonzero((before != after).any(axis=0))
    return int(risen[0]) if len(risen) else None
