# SPDX-License-Identifier: Apache-2.0
"""Kill -9 at every step of publishing: nothing breaks, and the next start converges.

For each step, every kind of change that reaches it is published by a process that kills itself
there; then by a second one that is killed at the same step, if its own work reaches it; then by one
that may finish. After each death and after each adoption packets run through the program that is
pinned, and at the end the kernel holds what it holds when nobody dies.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import NamedTuple

import numpy as np
import pytest

from support.crash.bench import (
    SMALL,
    Bench,
    Packets,
    contents,
    everything,
    fork,
    number,
    open_maps,
    wait_gone,
)
from support.documents.roster import backend, generations, vip
from tidegate.dataplane.kernel import maps
from tidegate.dataplane.publish import tables
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.dataplane.publish.steps import Step
from tidegate.model.generation import NOTHING, Generation, PlacedBackend
from tidegate.model.values import BackendKey, Desired
from tidegate.planner import plan

pytestmark = pytest.mark.root

NOW = 1_700_000_000
OF_PROGRAMS = {s for s in Step if s.name.startswith(("PROGRAM_", "TAKEOVER_"))}


class Change(NamedTuple):
    """From one roster to another, some seconds later."""

    after: Desired
    seconds: int = 1


def _with_backend(name: str, pool: str = "web", **fields: object) -> Desired:
    key, roster = BackendKey(pool, name), everything()
    changed = replace(roster.backends[key], **fields)  # type: ignore[arg-type]
    return replace(roster, backends=roster.backends | {key: changed})


def _without(roster: Desired, *keys: BackendKey) -> Desired:
    left = {key: b for key, b in roster.backends.items() if key not in keys}
    return replace(roster, backends=left)


def _with_vips(**vips: object) -> Desired:
    roster = everything()
    kept = {name: v for name, v in (roster.vips | vips).items() if v is not None}
    return replace(roster, vips=kept)  # type: ignore[arg-type]


def _pool_removed() -> Desired:
    roster = _with_vips(quic=None, api=vip("api", "192.0.2.2"))
    keys = [key for key in roster.backends if key.pool == "api"]
    web = {name: pool for name, pool in roster.pools.items() if name == "web"}
    return replace(_without(roster, *keys), pools=web)


def _exchanged() -> Desired:
    """Two backends have each other's address, and a third one has another name."""
    roster = everything()
    b1, b2, b3 = (roster.backends[BackendKey("web", name)] for name in ("b1", "b2", "b3"))
    left = _without(roster, b3.key).backends
    changed = [
        replace(b1, address=b2.address),
        replace(b2, address=b1.address),
        replace(b3, name="b9"),
    ]
    return replace(roster, backends=left | {each.key: each for each in changed})


def _emptied() -> Desired:
    """Everybody in the pool api is disabled, and its VIPs have another one."""
    roster = _with_vips(api=vip("api", "192.0.2.2"), quic=None)
    gone = {
        key: replace(each, state="disabled") if key.pool == "api" else each
        for key, each in roster.backends.items()
    }
    return replace(roster, backends=gone)


def changes() -> dict[str, Change]:
    """Return every kind of change, from the same roster."""
    server = backend("b5", "203.0.113.5")
    added = replace(everything(), backends=everything().backends | {server.key: server})
    gone = _without(everything(), BackendKey("web", "b4"), BackendKey("api", "a3"))
    return {
        "a backend is added": Change(added),
        "backends are removed": Change(gone),
        "a backend is disabled": Change(_with_backend("b4", state="disabled")),
        "a backend has another address": Change(
            _with_backend("b2", address=ip_address("203.0.113.99"))
        ),
        "a backend has another weight": Change(_with_backend("b1", weight=10)),
        "a backend has another QUIC id": Change(
            _with_backend("a1", "api", quic_server_id=b"\x07\x07")
        ),
        "a VIP has another pool": Change(_with_vips(api=vip("api", "192.0.2.2"))),
        "a VIP has another address": Change(_with_vips(api=vip("api", "192.0.2.9", pool="api"))),
        "a VIP becomes a network": Change(
            _with_vips(api=vip("api", "192.0.2.0/29", pool="api"), net=None)
        ),
        "VIPs are added": Change(
            _with_vips(new=vip("new", "192.0.2.7"), any=vip("any", "192.0.2.8", 0, pool="api"))
        ),
        "VIPs are removed": Change(_with_vips(api=None, net=None)),
        "a pool is removed": Change(_pool_removed()),
        "backends have changed names": Change(_exchanged()),
        "VIPs have changed names": Change(
            _with_vips(
                api=vip("api", "192.0.2.1", 53, "udp"), dns=vip("dns", "192.0.2.2", pool="api")
            )
        ),
        "a pool is emptied, and its VIP leaves": Change(_emptied()),
        "a pool is added": Change(
            replace(
                _with_vips(api=vip("api", "192.0.2.2", pool="more")),
                pools=everything().pools
                | {"more": replace(everything().pools["web"], name="more")},
                backends=everything().backends
                | {BackendKey("more", "m1"): backend("m1", "203.0.113.77", pool="more")},
            )
        ),
    }


OLD = generations(everything(), now=NOW)[-1]
ENDS: dict[str, tuple[Counter[Step], dict[str, object]]] = {}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    built = Bench()
    yield built
    built.close()


def go_on(bench: Bench, change: Change, reached: object) -> None:
    """What an agent does after its start: adopt, plan, publish, free."""
    own, _ = maps.create_or_adopt(bench.pins, SMALL)
    publisher = Publisher(own, bench.pins, grace=0, reached=reached)  # type: ignore[arg-type]
    found = publisher.adopt()
    publisher.publish(plan(change.after, found, NOW + change.seconds), 0.0)
    publisher.reap(1.0)
    publisher.close()
    own.close()


