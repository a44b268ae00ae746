# SPDX-License-Identifier: Apache-2.0
"""Goes through the connection table now and then, and tidies what no packet comes for any more.

TCP flows that are idle for longer than their VIP's timeout get the flag ENDING, as if their client
had said so: they are the first to make room, and a flow that speaks after all lives on. UDP flows
that are idle are not followed any more, so their entries are emptied; and so are those of a VIP, or
of a use of it, that is no more, and of a backend that does not exist any more. Ids can then be used
again, and ticks, which begin again after three days, never make an old entry look young.

Packets write meanwhile, without a lock. Why that does no harm:

* An owner is one aligned word of 64 bits, and is written whole: a packet finds it or an empty
  place, never a mixture. To empty it takes from a flow at most its entry. Whoever takes the place
  in the moment between our look and our write, some 100 µs, is a flow of that moment: its next
  packet goes where its first one went, by the table or the mark of its SYN, and makes the entry
  again.
* A state is read again just before ENDING is put into it. If its flow speaks in between, it gets
  the flag and its old tick; its next packet finds more than two ticks of silence, and it lives on
  (`spec.flow`). Until then it may lose its place, as it could have a moment before it spoke.
* If another flow takes the place in between, its entry gets the state of the flow before it, and so
  perhaps another VIP's id. Therefore owners are looked at again after the states are written, and a
  place whose owner has changed is emptied, as above. A packet writes the state first and the owner
  next, without a pause: one that is missed would have to stop between the two for all that time.

Who is gone follows from the generation in force; while the kernel may hold another one (a
publication that failed, or a start that has not published yet) only idle flows are looked for.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.inspect.live_flows import NONE, decoded, idle_limit
from tidegate.dataplane.kernel.jiffies import Jiffies, clock
from tidegate.dataplane.kernel.lines import Lines, MappedLines, occupied, words
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.model.constants import MAX_BACKENDS, MAX_VIPS
from tidegate.model.generation import Generation
from tidegate.model.ticks import TICKS, Clock
from tidegate.spec.lines import ENDING

LINES: Final = 1 << 21
"""Lines that are looked at in one go: some 40 ms, or half that where few have entries."""
_LATE: Final = 2
"""Ticks that may pass between a VIP's change in the kernel and our taking note of it."""


class Swept(NamedTuple):
    """How many entries became what."""

    ended: int = 0
    emptied: int = 0

    def more(self, ended: int, emptied: int) -> "Swept":
        """Return the sum with these."""
        return Swept(self.ended + ended, self.emptied + emptied)


@dataclass(frozen=True)
class Existence:
    """A generation by ids, as far as it decides which entries stay.

    Attributes:
        vips: whether each VIP id is in force.
        udp: whether it is of UDP.
        idle: age in ticks above which a flow of each VIP id is idle.
        backends: lower 8 bits of the incarnation of each backend id; NONE where there is none.
    """

    vips: npt.NDArray[np.bool_]
    udp: npt.NDArray[np.bool_]
    idle: npt.NDArray[np.int32]
    backends: npt.NDArray[np.int16]

    @classmethod
    def of(cls, generation: Generation, clock: Clock) -> Self:
        """Return what there is in a generation."""
        found = cls(
            np.zeros(MAX_VIPS, bool),
            np.zeros(MAX_VIPS, bool),
            np.full(MAX_VIPS, TICKS, np.int32),
            np.full(MAX_BACKENDS, NONE, np.int16),
        )
        for placed in generation.vips.values():
            id_ = placed.identity.id
            found.vips[id_] = True
            found.udp[id_] = placed.vip.protocol == "udp"
            found.idle[id_] = idle_limit(placed.vip, clock)
        for backend in generation.backends.values():
            found.backends[backend.identity.id] = backend.identity.incarnation & 0xFF
        return found


