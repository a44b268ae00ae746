# SPDX-License-Identifier: Apache-2.0
"""From events to flows: which events belong together, when a flow begins, and when it is over.

Pure: arrays of events and the time go in, finished flows come out, whatever the batches are that
the events come in. What a flow looks like as a span is in `flow_spans`.

A client's FIN or RST ends a flow. It stays for `LINGER` so that what follows at once (RST after
FIN, an entry in the connection table) is exported with it, and is then remembered for `MEMORY`, so
that a FIN that the client repeats is not taken for another flow. A flow of which nothing but drops
is known is over after `LINGER` too. All others end when there was no event of them for the idle
timeout: the program writes events of a flow's begin, moves and end, not of the packets in between,
so a long and quiet flow becomes several spans.

A SYN within `SYN_REPEATS` of the last, with nothing in between, is the same SYN again (the last of
Linux's six repetitions comes 32 s after the one before); any other SYN is another connection.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

from tidegate.model.decision import Decision, EventKind, Reason
from tidegate.model.generation import Identity
from tidegate.model.tag import PROTOCOLS
from tidegate.telemetry.flows.gate import COLUMNS, Gate, Limits, Records
from tidegate.telemetry.flows.ids import FlowKey

LINGER: Final = 2_000_000_000
MEMORY: Final = 60_000_000_000
SYN_REPEATS: Final = 40_000_000_000
"""Nanoseconds, all three."""
MOST_HAPPENINGS: Final = 32
"""Of one flow; more are counted."""
_MOST_REMEMBERED: Final = 65_536

End = Literal["finished", "reset", "idle", "replaced", "dropped", "stopped"]


class Happening(NamedTuple):
    """An event of a flow, at a monotonic ns; `moved_from` is the backend before if that changed."""

    kind: EventKind
    at: int
    backend: Identity | None
    generation: int
    decision: Decision | None
    reason: Reason
    times: int = 1
    moved_from: Identity | None = None


@dataclass(slots=True)
class Flow:
    """One flow as this host saw it.

    Attributes:
        began, seen: monotonic ns of its first and its last event.
        has_begin: whether its first packet was seen.
        backend: the last one; None if none was chosen.
        first_generation: of the table that chose the first backend; 0 if none did: entries of the
            connection table and marks do not have the generation.
        generation: the newest of the tables that chose a backend; 0 if none did.
        decision: how the first backend was chosen.
        reason: of the last drop.
        untold: events that are not among `happenings`.
        is_established: whether there was more than SYNs and drops.
        end: why it is over, or will be; None while it is not.
        waits_since: monotonic ns from which its time to wait counts.
    """

    key: FlowKey
    vip: Identity
    slot: int
    began: int
    seen: int
    has_begin: bool = False
    backend: Identity | None = None
    first_generation: int = 0
    generation: int = 0
    decision: Decision | None = None
    reason: Reason = Reason.NONE
    drops: int = 0
    begins: int = 0
    moves: int = 0
    untold: int = 0
    is_established: bool = False
    end: End | None = None
    waits_since: int = 0
    happenings: list[Happening] = field(default_factory=list)

    def add(self, happening: Happening) -> None:
        """Take an event in."""
        kind = happening.kind
        self.seen = max(self.seen, happening.at)
        if kind is EventKind.DROPPED:
            self.drops += happening.times
            self.reason = happening.reason
        else:
            happening = self._led(happening)
        if kind is EventKind.NEW:
            self.has_begin = self.has_begin or not self.is_established
            self.begins += 1
        elif kind is not EventKind.DROPPED:
            self.is_established = True
        self._judge(kind)
        if len(self.happenings) < MOST_HAPPENINGS:
            self.happenings.append(happening)
        else:
            self.untold += 1

    def _led(self, happening: Happening) -> Happening:
        """Note where a packet went; it is a move if the one before went elsewhere."""
        before, self.backend = self.backend, happening.backend
        if before is None:
            self.first_generation, self.decision = happening.generation, happening.decision
        self.generation = max(self.generation, happening.generation)
        if before is None or before == self.backend:
            return happening
        self.moves += 1
        return happening._replace(moved_from=before)

    def _judge(self, kind: EventKind) -> None:
        """Decide whether it ends with this event."""
        if self.end in ("finished", "reset"):
            return
        if kind is EventKind.FINISHED:
            self.end = "finished"
        elif kind is EventKind.RESET:
            self.end = "reset"
        else:
            self.end = "dropped" if self.backend is None else None

    def is_begun_anew(self, at: int) -> bool:
        """Return whether a SYN, or a first datagram, at this time is another flow's."""
        is_quiet = at - self.seen > SYN_REPEATS
        return self.is_established or self.end in ("finished", "reset") or is_quiet


