# SPDX-License-Identifier: Apache-2.0
"""From lines to what was in force: the ledger after each line, generations, tables with windows.

Nothing is guessed: documents, ids and weights come from the records, current tables from the
planner's own construction, and transition windows by the planner's own steps, from the moments at
which each generation was planned. What a file cannot know, since it lies before its first line (a
window that was open then), is said to be unknown.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.agent.journal.line_format import (
    BaseLine,
    GenerationLine,
    Line,
    OrderLine,
    RefusalLine,
    places,
)
from tidegate.dataplane.publish import ledger
from tidegate.dataplane.publish.ledger import BackendRecord, Kind, Place, PoolRecord, Record
from tidegate.model.constants import TABLE_SIZE
from tidegate.model.generation import Generation, PlacedPool, Slots, Table, Window
from tidegate.model.values import Desired
from tidegate.planner import confirm, current_table
from tidegate.planner.transition import first_table, next_table


class Standing(NamedTuple):
    """A line that changed what is in force, and the ledger since then."""

    line: BaseLine | GenerationLine
    records: Mapping[Place, Record]


def standings(lines: Iterable[Line]) -> Iterator[Standing]:
    """Yield what was in force after each line that changed it; a base replaces all."""
    records: dict[Place, Record] = {}
    for line in lines:
        match line:
            case BaseLine():
                records = places(line.records)
            case GenerationLine():
                gone = {Place(Kind(kind), id_) for kind, id_ in line.removed}
                kept = {place: r for place, r in records.items() if place not in gone}
                records = kept | places(line.changed)
            case RefusalLine() | OrderLine():
                continue
        yield Standing(line, records)


def desired(standing: Standing, hash_seed: str | None) -> Desired:
    """Return the documents that a generation was made of."""
    found = ledger.contents(standing.records)
    return Desired(
        revision=standing.line.revision,
        vips={name: placed.vip for name, placed in found.vips.items()},
        pools={name: pool for name, (_, pool) in found.pools.items()},
        backends={k: p.backend for k, p in found.backends.items() if p.retire_at is None},
        hash_seed=hash_seed,
        release=standing.line.release,
    )


@dataclass(frozen=True)
class PoolTable:
    """A pool's table as it was.

    Attributes:
        unknown_until: int64[TABLE_SIZE], wall-clock second until which a slot may be in a window
            that opened before the journal begins, so that its fallback is not known.
    """

    table: Table
    unknown_until: npt.NDArray[np.int64]


def pool_table(history: Iterable[Standing], pool: str) -> PoolTable | None:
    """Return a pool's table after the last of these; None if it has no table.

    Args:
        history: consecutive standings, the oldest first.
        pool: its name.
    """
    found: PoolTable | None = None
    serving: object = None
    current: Slots | None = None
    number: int | None = None
    for line, records in history:
        continues = isinstance(line, GenerationLine) or line.number == number
        number = line.number
        mine = {place: r for place, r in records.items() if _is_of(r, pool)}
        contents = ledger.contents(mine)
        if pool not in contents.pools:
            found = current = serving = None
            continue
        here = {key: (placed.weight, placed.identity) for key, placed in contents.backends.items()}
        if current is None or here != serving:
            current, serving = current_table(contents.backends), here
        if found is None or not continues:
            found = _first(line, pool, current)
        elif isinstance(line, GenerationLine):
            living = {place.id for place, r in records.items() if isinstance(r, BackendRecord)}
            seconds = contents.pools[pool][1].transition_window
            found = _next(found, line, current, seconds, living)
    return found


def _is_of(record: Record, pool: str) -> bool:
    match record:
        case PoolRecord(name=name) | BackendRecord(pool=name):
            return name == pool
    return False


def _first(line: BaseLine | GenerationLine, pool: str, current: Slots) -> PoolTable:
    """Return the table of a pool that is new, or whose past is not in the journal."""
    until = line.open_until.get(pool, 0) if isinstance(line, BaseLine) else 0
    return PoolTable(first_table(current, line.number), np.full(len(current), until, np.int64))


def _next(
    before: PoolTable, line: GenerationLine, current: Slots, seconds: int, living: set[int]
) -> PoolTable:
    was, until = _after_step(before.table, line.stepped), before.unknown_until + line.stepped
    table = next_table(was, current, line.number, line.now, seconds, living)
    # A slot that changes in a window of unknown beginning prolongs it.
    prolonged = (current != before.table.current) & (until > line.now)
    return PoolTable(table, np.where(prolonged, np.maximum(until, line.now + seconds), until))


def _after_step(table: Table, seconds: int) -> Table:
    """Return the table with its windows moved as the planner does when the clock is stepped."""
    closed, *open_ = table.windows
    moved = tuple(Window(each.opened, each.closes_at + seconds) for each in open_)
    return replace(table, windows=(closed, *moved)) if seconds else table


class Rebuilt(NamedTuple):
    """A generation that was made again.

    Attributes:
        unknown_until: by pool, see PoolTable.
    """

    at: str
    generation: Generation
    unknown_until: Mapping[str, npt.NDArray[np.int64]]


def rebuild(
    history: Callable[[], Iterable[Standing]],
    hash_seed: str | None,
    pools: Container[str] | None = None,
) -> Rebuilt | None:
    """Return the last generation of a history; None if the history is empty.

    Args:
        history: gives it anew each time, the oldest first.
        hash_seed: key of the flow hash then.
        pools: whose tables are made; those of others are empty. None makes all, which takes longer.
    """
    last: Standing | None = None
    for standing in history():
        last = standing
    if last is None:
        return None
    line, records = last
    found = ledger.contents(records)
    placed: dict[str, PlacedPool] = {}
    unknown: dict[str, npt.NDArray[np.int64]] = {}
    nobody = first_table(np.zeros(TABLE_SIZE, np.uint32), line.number)
    for name, (identity, pool) in found.pools.items():
        wanted = pools is None or name in pools
        there = pool_table(history(), name) if wanted else None
        placed[name] = PlacedPool(identity, pool, there.table if there else nobody, b"")
        if there is not None:
            unknown[name] = there.unknown_until
    generation = Generation(
        number=line.number,
        revision=line.revision,
        digest=line.digest,
        vips=found.vips,
        pools=placed,
        backends=found.backends,
        freed=found.freed,
        hash_seed=hash_seed,
        release=line.release,
    )
    return Rebuilt(line.at, confirm(generation) if pools is None else generation, unknown)
