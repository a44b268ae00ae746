# SPDX-License-Identifier: Apache-2.0
"""A plan that leaves out what did not change is the one that looks at everything.

Histories in which most pools stay as they are, as documents arrive: what did not change is the same
object. Beside each plan stands one from copies, which has nothing to leave out.
"""

import copy
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from support.documents.roster import backend, vip
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Backend, BackendKey, ByPool, Desired, Fitness, Pool, Vip
from tidegate.planner import after_step, guards, next_moment, plan
from tidegate.planner.diff import difference

START, STEPS, POOLS = 1_000_000, 25, ("a", "b", "c", "d")


class Documents:
    """Documents that change a little at a time."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.pools: dict[str, Pool] = {}
        self.backends: ByPool[Backend] = ByPool()
        self.vips: dict[str, Vip] = {}
        self.fitness: dict[BackendKey, Fitness] | None = None
        for name in POOLS:
            self._write_pool(name)
            self._write_backends(name, START)

    def _write_pool(self, name: str) -> None:
        rng = self._rng
        delay, window = rng.choice([0, 3, 60]), rng.choice([0, 4, 60])
        self.pools[name] = Pool(name, delay, window, slow_start=rng.choice([0, 0, 20]))
        self.vips[name] = vip(
            name, f"10.99.0.{ord(name)}", pool=name, sorry_pool=rng.choice([None, *POOLS])
        )
        if self.vips[name].sorry_pool == name:
            del self.vips[name]

    def _write_backends(self, pool: str, now: int) -> None:
        rng, found = self._rng, dict(self.backends.group(pool))
        for number in rng.sample(range(1, 7), 2):
            key = BackendKey(pool, f"b{number}")
            if rng.random() < 0.3:
                found.pop(key, None)
                continue
            options: dict[str, Any] = {"weight": rng.choice([0, 1, 100, 300])}
            if rng.random() < 0.3:
                options["starts_at"] = now + rng.randint(-5, 30)
            state = rng.choice(["active", "active", "active", "drain", "quarantine"])
            if state == "drain" and rng.random() < 0.5:
                options["drain_deadline"] = now + rng.randint(-5, 30)
            address = f"10.1.{ord(pool)}.{rng.randint(1, 8)}"
            if all(b.address.exploded != address for k, b in found.items() if k != key):
                found[key] = backend(key.name, address, pool=pool, state=state, **options)
        self.backends = self.backends.replaced({pool: found})

    def change(self, now: int) -> None:
        """Change one or two pools, what health makes of a backend, or nothing."""
        rng = self._rng
        for pool in rng.sample(POOLS, rng.choice([0, 0, 1, 1, 2])):
            if rng.random() < 0.2 and pool in self.pools:
                del self.pools[pool]
                self.vips = {n: v for n, v in self.vips.items() if pool not in v.pools}
                self.backends = self.backends.replaced({pool: {}})
                continue
            if rng.random() < 0.3 or pool not in self.pools:
                self._write_pool(pool)
            self._write_backends(pool, now)
        if rng.random() < 0.3:
            keys = rng.sample(sorted(self.backends), min(2, len(self.backends)))
            out = {key: Fitness(is_out=rng.random() < 0.6, joins_at=now + 2) for key in keys}
            self.fitness = rng.choice([None, {**(self.fitness or {}), **out}])

    def desired(self) -> Desired:
        """Return what is wanted now."""
        known = {name: v for name, v in self.vips.items() if set(v.pools) <= self.pools.keys()}
        return Desired(1, known, dict(self.pools), self.backends)


def copied(generation: Generation) -> Generation:
    """Return a generation that shares no object with another, and knows of no plan."""
    return replace(copy.deepcopy(generation), planned={})


def same(one: Generation, other: Generation) -> bool:
    """Return whether two generations are equal in all that a packet meets, and the digest."""
    tables = all(
        np.array_equal(getattr(placed.table, name), getattr(other.pools[pool].table, name))
        for pool, placed in one.pools.items()
        for name in ("current", "fallback", "window", "tracked")
    )
    return tables and (
        (one.number, one.digest, one.vips, one.backends, one.freed)
        == (other.number, other.digest, other.vips, other.backends, other.freed)
        and [(n, p.identity, p.pool, p.digest, p.levels) for n, p in one.pools.items()]
        == [(n, p.identity, p.pool, p.digest, p.levels) for n, p in other.pools.items()]
        and [p.table.windows for p in one.pools.values()]
        == [p.table.windows for p in other.pools.values()]
    )


def history(seed: int) -> Iterator[tuple[Desired, Generation, Generation, int, Any]]:
    """Yield what each plan is made of, and the plan."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    documents, previous, now = Documents(rng), NOTHING, START
    for _ in range(STEPS):
        documents.change(now)
        desired = documents.desired()
        following = plan(desired, previous, now, documents.fitness)
        yield desired, previous, following, now, documents.fitness
        previous = after_step(following, 7) if rng.random() < 0.1 else following
        now += rng.choice([0, 1, 3, 20, 61])


@pytest.mark.parametrize("seed", range(8))
def test_plans_leave_out_only_what_stays(seed: int) -> None:
    """A plan, its next moment, its difference and its refusals are those of unrelated copies."""
    for desired, previous, following, now, fitness in history(seed):
        before, wanted = copied(previous), copy.deepcopy(desired)
        fresh = plan(wanted, before, now, copy.deepcopy(fitness))
        assert same(following, fresh)
        assert next_moment(following) == next_moment(copied(following))
        assert difference(previous, following) == difference(before, fresh)
        limits = guards.Limits()
        assert guards.refusals(desired, following, limits, (), now) == guards.refusals(
            wanted, copied(following), limits, (), now
        )


def test_a_pool_that_stays_is_not_planned() -> None:
    """One pool changes: the others' plans are taken over, until the moment of each comes."""
    documents = Desired(
        1,
        {},
        {name: Pool(name, 60, 300) for name in POOLS},
        ByPool({k: b for pool in POOLS for k, b in _servers(pool, 100).items()}),
    )
    first = plan(documents, NOTHING, START)
    backends = documents.by_pool.replaced({"a": _servers("a", 50)})
    second = plan(replace(documents, backends=backends), first, START + 1)
    assert _planned_anew(first, second) == {"a"}
    backends = backends.replaced({"b": _servers("b", 50)})
    third = plan(replace(documents, backends=backends), second, START + 2)
    assert _planned_anew(second, third) == {"b"}
    closed = plan(replace(documents, backends=backends), third, START + 301)
    assert _planned_anew(third, closed) == {"a"}


def _servers(pool: str, weight: int) -> dict[BackendKey, Backend]:
    servers = backend("b1", pool=pool, weight=weight), backend("b2", pool=pool)
    return {server.key: server for server in servers}


def _planned_anew(before: Generation, after: Generation) -> set[str]:
    return {name for name, each in after.planned.items() if each is not before.planned.get(name)}
