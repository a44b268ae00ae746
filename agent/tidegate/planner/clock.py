# SPDX-License-Identifier: Apache-2.0
"""What a step of the wall clock does to a generation: nothing that a packet could tell.

Windows, deregistration delays and the rest of freed ids are lengths of time that began on this
host. They are kept as wall-clock moments, which outlive the agent, so a clock that is put right by
an hour would end them all at once, and with them the flows of draining backends. These moments move
with the clock. Moments that documents name (slow starts, deadlines, expiries) do not: they are what
every host has to agree on.
"""

from collections.abc import Mapping
from dataclasses import replace

from tidegate.model.generation import Freed, FreedIds, Generation, PlacedPool, Window


def after_step(generation: Generation, seconds: int) -> Generation:
    """The generation with its own moments moved by a step of the clock.

    It has the next number if it has any windows or draining backends, for their tables and records
    have to be written anew.
    """
    number = generation.number + 1
    pools = {name: _pool(placed, seconds, number) for name, placed in generation.pools.items()}
    backends = {
        key: placed
        if placed.retire_at is None
        else replace(placed, retire_at=placed.retire_at + seconds)
        for key, placed in generation.backends.items()
    }
    freed = generation.freed
    same = pools == generation.pools and backends == generation.backends
    return replace(
        generation,
        number=generation.number if same else number,
        pools=pools,
        backends=backends,
        freed=FreedIds(
            _freed(freed.vips, seconds),
            _freed(freed.pools, seconds),
            _freed(freed.backends, seconds),
        ),
    )


def _pool(placed: PlacedPool, seconds: int, number: int) -> PlacedPool:
    closed, *windows = placed.table.windows
    if not windows:
        return placed
    moved = (closed, *(Window(each.opened, each.closes_at + seconds) for each in windows))
    return replace(placed, table=replace(placed.table, generation=number, windows=moved))


def _freed(freed: Mapping[int, Freed], seconds: int) -> dict[int, Freed]:
    return {id_: last._replace(at=last.at + seconds) for id_, last in freed.items()}