class _Known(NamedTuple):
    """Flows that are followed, each line ordered by `waits_since`."""

    open: dict[int, Flow]
    ending: dict[int, Flow]

    def __contains__(self, key: object) -> bool:
        return key in self.open or key in self.ending

    def get(self, key: int) -> Flow | None:
        return self.open.get(key) or self.ending.get(key)

    def pop(self, key: int) -> None:
        self.open.pop(key, None)
        self.ending.pop(key, None)

    def file(self, key: int, flow: Flow, now: int) -> None:
        """Put it at the end of the line that it waits in; one that is ending keeps its place."""
        if flow.end is not None and key in self.ending:
            return
        self.pop(key)
        flow.waits_since = now
        (self.open if flow.end is None else self.ending)[key] = flow


class Flows:
    """Follows flows.

    Args:
        limits: how many.
        now: monotonic ns.
    """

    def __init__(self, limits: Limits, now: int) -> None:
        self._limits = limits
        self._gate = Gate(limits, now)
        self._known = _Known({}, {})
        self._told: dict[int, int] = {}
        self._refused: set[int] = set()
        """Keys in this batch of which the last flow was not taken up."""

    @property
    def dropped(self) -> Counter[str]:
        """Events that are in no span, by reason: rate, table, late, collision."""
        return self._gate.dropped

    @property
    def refused(self) -> int:
        """Flows without a span, because there were too many."""
        return self._gate.refused

    @property
    def floods(self) -> int:
        """Events about a VIP whose limit refuses entries; they are of no flow."""
        return self._gate.floods

    @property
    def followed(self) -> int:
        """How many flows are followed now."""
        return len(self._known.open) + len(self._known.ending)

    def take(self, records: Records, now: int) -> list[Flow]:
        """Take a batch of events in, in any order, and return the flows that are over.

        Args:
            records: with the fields of `flow_gate.COLUMNS`.
            now: monotonic ns, not before that of the last call.
        """
        over: list[Flow] = []
        if len(records):
            room = max(0, self._limits.open_flows - self.followed)
            admitted = self._gate.admit(records, self._known, room, now)
            columns = (admitted.records[name].tolist() for name in COLUMNS)
            rows = zip(admitted.keys.tolist(), admitted.times.tolist(), *columns, strict=True)
            self._refused.clear()
            for key, times, *row in rows:
                over += self._one(key, times, row, now)
        over += self._due(now)
        return over

    def stop(self) -> list[Flow]:
        """Return all that are followed, as they are now; none is followed afterwards."""
        left = list(chain(self._known.ending.values(), self._known.open.values()))
        for flow in left:
            flow.end = flow.end or "stopped"
        self._known = _Known({}, {})
        return left

    def _one(self, key: int, times: int, row: list[Any], now: int) -> Iterator[Flow]:
        at, kind, vip, vip_use, backend, use, generation, slot, decision, reason, *ends = row
        of = FlowKey(*ends)
        chosen = Identity(backend, use) if backend else None
        how = Decision(decision) if backend else None
        event = Happening(EventKind(kind), at, chosen, generation, how, Reason(reason), times)
        flow = self._known.get(key)
        if flow is not None and flow.key != of:
            self.dropped["collision"] += times
            return
        begins = event.kind is EventKind.NEW
        if flow is not None and begins and flow.is_begun_anew(at):
            # A datagram is a flow's first again when its entry has been idle for too long.
            flow.end = flow.end or ("replaced" if of.protocol == PROTOCOLS["tcp"] else "idle")
            yield flow
            flow = None
            self._known.pop(key)
            self._refused.add(key)
        if key in self._refused:
            if not (begins and self._gate.take_up(now)):
                self.dropped["rate"] += times
                return
            self._refused.remove(key)
        if flow is None and not begins and self._told.get(key, now) > now:
            self.dropped["late"] += times
            return
        if flow is None:
            flow = Flow(of, Identity(vip, vip_use), slot, at, at)
        flow.add(event)
        self._known.file(key, flow, now)

    def _due(self, now: int) -> Iterator[Flow]:
        """Return the flows that have waited for long enough."""
        for key, flow in _waited(self._known.ending, now - LINGER):
            self._told.pop(key, None)
            self._told[key] = now + MEMORY
            yield flow
        for _, flow in _waited(self._known.open, now - int(self._limits.idle * 1e9)):
            flow.end = "idle"
            yield flow
        while self._told:
            key, until = next(iter(self._told.items()))
            if until > now and len(self._told) <= _MOST_REMEMBERED:
                break
            del self._told[key]


def _waited(line: dict[int, Flow], since: int) -> Iterator[tuple[int, Flow]]:
    """Take those from the head of a line that have waited since then."""
    while line:
        key, flow = next(iter(line.items()))
        if flow.waits_since > since:
            return
        del line[key]
        yield key, flow
