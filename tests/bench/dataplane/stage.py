# SPDX-License-Identifier: Apache-2.0
"""Loads what rows need, and measures a row: the balancer's programs over the maps of each scene.

A scene has two programs over the same maps: one with the features that its documents need, and one
with all that there are. Both are measured on the same packets and in the same state.
"""

import os
import random
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Self

from bench.dataplane.loaded import Loaded
from bench.dataplane.method import MOST, SAMPLE, run
from bench.dataplane.programs import Kind, Knobs, Part
from bench.dataplane.rows import ACK, EVERY, NO_LIMIT, SCENES, Row, flows
from support.documents.roster import generations
from support.packets.kernel import BUILD, Kernel
from tidegate.dataplane.kernel import maps
from tidegate.model.decision import Decision
from tidegate.model.features import features
from tidegate.spec import Verdict

VERSIONS: Final = ("needed", "all")
FILLING: Final = 3 << 20
"""Flows after which every place of a large table is taken, also where they are drawn by lot."""
FEW: Final = 1_000
"""Packets that tell how many make a sample."""
STRAY: Final = 250
"""Of so many packets of many flows one may go another way: a full table has no room for some."""


LARGE: Final = maps.Capacity(flows=1 << 20)
"""A connection table for a million flows."""


class WrongPathError(Exception):
    """Packets of a row did not go the way that the row is about."""


class Counts(NamedTuple):
    """What the program has counted over all VIPs."""

    packets: int
    decisions: Counter[Decision]
    inserted: int

    @classmethod
    def of(cls, kernel: Kernel) -> Self:
        """Read the counters."""
        each = kernel.vip_counters().values()
        decisions: Counter[Decision] = Counter()
        for counters in each:
            decisions += counters.decisions
        packets = sum(c.packets + c.answered + sum(c.drops.values()) for c in each)
        return cls(packets, decisions, sum(c.tracked for c in each))


@dataclass
class Staged:
    """A scene in the kernel: its programs by version, and the first flow that was never seen."""

    kernel: Kernel
    programs: dict[str, int]
    unseen: int = 0


class RowCase:
    """A row and one version of the program."""

    yields = False

    def __init__(self, row: Row, version: str, stage: "Stage") -> None:
        self.row, self.name = row, f"{row.name} / {version}"
        self._stage, self._scene = stage, stage.scene(row.scene)
        self._wrapper = stage.loaded.wrappers[row.kind]
        self._empty = stage.loaded.part(Part.EMPTY if row.decision is None else Part.EMPTY_TX)
        self._program = self._scene.programs[version]
        self._chance = random.Random(1)  # noqa: S311 - a workload, not a secret
        self._count = self._sent = 0

    def prepare(self) -> None:
        """Send what has to be there, note what was counted until now, and fill the caches."""
        row = self.row
        for frame in row.before:
            self._scene.kernel.run(frame)
        self._before, self._sent = Counts.of(self._scene.kernel), 0
        if row.kind is Kind.MANY and not row.inserts and self._stage.recent != row.name:
            self._send(row.knobs.flows, is_random=False)
        self._stage.recent = row.name
        each = self._send(FEW)
        if not self._count:
            self._count = min(MOST, int(SAMPLE / each))

    def difference(self) -> float:
        """Return ns of the wrapper around the program, less those around the empty one."""
        inside = self._send(self._count)
        self._call(self._empty, is_empty=True)
        return inside - run(self._wrapper.fd, self.row.frame, self._count).each

    def confirm(self) -> None:
        """Raise unless what was counted is what was sent."""
        row, now = self.row, Counts.of(self._scene.kernel)
        decisions = now.decisions - self._before.decisions
        inserted = now.inserted - self._before.inserted
        sent = self._sent if row.decision is not None else 0
        stray = sent // STRAY if row.kind is Kind.MANY else 0
        wanted = sent if row.inserts else 0
        if (
            now.packets - self._before.packets != sent
            or (row.decision is not None and sent - decisions[row.decision] > stray)
            or abs(inserted - wanted) > stray
        ):
            made = ", ".join(f"{n:,} {d.name}" for d, n in decisions.items())
            way = "passed uncounted" if row.decision is None else f"been {row.decision.name}"
            raise WrongPathError(
                f"{self.name}: all of {self._sent:,} packets should have {way} and {wanted:,} made "
                f"an entry; {now.packets - self._before.packets:,} were counted "
                f"({made or 'no decision'}), and {inserted:,} made an entry"
            )

    def _call(self, program: int, *, is_empty: bool = False, is_random: bool = True) -> None:
        knobs = self.row.knobs
        if self.row.inserts:
            state = self._scene.unseen
        elif is_random:
            state = self._chance.getrandbits(64)
        else:
            state = 0
        knobs = replace(knobs, is_random=is_random and knobs.is_random)
        self._wrapper.call(program, knobs.of(self.row.frame, state, is_empty=is_empty))

    def _send(self, count: int, *, is_random: bool = True) -> float:
        """Run the wrapper around the program; return ns per packet."""
        self._call(self._program, is_random=is_random)
        ran = run(self._wrapper.fd, self.row.frame, count)
        self._sent += count
        if self.row.inserts:
            self._scene.unseen += count
        if ran.verdict != self.row.verdict:
            found = Verdict(ran.verdict).name
            raise WrongPathError(f"{self.name}: {found} instead of {self.row.verdict.name}")
        return ran.each


class Stage:
    """Everything that is loaded, from `with` to its end.

    Attributes:
        recent: the row that was measured last, whose flows the caches have.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.recent = ""
        self._scenes: dict[str, Staged] = {}
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def scene(self, name: str) -> Staged:
        """Return a scene, which is loaded when it is first asked for."""
        if name not in self._scenes:
            self._scenes[name] = self._load(name)
        return self._scenes[name]

    def _load(self, name: str) -> Staged:
        scene = SCENES[name]
        (generation,) = generations(scene.documents)
        size = LARGE if scene.is_large else BUILD.capacity
        whole_build = replace(BUILD, capacity=size, error_rate=NO_LIMIT)
        build = replace(whole_build, features=features(generation))
        kernel = self._exits.enter_context(Kernel(build))
        kernel.install(generation)
        whole = kernel.load(whole_build)
        self._exits.callback(os.close, whole)
        loaded = Staged(kernel, dict(zip(VERSIONS, (kernel.program, whole), strict=True)))
        if scene.established:
            for _ in range(2):
                self._send(loaded, scene.established, scene.established.flows)
        if scene.is_full:
            self._send(loaded, flows(count=EVERY), FILLING)
            loaded.unseen = FILLING
        return loaded

    def _send(self, scene: Staged, knobs: Knobs, count: int) -> None:
        """Send a packet of each of so many flows."""
        wrapper = self.loaded.wrappers[Kind.MANY]
        wrapper.call(scene.kernel.program, replace(knobs, is_random=False).of(ACK, state=0))
        run(wrapper.fd, ACK, count)

    def cases(self, rows: Iterable[Row]) -> list[RowCase]:
        """Return the cases of rows, each in both versions."""
        return [RowCase(row, version, self) for row in rows for version in VERSIONS]
