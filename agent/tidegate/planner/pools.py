# SPDX-License-Identifier: Apache-2.0
"""Plan pools, each by itself: its backends, its table, and when time alone changes them.

What becomes of a pool follows from its documents, from what is in force of it, from what health
makes of its backends, and from the time. So a pool of which nothing of this is another than at its
last plan, and whose next moment has not come, is as it was, and is not looked into.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tidegate import maglev
from tidegate.model.constants import TABLE_SIZE
from tidegate.model.generation import (
    Generation,
    Level,
    PlacedBackend,
    PlacedPool,
    PlannedPool,
    Slots,
)
from tidegate.model.grouped import changed_items
from tidegate.model.values import Backend, BackendKey, ByPool, Desired, Fitness, Pool
from tidegate.planner import levels
from tidegate.planner.backends import place_backends
from tidegate.planner.digest import pool_line, table_digest
from tidegate.planner.effective import Effect, next_change
from tidegate.planner.ids import Allocators
from tidegate.planner.transition import first_table, next_table

_Placed = Mapping[BackendKey, PlacedBackend]


class _Owner(NamedTuple):
    """What a table depends on: a backend that takes new flows, and its weight."""

    name: str
    weight: int
    id: int


class _Inputs(NamedTuple):
    """What one pool is planned from; see `PlannedPool`."""

    name: str
    document: Pool | None
    wanted: Mapping[BackendKey, Backend]
    fitness: Mapping[BackendKey, Fitness] | None
    old: PlacedPool | None
    before: _Placed


def plan_pools(
    desired: Desired,
    previous: Generation,
    now: int,
    fitness: Mapping[BackendKey, Fitness] | None,
    ids: Allocators,
) -> dict[str, PlannedPool]:
    """Return what becomes of each pool, and of backends without one, in the order of names.

    Raises:
        GenerationRefused: ids have run out.
    """
    wanted, before = desired.by_pool, previous.by_pool
    health = None if fitness is None else ByPool.of(fitness)
    names = desired.pools.keys() | wanted.groups.keys() | before.groups.keys()
    planned: dict[str, PlannedPool] = {}
    for name in sorted(names):
        inputs = _Inputs(
            name,
            desired.pools.get(name),
            wanted.group(name),
            None if health is None else health.group(name),
            previous.pools.get(name),
            before.group(name),
        )
        known = previous.planned.get(name)
        if known is None or not _stands(known, inputs, now):
            known = _plan_pool(inputs, previous.number + 1, now, ids)
        planned[name] = known
    return planned


def _stands(known: PlannedPool, inputs: _Inputs, now: int) -> bool:
    """Return whether a pool's last plan still holds."""
    if known.next_change is not None and known.next_change <= now:
        return False
    if known.placed is not inputs.old or known.document is not inputs.document:
        return False
    # Both are empty, or the same object: what is placed is kept as it was planned.
    if known.backends is not inputs.before and (known.backends or inputs.before):
        return False
    # Where health is not known, each backend stays as it was.
    is_fit = inputs.fitness is None or known.fitness == inputs.fitness
    return is_fit and known.wanted == inputs.wanted


def _plan_pool(inputs: _Inputs, number: int, now: int, ids: Allocators) -> PlannedPool:
    found = place_backends(
        inputs.wanted,
        inputs.document,
        inputs.before,
        inputs.old,
        now,
        inputs.fitness,
        ids.backends,
    )
    backends = inputs.before if inputs.before == found else found
    placed = _place(inputs, backends, number, now, ids)
    return PlannedPool(
        inputs.document,
        inputs.wanted,
        inputs.fitness,
        placed,
        backends,
        next_moment(placed, backends),
        any(each.weight > 0 for each in backends.values()),
        pool_line(placed, backends.values()) if placed is not None else "",
    )


def _place(
    inputs: _Inputs, backends: _Placed, number: int, now: int, ids: Allocators
) -> PlacedPool | None:
    """Return a pool with its table; None without a document."""
    old, document = inputs.old, inputs.document
    if document is None:
        return None
    if old is not None and old.digest and _has_same_owners(inputs.before, backends):
        current, digest = old.table.current, old.digest
    else:
        here = _serving(backends)
        current = _table_of(here)
        digest = table_digest(current, [owner.id for owner in here])
    if old is None:
        return PlacedPool(ids.pools.allocate(), document, first_table(current, number), digest)
    table = next_table(
        old.table,
        current,
        number,
        now,
        document.transition_window,
        {each.identity.id for each in backends.values()},
        _out(inputs.before, backends),
    )
    came_from = old.levels if backends is inputs.before else _levels(inputs, old, now)
    fresh = PlacedPool(old.identity, document, table, digest, came_from)
    return old if fresh == old and came_from == old.levels else fresh


def _levels(inputs: _Inputs, old: PlacedPool, now: int) -> tuple[Level, ...]:
    """Return the levels that a pool came down from, when a backend of it has changed."""
    had = (placed.backend for placed in inputs.before.values() if placed.retire_at is None)
    was = levels.serving(had, inputs.document, now)
    return levels.after_change(
        old, was, levels.serving(inputs.wanted.values(), inputs.document, now), now
    )


def next_moment(placed: PlacedPool | None, backends: _Placed) -> int | None:
    """Return the wall-clock second at which time alone changes a pool, or None."""
    moments = [window.closes_at for window in placed.table.windows[1:]] if placed else []
    for each in backends.values():
        if each.retire_at is not None:
            moments.append(each.retire_at)
        times = each.backend.starts_at, each.backend.drain_deadline, each.fitness.joins_at
        if times != (None, None, None):
            last = Effect(each.weight, each.reachable)
            change = next_change(each.backend, placed.pool if placed else None, last, each.fitness)
            moments += [] if change is None else [change]
    return min(moments, default=None)


def _out(*placed: _Placed) -> set[int]:
    """Return the ids of backends that are out in any of these."""
    return {b.identity.id for backends in placed for b in backends.values() if not b.reachable}


def _has_same_owners(before: _Placed, after: _Placed) -> bool:
    """Return whether a table that follows from the one follows from the other."""
    changed = changed_items(before, after)
    return _serving(changed.before) == _serving(changed.after)


def _serving(backends: _Placed) -> list[_Owner]:
    """Return the backends of a pool that take new flows, in the order of their names."""
    return [
        _Owner(key.name, placed.weight, placed.identity.id)
        for key in sorted(backends)
        if (placed := backends[key]).weight > 0
    ]


def _table_of(serving: list[_Owner]) -> Slots:
    """Return a Maglev table of ids."""
    if not serving:
        return np.zeros(TABLE_SIZE, np.uint32)
    ids = np.array([owner.id for owner in serving], np.uint32)
    return ids[maglev.build([(o.name, o.weight) for o in serving], TABLE_SIZE)]


def current_table(backends: _Placed) -> Slots:
    """Return the table that follows from a pool's backends, as ids."""
    return _table_of(_serving(backends))


def confirmed(placed: PlacedPool, backends: _Placed) -> PlacedPool:
    """Return a pool that was read back, with its digest; empty if its table is another one."""
    serving = _serving(backends)
    if not np.array_equal(placed.table.current, current_table(backends)):
        return replace(placed, digest=b"")
    ids = [owner.id for owner in serving]
    return replace(placed, digest=table_digest(placed.table.current, ids))
