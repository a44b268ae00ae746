# SPDX-License-Identifier: Apache-2.0
"""The kernel and the specification side by side: the same generations, frames and passing of time.

Each frame's verdict, bytes and table entries are compared at once. All counters are compared when
the test ends, since reading those of every possible id takes longer than a thousand frames.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from support.packets.kernel import BUILD, LOOPBACK, Kernel, assert_equal, spec_state
from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.programs import Build
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import BackendKey, Desired
from tidegate.planner import plan
from tidegate.spec import Link, Result, Settings, State, process
from tidegate.spec.limit import SECOND, Bucket


@dataclass
class Both:
    """The kernel and the specification, given the same generations and the same frames."""

    kernel: Kernel
    state: State
    generation: Generation = NOTHING
    clock: int = 1000
    """Wall clock of the planner, s."""

    def install(self, generation: Generation) -> None:
        """Put a generation in force on both."""
        self.generation = generation
        self.kernel.install(generation)
        self.state.install(generation)

    def want(self, desired: Desired, after: int = 1) -> Generation:
        """Plan the next generation, some seconds after the last one, and put it in force."""
        self.clock += after
        self.install(plan(desired, self.generation, self.clock))
        return self.generation

    def send(self, frame: bytes) -> Result:
        """Send a frame through both and return the result, which must be the same."""
        expected = process(self.state, frame, LOOPBACK, time.monotonic_ns())
        verdict, out = self.kernel.run(frame)
        assert (verdict, out) == (expected.verdict, expected.frame)
        assert self.kernel.flows("flows") == self.state.flows
        assert self.kernel.flows("syns") == self.state.syns
        assert self.kernel.fragments() == self.state.fragments
        return expected

    def backends(self, frames: Iterable[bytes]) -> list[str | None]:
        """Return names of the backends that frames went to."""
        return [self.backend(self.send(frame)) for frame in frames]

    def backend(self, result: Result) -> str | None:
        """Name of the backend that a frame went to."""
        names = {p.identity.id: k.name for k, p in self.generation.backends.items()}
        return None if result.backend is None else names[result.backend]

    def id_of(self, name: str, pool: str = "web") -> int:
        """Return id of a backend."""
        return self.generation.backends[BackendKey(pool, name)].identity.id

    def age(self, seconds: int) -> None:
        """Let time pass for what is remembered of flows and fragments."""
        for table in ("flows", "syns", "fragments"):
            self.kernel.age(table, seconds)
        for times in (self.state.seen, self.state.fragments_at):
            for key in times:
                times[key] -= seconds * SECOND

    def refill_answers(self) -> None:
        """Let a second pass for the limit on answers."""
        empty = bytes(layout.BUCKET.itemsize * maps.cpu_count())
        bpf.map_update(self.kernel.maps["answer_limits"], bytes(4), empty)
        self.state.answers = Bucket()

    def forget(self) -> None:
        """Empty the connection table and the SYN table, as on a host that takes over."""
        for table in ("flows", "syns"):
            self.kernel.clear(table)
        self.state.flows.clear()
        self.state.syns.clear()
        self.state.seen.clear()

    def link(self, link: Link) -> None:
        """Set what both know of the interface."""
        self.kernel.link(link)
        self.state.links = {LOOPBACK: link}


@contextmanager
def both_engines(build: Build = BUILD) -> Iterator[Both]:
    """Give new kernel maps and a new specification; compare their counters at the end."""
    with Kernel(build) as kernel:
        state = spec_state()
        state.settings = Settings(build.hash_keys(), build.source4, build.source6)
        found = Both(kernel, state)
        yield found
        assert_equal(kernel, state)
