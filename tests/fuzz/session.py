# SPDX-License-Identifier: Apache-2.0
"""The fuzzer's session: one program and one spec that are given the same documents and frames.

What documents and frames these are is not decided here.
"""

import os
import sys
from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np

from fuzz.documents import Keys, desired
from fuzz.frames import Target
from support.packets.both import Judge, at_one_time
from support.packets.kernel import BUILD, LINK, LOOPBACK, Kernel, age, assert_equal, spec_state
from tidegate.dataplane.inspect.simulation import SHORTEST
from tidegate.dataplane.kernel import layout, maps, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.model.features import ALL_FEATURES, Feature
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Vip
from tidegate.planner import plan
from tidegate.spec import Link, Result
from tidegate.spec.limit import FRACTION, Bucket
from tidegate.spec.simulation import counters, differences, tables

FIRST_SECOND: Final = 1000
"""Wall clock before the first documents."""
_REFILL_FRAMES: Final = 50


@dataclass
class Step:
    """Documents, and the frames that came while they were in force.

    Attributes:
        link: the interface.
        age: seconds by which what is remembered is made older before.
    """

    keys: Keys
    link: Link = LINK
    age: int = 0
    frames: list[bytes] = field(default_factory=list)


class Session:
    """A kernel and a specification that are given the same steps, from `with` to its end.

    The two look at the clock at different times, so whether a bucket got a token in between must
    never decide. A limit is one per second or out of reach, and every fifty frames all buckets are
    filled or, where the limit is one, every other time emptied.
    """

    def __init__(self, judge: Judge, needed: frozenset[Feature]) -> None:
        self._judge = judge
        self._features = needed
        self._kernel = Kernel()
        self._state = spec_state()
        self._generation: Generation = NOTHING
        self._second = FIRST_SECOND
        self._sent = 0

    def __enter__(self) -> Self:
        kernel = self._kernel
        kernel.__enter__()
        self._whole = kernel.program
        if self._features != ALL_FEATURES:
            build = replace(BUILD, features=self._features)
            kernel.program = programs.load_balancer(programs.compile_balancer(build), kernel.maps)
        return self

    def __exit__(self, *error: object) -> None:
        if self._kernel.program != self._whole:
            os.close(self._kernel.program)
            self._kernel.program = self._whole
        self._kernel.__exit__(None, None, None)

    def install(self, step: Step) -> None:
        """Put documents in force on both, a second after the ones before."""
        self._second += 1
        self._generation = plan(desired(step.keys), self._generation, self._second)
        self._kernel.install(self._generation)
        self._state.install(self._generation)
        self._kernel.link(step.link)
        self._state.links = {LOOPBACK: step.link}
        if step.age:
            self._age(step.age)

    def targets(self) -> list[Target]:
        """Return destinations of packets for the VIPs in force: three addresses of a network."""
        numbers = {"tcp": 6, "udp": 17}
        return [
            Target(address, vip.port, numbers[vip.protocol], *self._quic(vip))
            for vip in (placed.vip for placed in self._generation.vips.values())
            for address in sorted({vip.network[0], vip.network[-1], vip.network[-1] - 1})
            if address in vip.network
        ]

    def _quic(self, vip: Vip) -> tuple[int, tuple[bytes, ...]]:
        """Return where server ids begin, and those that would be found."""
        quic = vip.quic
        if quic is None:
            return 0, ()
        backends = (placed.backend for placed in self._generation.backends.values())
        there = (b.quic_server_id or b"" for b in backends if b.pool == vip.pool)
        return quic.offset, tuple(id_ for id_ in there if len(id_) == quic.server_id_length)

    def _age(self, seconds: int) -> None:
        self._kernel.age(seconds)
        age(self._state, seconds)

    def _refill(self) -> None:
        state, fds, now = self._state, self._kernel.maps, self._kernel.now()
        turn = self._sent // _REFILL_FRAMES % 2
        for identity, vip in ((p.identity, p.vip) for p in self._generation.vips.values()):
            limit, clock = vip.insert_limit, state.settings.clock
            fill = Bucket.holding(turn if limit == 1 else limit, limit, now, clock)
            state.insert_limits[identity.id] = fill
            values = np.array([(fill.spent, 0)] * maps.cpu_count(), layout.BUCKET)
            key = identity.id.to_bytes(4, sys.byteorder)
            bpf.map_update(fds["insert_limits"], key, values.tobytes())
        second = state.settings.clock.hz << FRACTION
        for name, limits in (("syn_limits", state.syn_limits), ("mark_limits", state.mark_limits)):
            # What is spent: nothing, or a limit of one a second.
            spent = (now << FRACTION) - turn * second
            for cell in limits.cells:
                limits.cells[cell] = spent
                bpf.map_update(
                    fds[name], cell.to_bytes(4, sys.byteorder), spent.to_bytes(8, sys.byteorder)
                )

    def send(self, frame: bytes) -> tuple[Result, str | None]:
        """Send a frame; return the specification's result, and how the kernel differs."""
        if self._sent % _REFILL_FRAMES == 0:
            self._refill()
        self._sent += 1
        if len(frame) < SHORTEST:
            return self._judge(self._state, frame, LOOPBACK, self._kernel.now()), None
        try:
            expected, verdict, out = at_one_time(self._kernel, self._state, frame, self._judge)
        except OSError as error:
            now = self._kernel.now()
            expected = self._judge(self._state, frame, LOOPBACK, now)
            return expected, f"the kernel refused to run it: {error}"
        if (verdict, out) == (expected.verdict, expected.frame):
            return expected, None
        return expected, (
            f"kernel: {verdict.name} {out.hex()}\n"
            f"spec:   {expected.verdict.name} {expected.reason.name} {expected.frame.hex()}"
        )

    def compare(self) -> str | None:
        """Return how maps and counters differ."""
        kernel, state = self._kernel, self._state
        try:
            assert_equal(kernel, state)
        except AssertionError:
            here = {
                **kernel.tables(),
                "verdicts": kernel.verdicts(),
                "vips": kernel.vip_counters(),
                "addresses": kernel.address_counters(),
                "backends": kernel.backend_counters(),
            }
            there = {**tables(state), **counters(state)}
            return "\n".join(differences(here, there))
        return None
