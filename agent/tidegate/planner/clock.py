# SPDX-License-Identifier: Apache-2.0
"""Adjust a generation to a step of the wall clock, so that no packet is treated differently.

Windows, deregistration delays, cooldowns of freed ids, and the times to which guards look back are
lengths of time that began on this host. They are kept as wall-clock moments, which outlive the
agent, so a clock that is set right by an hour would end them all at once, and with them the flows
of draining backends. These moments move with the clock. Moments that documents name (slow starts,
deadlines, expiries) do not: they are what every host has to agree on.
"""

from collections.abc import Mapping
from dataclasses import replace

from tidegate.model.generation import Freed, FreedIds, Generation, Level, PlacedPool, Window
from tidegate.model.values import BackendKey


def after_step(generation: Generation, seconds: int, last: Generation | None = None) -> Generation:
    """Return the generation with its own moments shifted by a step of the clock.

    It has the next number if it has any windows, draining backends or levels of pools, for their
    tables and records have to be written anew.

    Args:
        generation: what is in force.
        seconds: how far the clock was stepped.
        last: what was in force before an attempt that failed half way, if this is what it left.
            What the attempt wrote is shifted already; the rest is shifted now.
    """
    number = generation.number + 1
    was = generation if last is None else last
    pools = {
        name: _pool(placed, seconds, number) if _is_table_of(was, name, placed) else placed
        for name, placed in generation.pools.items()
    }
    backends = {
        key: replace(placed, retire_at=placed.retire_at + seconds)
        if placed.retire_at is not None and _retires(was, key) == placed.retire_at
        else placed
        for key, placed in generation.backends.items()
    }
    freed, old = generation.freed, was.freed
    same = pools == generation.pools and backends == generation.backends
    same &= all(placed.levels == pools[name].levels for name, placed in generation.pools.items())
    return replace(
        generation,
        number=generation.number if same else number,
        pools=pools,
        backends=backends,
        freed=FreedIds(
            _freed(freed.vips, old.vips, seconds),
            _freed(freed.pools, old.pools, seconds),
            _freed(freed.backends, old.backends, seconds),
        ),
    )


def _pool(placed: PlacedPool, seconds: int, number: int) -> PlacedPool:
    closed, *windows = placed.table.windows
    levels = tuple(Level(each.until + seconds, each.serving) for each in placed.levels)
    if not windows:
        return replace(placed, levels=levels) if levels else placed
    moved = (closed, *(Window(each.opened, each.closes_at + seconds) for each in windows))
    table = replace(placed.table, generation=number, windows=moved)
    return replace(placed, table=table, levels=levels)


def _is_table_of(was: Generation, pool: str, placed: PlacedPool) -> bool:
    before = was.pools.get(pool)
    return before is not None and before.table.generation == placed.table.generation


def _retires(was: Generation, key: BackendKey) -> int | None:
    before = was.backends.get(key)
    return before.retire_at if before else None


def _freed(freed: Mapping[int, Freed], was: Mapping[int, Freed], seconds: int) -> dict[int, Freed]:
    return {
        id_: rest._replace(at=rest.at + seconds) if was.get(id_) == rest else rest
        for id_, rest in freed.items()
    }