@dataclass
class Changes:
    """VIPs that became others under the same id: entries from before are of nobody.

    Attributes:
        since: by VIP id, a tick before which no entry is of the new use.
    """

    since: dict[int, int] = field(default_factory=dict)

    def note(self, before: Generation, after: Generation, tick: int) -> None:
        """Take note of a generation that came into force a moment ago."""
        uses = {placed.identity for placed in before.vips.values()}
        for placed in after.vips.values():
            use = placed.identity
            if use not in uses and use.incarnation > 1:
                self.since[use.id] = (tick - _LATE) % TICKS

    def ages(self, tick: int) -> npt.NDArray[np.int32]:
        """Return the age above which an entry of each VIP id is of nobody."""
        ages = np.full(MAX_VIPS, TICKS, np.int32)
        for id_, since in self.since.items():
            ages[id_] = (tick - since) % TICKS
        return ages


def sweep(
    lines: Lines,
    there: Existence,
    oldest: npt.NDArray[np.int32],
    tick: int,
    first: int = 0,
    count: int | None = None,
    *,
    is_certain: bool = True,
) -> Swept:
    """Tidy some lines of the connection table.

    Args:
        lines: mapped so that it can be written.
        there: of the generation in force.
        oldest: `Changes.ages`.
        tick: of now.
        first: line to begin with.
        count: of lines; all that follow by default.
        is_certain: whether no other generation may be in the kernel.
    """
    owners, states = words(lines)
    swept = Swept()
    for part in occupied(lines, first, count):
        flows = decoded(part, tick)
        is_idle = flows.age > there.idle.take(flows.vip)
        is_gone = is_idle & there.udp.take(flows.vip)
        if is_certain:
            is_gone |= ~there.vips.take(flows.vip) | (flows.age > oldest.take(flows.vip))
            is_gone |= there.backends.take(flows.backend) != flows.incarnation
        is_ended = is_idle & ~is_gone & ((flows.flags & np.uint8(ENDING)) == 0)
        owners[part.owner_at[is_gone]] = 0
        states[part.state_at[is_ended]] |= np.uint32(ENDING)
        at = part.owner_at[is_ended]
        owners[at[owners[at] != part.owners[is_ended]]] = 0
        swept = swept.more(int(np.count_nonzero(is_ended)), int(np.count_nonzero(is_gone)))
    return swept


class Sweeper:
    """Tidies the connection table of an open data plane, a part at a time.

    Args:
        fd: descriptor of the table.
        pairs: of its lines.
        publisher: knows the generation in force.
    """

    def __init__(self, fd: int, pairs: int, publisher: Publisher) -> None:
        self._publisher = publisher
        self._seen = publisher.in_force
        self._changes = Changes()
        self._there: Existence | None = None
        self._at = 0
        with ExitStack() as undo:
            self._jiffies = undo.enter_context(Jiffies())
            self._table = undo.enter_context(MappedLines(fd, pairs, writable=True))
            self._opened = undo.pop_all()

    def follow(self) -> None:
        """Take note of the generation in force; to be called soon after each publication."""
        in_force = self._publisher.in_force
        if in_force is not self._seen:
            self._changes.note(self._seen, in_force, self._tick())
            self._seen, self._there = in_force, None

    @property
    def is_under_way(self) -> bool:
        """Whether a part of the table is left."""
        return self._at > 0

    def sweep(self) -> Swept:
        """Tidy the next part of the table.

        Raises:
            FenceError: another agent writes to the data plane.
        """
        self.follow()
        self._publisher.check()
        if self._there is None:
            self._there = Existence.of(self._seen, clock())
        tick, lines = self._tick(), self._table.lines
        swept = sweep(
            lines,
            self._there,
            self._changes.ages(tick),
            tick,
            self._at,
            LINES,
            is_certain=self._publisher.is_certain,
        )
        self._at += LINES
        if self._at >= len(lines):
            self._at = 0
            if self._publisher.is_certain:
                self._changes.since.clear()
        return swept

    def _tick(self) -> int:
        return clock().tick(self._jiffies.now())

    def close(self) -> None:
        """Unmap the table."""
        self._opened.close()
