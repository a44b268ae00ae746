# SPDX-License-Identifier: Apache-2.0
"""Backends that die while a generation is put in force: they are out at once, and stay out.

For every kind of change, at every moment at which the publisher lets somebody look, for every
backend. Whatever becomes of the publishing then (it ends, the kernel refuses a step, the agent is
killed), no packet reaches who is flagged, and the books say what the kernel does.
"""

import errno
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import pytest

from chaos.test_crash_points import NOW, OF_PROGRAMS, OLD, Change, changes
from support.crash.bench import SMALL, Bench, Packets, everything, fork
from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.publish.aside import Directly
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.dataplane.publish.steps import Step, unwatched
from tidegate.errors import DataplaneError
from tidegate.model.generation import Generation, Identity
from tidegate.model.values import BackendKey, Fitness
from tidegate.planner import plan

pytestmark = pytest.mark.root

T = TypeVar("T")
ENTRY = layout.BACKEND.itemsize
RENAMED = "backends have changed names"
"""There packets do not tell who is who."""
SERVING = [key for key, placed in OLD.backends.items() if placed.reachable]
BEFORE = {Step.NUMBER_TAKEN, Step.TABLE_UNPINNED, Step.TABLE_FREED}
AFTER = [step for step in Step if step not in OF_PROGRAMS | BEFORE]
"""Steps behind the first look, in one publishing."""


class Death(Directly):
    """Health, which takes a backend out when the publisher lets it look for the n-th time."""

    def __init__(self, victim: BackendKey, at: int) -> None:
        self.publisher: Publisher | None = None
        self.victim, self.at, self.looks = victim, at, 0

    def run(self, work: Callable[[], T]) -> T:
        """Look behind it, as a loop does beside it."""
        result = work()
        self.between()
        return result

    def between(self) -> None:
        """Look, and perhaps take it out."""
        self.looks += 1
        if self.looks == self.at and self.publisher is not None:
            self.publisher.flag_unhealthy([self.victim])


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    built = Bench()
    yield built
    built.close()


def publisher_of(
    bench: Bench, death: Death, reached: Callable[[Step], None] = unwatched
) -> Publisher:
    publisher = Publisher(bench.maps, bench.pins, grace=0, reached=reached, aside=death)
    death.publisher = publisher
    publisher.adopt()
    publisher.publish(plan(everything(), publisher.in_force, NOW), 0.0)
    return publisher


def fitness(victim: BackendKey) -> dict[BackendKey, Fitness]:
    return {victim: Fitness(is_out=True)}


def name_of(generation: Generation, identity: Identity) -> BackendKey | None:
    """Return what a backend is called in a generation; None if it is not there."""
    return next((k for k, p in generation.backends.items() if p.identity == identity), None)


def assert_out(bench: Bench, publisher: Publisher, identity: Identity) -> None:
    """Books, kernel and ledger agree that it is out or gone, and an audit finds no difference."""
    name = name_of(publisher.in_force, identity)
    entry = maps.read_array(bench.maps["backends"], layout.BACKEND, identity.id + 1)[identity.id]
    standing = publisher.standing
    if name is not None:
        assert not standing.backends[name].reachable
        assert (entry["incarnation"], entry["flags"]) == (
            identity.incarnation,
            layout.QUARANTINED,
        )
    again = Publisher(bench.maps, bench.pins, grace=0)
    found = again.adopt()
    there = name_of(found, identity)
    assert there is None or not found.backends[there].reachable
    assert {k: p.reachable for k, p in found.backends.items()} == {
        k: p.reachable for k, p in standing.backends.items()
    }
    again.close()
    if not publisher.early:
        assert publisher.audit(deep=True) == []


def reached_by(bench: Bench, publisher: Publisher) -> set[str | None]:
    """Return the names of the backends that packets of all VIPs in force reach."""
    packets = Packets(bench.program, OLD, publisher.in_force)
    vips = {name: placed.vip for name, placed in publisher.in_force.vips.items()}
    return {name for vip in vips.values() for name in packets.table(vip)}


def looks_of(bench: Bench, change: Change) -> int:
    """Return how often the publisher lets somebody look in a change."""
    death = Death(SERVING[0], 0)
    bench.start(OLD).close()
    publisher = publisher_of(bench, death)
    death.looks = 0
    publisher.publish(plan(change.after, publisher.in_force, NOW + 1), 1.0)
    publisher.close()
    return death.looks


@pytest.mark.parametrize("name", changes())
def test_who_dies_meanwhile_is_out_and_stays_out(bench: Bench, name: str) -> None:
    """At every third look; and the next change, which is planned without it, is whole."""
    change = changes()[name]
    looks = looks_of(bench, change)
    assert looks > 3
    for at in range(1 + list(changes()).index(name) % 3, looks + 1, 3):
        victim = SERVING[at % len(SERVING)]
        bench.start(OLD).close()
        death = Death(victim, 0)
        publisher = publisher_of(bench, death)
        identity = publisher.in_force.backends[victim].identity
        death.looks, death.at = 0, at
        publisher.publish(plan(change.after, publisher.in_force, NOW + 1), 1.0)
        assert not publisher.early
        assert_out(bench, publisher, identity)
        there = name_of(publisher.in_force, identity)
        out = fitness(there or victim)
        following = plan(change.after, publisher.standing, NOW + 1, out)
        publisher.publish(following, 2.0)
        assert_out(bench, publisher, identity)
        for placed in publisher.in_force.pools.values():
            assert there is None or identity.id not in placed.table.current
        publisher.publish(plan(change.after, publisher.standing, NOW + 1, {}), 3.0)
        assert publisher.audit(deep=True) == []
        publisher.close()