def undisturbed(bench: Bench, name: str, change: Change) -> tuple[Counter[Step], dict[str, object]]:
    """Return the steps that a change reaches, and what the kernel holds when nobody dies."""
    if name not in ENDS:
        bench.start(OLD).close()
        steps = fork(lambda reached: go_on(bench, change, reached), None).steps
        ENDS[name] = steps, contents(bench.maps, bench.pins)
    return ENDS[name]


class Case:
    """One change, the flows that were open before it, and what may be seen on the way."""

    def __init__(self, bench: Bench, change: Change) -> None:
        self.bench, self.change = bench, change
        self.old = OLD
        bench.start(OLD).close()
        self.new = plan(change.after, self.old, NOW + change.seconds)
        self.packets = Packets(bench.program, self.old, self.new)
        both = self.old.vips.keys() & self.new.vips.keys()
        self.lasting = {
            name: self.old.vips[name].vip
            for name in both
            if self.old.vips[name].identity == self.new.vips[name].identity
        }
        self.flows = self.packets.establish(self.lasting)
        self.tables = {name: self.packets.table(v) for name, v in self.lasting.items()}
        self.seen: list[dict[str, list[str | None]]] = []
        self.usable = {key.name for key, p in self.new.backends.items() if _is_usable(p)} & {
            key.name for key, p in self.old.backends.items() if _is_usable(p)
        }

    def look(self) -> None:
        """No flow has moved off a backend that serves; new flows are looked at for later."""
        now = self.packets.established(self.lasting)
        for place, name in self.flows.items():
            assert now[place] is not None, place
            assert name not in self.usable or now[place] == name, place
        self.seen.append({name: self.packets.table(v) for name, v in self.lasting.items()})

    def judge(self) -> None:
        """Each VIP was wholly on its old or its new table, whenever it was looked at."""
        new = {name: self.packets.table(v) for name, v in self.lasting.items()}
        for seen in self.seen:
            for name, owners in seen.items():
                assert _is_like(owners, self.tables[name], self.usable) or owners == new[name], name


def _is_usable(placed: PlacedBackend) -> bool:
    return placed.backend.state not in ("quarantine", "disabled")


def _is_like(owners: list[str | None], table: list[str | None], usable: set[str]) -> bool:
    """Equal, but for slots whose owner is quarantined: that is in force before any table is."""
    pairs = zip(owners, table, strict=True)
    return all(now == then or (then not in usable and now in usable) for now, then in pairs)


@pytest.mark.parametrize("step", [s for s in Step if s not in OF_PROGRAMS], ids=lambda s: s.name)
def test_a_crash_moves_nothing_and_the_next_start_converges(bench: Bench, step: Step) -> None:
    """At this step, its first and its last time, for several kinds of change that reach it."""
    ends = {name: undisturbed(bench, name, change) for name, change in changes().items()}
    reaching = [name for name, (steps, _) in ends.items() if steps[step]]
    assert reaching
    first = list(Step).index(step)  # each step has other ones of those that all steps share
    for name in [reaching[(first + i) % len(reaching)] for i in range(min(4, len(reaching)))]:
        steps, end = ends[name]
        for hit in sorted({1, steps[step]}):
            die_and_recover(bench, Case(bench, changes()[name]), step, hit, end)


def die_and_recover(bench: Bench, case: Case, step: Step, hit: int, end: dict[str, object]) -> None:
    """Kill at the step, look, recover with another death, look, and compare the ends."""

    def driver(reached: Callable[[Step], None]) -> None:
        go_on(bench, case.change, reached)

    first = fork(driver, step, hit)
    assert first.steps[step] == hit
    case.look()
    after_first = number(bench.maps, bench.pins)
    case.look()
    assert after_first in (case.old.number, case.new.number)
    second = fork(driver, step)
    case.look()
    assert fork(driver, None).steps[step] >= 0
    case.look()
    case.judge()
    there = contents(bench.maps, bench.pins)
    for what, wanted in end.items():
        assert there[what] == wanted, what
    assert number(bench.maps, bench.pins) >= max(after_first, case.new.number)
    assert_as_fresh(bench, case.change.after)
    assert wait_gone((first.map_ids | second.map_ids) - in_use(bench)) == set()


def in_use(bench: Bench) -> set[int]:
    """Ids of the maps that are pinned or that a slot points to, and those of this process."""
    return open_maps() | set(tables.slots(bench.maps["outer"]).values())


def assert_as_fresh(bench: Bench, wanted: Desired) -> None:
    """By name, the kernel has the VIPs, backends and tables of an agent without a history."""
    publisher = bench.publisher()
    found, fresh = publisher.adopt(), plan(wanted, NOTHING, NOW)
    publisher.close()
    assert found.digest == fresh.digest
    assert {n: p.vip for n, p in found.vips.items()} == {n: p.vip for n, p in fresh.vips.items()}
    assert {k: p.backend for k, p in found.backends.items() if p.retire_at is None} == {
        k: p.backend for k, p in fresh.backends.items()
    }
    for name, placed in fresh.pools.items():
        assert np.array_equal(_owners(found, name), _owners(fresh, name))
        assert found.pools[name].pool == placed.pool


def _owners(generation: Generation, pool: str) -> np.ndarray:
    """Names of the owners of a pool's slots."""
    names = np.zeros(512, "U8")
    for key, placed in generation.backends.items():
        names[placed.identity.id] = key.name
    return names[generation.pools[pool].table.current]
