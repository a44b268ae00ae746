# SPDX-License-Identifier: Apache-2.0
"""The kernel and the specification side by side: the same generations, frames and passing of time.

Each frame's verdict, bytes and table entries are compared at once. All counters are compared when
the test ends, since reading those of every possible id takes longer than a thousand frames.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

from support.packets.kernel import BUILD, LOOPBACK, Kernel, age, assert_equal, spec_state
from tidegate.dataplane.kernel.programs import Build
from tidegate.dataplane.network import own_addresses
from tidegate.model.address import packed
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import BackendKey, Desired
from tidegate.planner import plan
from tidegate.spec import Link, Result, State, Verdict, process
from tidegate.spec.simulation import tables

Judge = Callable[[State, bytes, int, int], Result]


def at_one_time(
    kernel: Kernel, state: State, frame: bytes, judge: Judge = process
) -> tuple[Result, Verdict, bytes]:
    """Send a frame through both as if they looked at the clock at one moment.

    Entries note the tick, and limits the jiffy. If that ended while the kernel had the frame, the
    moment is the one that makes the specification do what the kernel did.
    """
    before = kernel.now()
    verdict, out = kernel.run(frame)
    after = kernel.now()
    if before == after:
        return judge(state, frame, LOOPBACK, after), verdict, out
    trial = copy.deepcopy(state)
    result = judge(trial, frame, LOOPBACK, before)
    if (verdict, out) == (result.verdict, result.frame) and kernel.tables() == tables(trial):
        vars(state).update(vars(trial))
    else:
        result = judge(state, frame, LOOPBACK, after)
    state.syn_limits.cells = kernel.cells("syn_limits")
    state.mark_limits.cells = kernel.cells("mark_limits")
    return result, verdict, out


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
        expected, verdict, out = at_one_time(self.kernel, self.state, frame)
        assert (verdict, out) == (expected.verdict, expected.frame)
        assert self.kernel.tables() == tables(self.state)
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
        self.kernel.age(seconds)
        age(self.state, seconds)

    def refill_answers(self) -> None:
        """Let a second pass for the limits on answers."""
        self.kernel.refill()
        self.state.answers.clear()

    def forget(self) -> None:
        """Empty the connection table and the SYN table, as on a host that takes over."""
        for table in ("flows", "syns"):
            self.kernel.clear(table)
        self.state.flows.entries.clear()
        self.state.syns.entries.clear()

    def own(self, *addresses: str) -> None:
        """Make these the addresses of the host's own interfaces."""
        found = [ip_address(address) for address in addresses]
        own_addresses.write(self.kernel.maps["own_addresses"], found)
        self.state.own = frozenset(map(packed, found))

    def link(self, link: Link) -> None:
        """Set what both know of the interface."""
        self.kernel.link(link)
        self.state.links = {LOOPBACK: link}


@contextmanager
def both_engines(build: Build = BUILD) -> Iterator[Both]:
    """Give new kernel maps and a new specification; compare their counters at the end."""
    with Kernel(build) as kernel:
        state = spec_state(build)
        found = Both(kernel, state)
        yield found
        assert_equal(kernel, state)
