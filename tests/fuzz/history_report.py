# SPDX-License-Identifier: Apache-2.0
"""What a history has shown: counts, and the first violations of each kind with what led to them."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from fuzz.history_books import Broken, Flow, Kind, View

_SHOWN: Final = 2
"""Violations of a kind that are told in full."""
_REMEMBERED: Final = 40
"""Packets of a flow that are told."""


@dataclass
class Report:
    """What a run did.

    Attributes:
        promised: packets whose flow may not move, or that begin one.
        events: what happened to agent and tables, by what it was.
        free: packets of flows that might move, by exception.
        broken: violations, by promise and the VIP's tracking.
        told: some of them, with their history.
    """

    seed: int
    packets: int = 0
    promised: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    free: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rate = self.packets / self.seconds if self.seconds else 0
        sent = f"{self.packets:,} packets, {self.promised:,} of them promised"
        lines = [f"seed {self.seed}: {sent}, in {self.seconds:.1f} s, {rate:,.0f} a second"]
        parts = {"sent": self.kinds, "events": self.events, "might move": self.free}
        for title, counts in (parts | {"BROKEN": self.broken}).items():
            said = ", ".join(f"{name} {n:,}" for name, n in counts.most_common())
            lines.append(f"  {title}: {said or 'none'}")
        return "\n".join([*lines, *self.told])


class Chronicle:
    """What has happened, in the order in which it did, for those who read of a violation."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._events: list[tuple[int, str]] = []

    def note(self, clock: int, text: str) -> None:
        """Note that documents, an agent or a table changed."""
        self._events.append((clock, text))

    def note_step(self, clock: int, text: str) -> None:
        """Note a step of publishing, which is told where a packet came right behind it."""
        self._events.append((clock, f"  {text}"))

    def sent(self, flow: Flow, kind: Kind, where: bytes | None, views: list[View]) -> None:
        """Note where a packet of a flow went."""
        found = (s for v in views for s, there in v.servers.items() if there.address == where)
        target = "nowhere" if where is None else f"{next(found, 'nobody')} at {where.hex('.')}"
        flow.story.append((len(self._events), f"    {kind} to {target}"))
        del flow.story[:-_REMEMBERED]

    def tell(self, flow: Flow, broken: Broken, tracking: str) -> None:
        """Count a violation, and tell the first ones."""
        kind = f"{broken.promise} [{tracking}]"
        self._report.broken[kind] += 1
        if self._report.broken[kind] <= _SHOWN:
            self._report.told.append(self._history(flow, broken))

    def _history(self, flow: Flow, broken: Broken) -> str:
        lines = [f"BROKEN: {broken.promise}: {broken.details}; VIP {flow.vip}"]
        told = max(0, flow.story[0][0] - 1)
        for index, text in flow.story:
            passed = self._events[told:index]
            for at, (clock, event) in enumerate(passed, 1):
                if event[0] != " " or at == len(passed):
                    lines.append(f"  {clock} {event}")
            lines.append(text)
            told = max(told, index)
        return "\n".join(lines)
