# SPDX-License-Identifier: Apache-2.0
"""Random histories on the real program, whose promises are checked by books of the test's own.

Documents change, backends fail and recover, agents crash and start again, tables are lost, and
between all steps of publishing clients go on: handshakes, long and idle flows, ports used again,
SYNs that are sent again or belong to nobody. `history_books` says what is promised.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from typing import Final, Self

from fuzz.history_books import Books
from fuzz.history_clients import Clients
from fuzz.history_report import Report
from fuzz.history_roster import Roster, View
from support.packets.kernel import Kernel
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.dataplane.publish.steps import Step, unwatched
from tidegate.model.generation import Generation
from tidegate.model.values import BackendKey
from tidegate.planner import plan

PACKETS: Final = 2_000_000
_SESSION: Final = 20_000
"""Packets of one history."""
_BETWEEN: Final = 500
"""Packets between two changes, beside those between the steps of one."""
_AT_STEP: Final = 20
_STEPS: Final = 25
"""Of a publication, at one of which an agent dies."""
_SECONDS: Final = {1: 40, 8: 30, 25: 20, 70: 6, 400: 4, 4000: 1}
"""The longest time between two changes: how often, of 101 times."""

PlannedOver = Callable[[Publisher], Generation]


class _DeathError(BaseException):
    """The agent dies: nothing that it has in hand is undone."""


def standing(publisher: Publisher) -> Generation:
    """Return what the agent plans over."""
    return publisher.standing


def _close(publisher: Publisher) -> None:
    """Close the descriptors of an agent that has died; its pins stay as they are."""
    for table in (*publisher.mirror.tables.values(), *publisher._retired):
        os.close(table.fd)


class History:
    """One history: a kernel, an agent's publisher over it, clients, and the books.

    Args:
        chance: what is drawn from.
        report: what is added to.
        planned_over: what a publisher's next generation is planned over.
        declare_losses: whether the books are told when the connection table is lost.
        renames: whether servers change their names.
    """

    def __init__(
        self,
        chance: random.Random,
        report: Report,
        *,
        planned_over: PlannedOver = standing,
        declare_losses: bool = True,
        renames: bool = True,
    ) -> None:
        self._chance = chance
        self._report = report
        self._planned_over = planned_over
        self._declare_losses = declare_losses
        self._kernel = Kernel()
        self._roster = Roster(chance, renames=renames)
        self._books = Books(self._roster)
        self._clients = Clients(chance, self._kernel, self._roster, self._books, report)
        self._published = dict(self._roster.changes)
        self._dies_in = -1

    def __enter__(self) -> Self:
        self._cpus = sorted(os.sched_getaffinity(0))
        self._kernel.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._kernel.publisher.reached = unwatched
        self._kernel.__exit__(None, None, None)

    def run(self, packets: int) -> None:
        """Go on until so many more packets have been sent."""
        self._books.views = [View({}, self._roster.view().pools)]
        self._publish("the first documents")
        happenings = {
            self._change: 60,
            self._fail_early: 14,
            self._restart: 5,
            self._die: 8,
            self._lose: 5,
            self._change_cpu: 8,
        }
        until = self._report.packets + packets
        while self._report.packets < until:
            self._chance.choices(list(happenings), list(happenings.values()))[0]()
            self._clients.send(_BETWEEN)

    def _note(self, text: str, count: str = "") -> None:
        self._clients.chronicle.note(self._roster.now, text)
        if count:
            self._report.events[count] += 1

    def _change(self) -> None:
        self._pass_time()
        count = self._chance.choice([0, 1, 1, 1, 2, 4])
        changes = [self._roster.change() for _ in range(count)]
        self._publish("; ".join(changes) or "time passes")

    def _pass_time(self) -> None:
        longest = self._chance.choices(list(_SECONDS), list(_SECONDS.values()))[0]
        seconds = self._chance.randint(1, longest)
        self._roster.now += seconds
        self._kernel.age(seconds)

    def _fail_early(self) -> None:
        """Flag a failed server at once, as the agent does, then publish; some recover before."""
        server = self._roster.spare()
        if server is None:
            return
        what = self._roster.fail(server)
        self._kernel.publisher.flag_unhealthy([BackendKey(server.pool, server.name)])
        self._note(f"{what}, and is flagged", "early flags")
        self._books.views = [self._roster.view()]
        self._books.planned()
        self._clients.send(_BETWEEN)
        self._pass_time()
        chance = self._chance.random()
        if chance < 0.4:
            self._publish(self._roster.recover(server))
        elif chance < 0.8:
            self._publish("the flagged one is out")
        else:
            self._restart()

    def _restart(self) -> None:
        """Start another agent, which knows nothing but the pins."""
        kernel = self._kernel
        _close(kernel.publisher)
        kernel.publisher = Publisher(kernel.maps, kernel.pins, grace=0)
        kernel.publisher.adopt()
        self._note("the agent starts again", "restarts")
        self._clients.send(_BETWEEN)
        self._publish("the same documents")

    def _die(self) -> None:
        """Let the agent die at a step of publishing, and start another one."""
        self._dies_in = self._chance.randrange(_STEPS)
        self._change()
        self._dies_in = -1

    def _lose(self) -> None:
        """Lose the connection table and the marks, or the marks alone, as under a flood."""
        names = self._chance.choice([("flows", "syns"), ("flows", "syns"), ("syns",)])
        self._note(f"{' and '.join(names)} are lost", "losses")
        for name in names:
            self._kernel.clear(name)
        if self._declare_losses:
            self._books.lose(self._clients.flows, entries="flows" in names)

    def _change_cpu(self) -> None:
        os.sched_setaffinity(0, {self._chance.choice(self._cpus)})
        self._report.events["changes of the CPU"] += 1

    def _publish(self, why: str) -> None:
        publisher, roster = self._kernel.publisher, self._roster
        roster.let_go()
        self._books.planned()
        self._note(why, "publications")
        self._books.views.append(roster.view())
        roster.touched.clear()
        documents, fitness = roster.desired(), dict(roster.fitness)
        generation = plan(documents, self._planned_over(publisher), roster.now, fitness)
        publisher.reached = self._step
        try:
            publisher.publish(generation, 0.0)
            publisher.reap(1.0)
        except _DeathError:
            self._note("the agent dies", "crashes")
            self._restart()
            return
        publisher.reached = unwatched
        self._books.views = [roster.view()]
        for pool, changes in roster.changes.items():
            roster.changes[pool] += changes != self._published[pool]
        self._published = dict(roster.changes)

    def _step(self, step: Step) -> None:
        self._clients.chronicle.note_step(self._roster.now, step.value)
        self._dies_in -= 1
        if self._dies_in == -1:
            raise _DeathError
        self._clients.send(_AT_STEP)


def histories(
    packets: int,
    seed: int,
    *,
    planned_over: PlannedOver = standing,
    declare_losses: bool = True,
    renames: bool = True,
) -> Report:
    """Run histories until a number of promised packets.

    Args:
        packets: how many.
        seed: the same gives the same histories.
        planned_over: see History.
        declare_losses: see History.
        renames: see History.
    """
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    report = Report(seed)
    began = time.monotonic()
    while report.promised < packets:
        history = History(
            chance,
            report,
            planned_over=planned_over,
            declare_losses=declare_losses,
            renames=renames,
        )
        with history:
            history.run(min(_SESSION, packets - report.promised))
        report.seconds = time.monotonic() - began
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{report.promised:,} packets ")
    return report