@pytest.mark.parametrize("step", AFTER, ids=lambda step: step.name)
def test_a_refused_step_keeps_who_died_meanwhile_out(bench: Bench, step: Step) -> None:
    """The rest is rolled back, or read again; the flag stands in either, and in the ledger."""
    for number, change in enumerate(changes().values()):
        victim = SERVING[number % len(SERVING)]
        if number % 3 != AFTER.index(step) % 3:
            continue
        bench.start(OLD).close()
        death, is_armed = Death(victim, 0), [False]

        def refuse(now: Step, is_armed: list[bool] = is_armed) -> None:
            if now is step and is_armed[0]:
                raise OSError(errno.ENOMEM, "no memory")

        publisher = publisher_of(bench, death, refuse)
        identity = publisher.in_force.backends[victim].identity
        death.looks, death.at, is_armed[0] = 0, 1, True
        try:
            publisher.publish(plan(change.after, publisher.in_force, NOW + 1), 1.0)
        except DataplaneError:
            is_armed[0] = False
            assert_out(bench, publisher, identity)
            there = name_of(publisher.in_force, identity)
            out = fitness(there) if there else {}
            for seconds in (1, 2):  # the first one may have to read again
                try:
                    publisher.publish(
                        plan(change.after, publisher.standing, NOW + seconds, out), 2.0
                    )
                except DataplaneError:
                    continue
                break
        assert_out(bench, publisher, identity)
        publisher.close()


@pytest.mark.parametrize("step", AFTER, ids=lambda step: step.name)
def test_a_crash_keeps_who_died_meanwhile_out(bench: Bench, step: Step) -> None:
    """Killed at any step behind the flag: the pinned program sends it nothing, nor the next."""
    for number, (name, change) in enumerate(changes().items()):
        victim = SERVING[(number + AFTER.index(step)) % len(SERVING)]
        if number % 3 != AFTER.index(step) % 3:
            continue
        bench.start(OLD).close()
        identity = OLD.backends[victim].identity

        def driver(
            reached: Callable[[Step], None],
            victim: BackendKey = victim,
            change: Change = change,
        ) -> None:
            own, _ = maps.create_or_adopt(bench.pins, SMALL)
            death = Death(victim, 0)
            publisher = Publisher(own, bench.pins, grace=0, reached=reached, aside=death)
            found = publisher.adopt()
            death.publisher, death.at = publisher, 1
            publisher.publish(plan(change.after, found, NOW + 1), 0.0)

        killed = fork(driver, step)
        publisher = bench.publisher()
        found = publisher.adopt()
        there = name_of(found, identity)
        if killed.steps[step]:
            assert there is None or not found.backends[there].reachable
            assert name == RENAMED or victim.name not in reached_by(bench, publisher)
        publisher.publish(
            plan(change.after, found, NOW + 2, fitness(there) if there else None), 1.0
        )
        assert name == RENAMED or victim.name not in reached_by(bench, publisher)
        assert publisher.audit(deep=True) == []
        publisher.close()


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("at", range(1, 7))
def test_a_flag_beside_an_audit_is_no_difference(bench: Bench, at: int, *, deep: bool) -> None:
    """Set while the maps are read, at any of the readings; what does differ is still found."""
    bench.start(OLD).close()
    death = Death(SERVING[0], 0)
    publisher = publisher_of(bench, death)
    death.looks, death.at = 0, at
    assert publisher.audit(deep=deep) == []
    assert death.looks >= at
    assert_out(bench, publisher, OLD.backends[SERVING[0]].identity)
    other = OLD.backends[SERVING[1]].identity.id
    death.looks = 0
    bpf.map_update(bench.maps["backends"], other.to_bytes(4, "little"), bytes(ENTRY))
    (finding,) = publisher.audit(deep=deep)
    assert (finding.map, finding.key) == ("backends", str(SERVING[1]))
    publisher.close()


def test_a_flag_that_the_kernel_refuses_ends_the_change(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the maps then is read again, and the next attempt goes on from there."""
    bench.start(OLD).close()
    death = Death(SERVING[0], 0)
    publisher = publisher_of(bench, death)
    change = changes()["a backend has another weight"]

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOMEM, "no memory")

    refused: list[bool] = []

    def between() -> None:
        if refused:
            return
        refused.append(True)
        with monkeypatch.context() as patch:
            patch.setattr(publisher.mirror, "write_entries", refuse)
            with pytest.raises(DataplaneError, match="cannot flag"):
                publisher.flag_unhealthy([SERVING[0]])

    monkeypatch.setattr(death, "between", between)
    with pytest.raises(DataplaneError, match="no memory"):
        publisher.publish(plan(change.after, publisher.in_force, NOW + 1), 1.0)
    monkeypatch.undo()
    publisher.publish(plan(change.after, publisher.standing, NOW + 1, fitness(SERVING[0])), 2.0)
    assert_out(bench, publisher, OLD.backends[SERVING[0]].identity)
    publisher.close()
