# SPDX-License-Identifier: Apache-2.0
"""Packets that really leave: frames made by the kernel, over a veth, in millions a second.

The kernel makes frames, runs the program and sends what it transmits out of the interface, on the
CPU that asks for it. On the same CPU the veth's peer takes them, has a program pass them to the
stack, and the stack drops what is for another's address. All of this is in the figure, and in that
of the floor; so is the wrapper's work, which gives each packet another flow.
"""

from typing import Final, NamedTuple

from bench.dataplane.rows import ACK, flows
from bench.dataplane.stage import VERSIONS, Counts, Stage, Staged, WrongPathError
from bench.dataplane.wire import Wire
from support.packets.kernel import LINK
from tidegate.model.decision import Decision

PACKETS: Final = 200_000
LOST: Final = 1_000
"""Of so many frames one may be lost on the veth, whose ring is short."""


class LiveRow(NamedTuple):
    """A scene, by what its packets are decided, and the goal: millions of packets a second."""

    name: str
    scene: str
    decision: Decision
    goal: float


ROWS: Final = (
    LiveRow("live, 900,000 flows: full", "many", Decision.TRACKED, 2.4),
    LiveRow("live, 900,000 flows: transition", "transition", Decision.CURRENT, 3.3),
)
FLOOR: Final = "live floor: push 20 bytes, transmit"


class LiveCase:
    """A program on the wire. A sample is ns per packet, with all that it takes to send it."""

    yields = True

    def __init__(self, name: str, wire: Wire, program: int) -> None:
        self.name = name
        self._wire, self._program, self._sent = wire, program, 0

    def prepare(self) -> None:
        """Note how many were received until now, and send as many to fill the caches."""
        self._received, self._sent = self._wire.received(), 0
        self._send()

    def difference(self) -> float:
        """Send, and return ns per packet."""
        return self._send()

    def confirm(self) -> None:
        """Raise unless the far end has received what was sent."""
        there = self._wire.received() - self._received
        if self._sent - there > self._sent // LOST:
            raise WrongPathError(f"{self.name}: of {self._sent:,} frames {there:,} arrived")

    def _send(self) -> float:
        self._sent += PACKETS
        self._wire.wrapper.call(self._program, flows().of(ACK, state=1))
        return self._wire.send(ACK, PACKETS)


class LiveRowCase(LiveCase):
    """The balancer on the wire."""

    def __init__(self, row: LiveRow, version: str, wire: Wire, scene: Staged) -> None:
        super().__init__(f"{row.name} / {version}", wire, scene.programs[version])
        self._decision, self._kernel = row.decision, scene.kernel

    def prepare(self) -> None:
        """Note what was counted until now, and as every live case."""
        self._before = Counts.of(self._kernel)
        super().prepare()

    def confirm(self) -> None:
        """Raise too if packets were decided otherwise than the row says."""
        super().confirm()
        decisions = Counts.of(self._kernel).decisions - self._before.decisions
        if self._sent - decisions[self._decision] > self._sent // LOST:
            raise WrongPathError(f"{self.name}: {self._sent:,} packets became {decisions}")


def cases(stage: Stage, wire: Wire, push: int) -> list[LiveCase]:
    """Return the floor, and each row in both versions."""
    found = [LiveCase(FLOOR, wire, push)]
    for row in ROWS:
        scene = stage.scene(row.scene)
        scene.kernel.link(LINK, wire.index)
        found += [LiveRowCase(row, version, wire, scene) for version in VERSIONS]
    return found
