# SPDX-License-Identifier: Apache-2.0
"""Compare a generation with the one before: names, and slots that a person can check."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from tidegate import maglev
from tidegate.model.constants import TABLE_SIZE
from tidegate.model.generation import Generation, PlacedBackend
from tidegate.model.values import BackendKey, ByPool

_Name = TypeVar("_Name", str, BackendKey)


class Names(NamedTuple):
    """What came, went and changed of one kind, in order. Backends are named `pool/backend`."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"+{len(self.added)}-{len(self.removed)}~{len(self.changed)}"


class Move(NamedTuple):
    """How far one table moved, in slots."""

    moved: int
    """Slots whose owner changed."""
    minimum: int
    """The least that any table with the new shares has to move."""
    bound: int
    """The most that Maglev moves for such a change (docs/maglev.md)."""


_NONE: Final = Names()
_LOGGED: Final = 10
"""Tables in a line of the log: one change may move all of a thousand pools."""


@dataclass(frozen=True)
class Diff:
    """All differences of two generations, except fallbacks and windows.

    Attributes:
        pools: names whose documents differ; `moves` has the tables.
        backends: those with a key. One whose key was deleted is removed, though it still drains.
        retired: backends whose drain has ended, so that they are gone.
        moves: by pool, where slots moved.
    """

    vips: Names = _NONE
    pools: Names = _NONE
    backends: Names = _NONE
    retired: tuple[str, ...] = ()
    moves: Mapping[str, Move] = field(default_factory=dict)

    def log_fields(self) -> dict[str, str | int]:
        """Return the fields of a log line; of many tables, those that moved the most."""
        most = sorted(self.moves.items(), key=lambda item: (-item[1].moved, item[0]))[:_LOGGED]
        moved = [
            f"{pool}:{move.moved}/{TABLE_SIZE}(min {move.minimum}, bound {move.bound})"
            for pool, move in sorted(most)
        ]
        if len(self.moves) > _LOGGED:
            moved.append(f"and {len(self.moves) - _LOGGED} more")
        return {
            "vips": str(self.vips),
            "pools": str(self.pools),
            "backends": str(self.backends),
            "retired": len(self.retired),
            "moved": ",".join(moved),
        }


def difference(before: Generation, after: Generation) -> Diff:
    """Compare two generations."""
    changed = [
        name
        for name, placed in after.pools.items()
        if name in before.pools and before.pools[name].table.current is not placed.table.current
    ]
    moves = {name: _move(before, after, name) for name in changed}
    backends, retired = _backends(before.by_pool, after.by_pool)
    return Diff(
        vips=_names(before.vips, after.vips),
        pools=_names(
            {name: placed.pool for name, placed in before.pools.items()},
            {name: placed.pool for name, placed in after.pools.items()},
        ),
        backends=backends,
        retired=retired,
        moves={name: move for name, move in moves.items() if move.moved},
    )


def _backends(
    before: ByPool[PlacedBackend], after: ByPool[PlacedBackend]
) -> tuple[Names, tuple[str, ...]]:
    """Return how backends with a key differ, and which have retired; of pools that differ."""
    had: dict[BackendKey, PlacedBackend] = {}
    has: dict[BackendKey, PlacedBackend] = {}
    retired: list[BackendKey] = []
    for name in after.differing(before):
        was, now = before.group(name), after.group(name)
        had |= _with_a_key(was)
        has |= _with_a_key(now)
        living = {placed.identity for placed in now.values()}
        retired += (
            key
            for key, placed in was.items()
            if key not in now and placed.retire_at and placed.identity not in living
        )
    return _names(had, has), tuple(map(str, sorted(retired)))


def _with_a_key(placed: Mapping[BackendKey, PlacedBackend]) -> dict[BackendKey, PlacedBackend]:
    return {key: each for key, each in placed.items() if each.retire_at is None}


def _names(before: Mapping[_Name, object], after: Mapping[_Name, object]) -> Names:
    changed = [
        key
        for key, old in before.items()
        if (new := after.get(key)) is not None and new is not old and new != old
    ]
    return Names(
        tuple(map(str, sorted(after.keys() - before.keys()))),
        tuple(map(str, sorted(before.keys() - after.keys()))),
        tuple(map(str, sorted(changed))),
    )


def _move(before: Generation, after: Generation, pool: str) -> Move:
    was, now = before.pools[pool], after.pools[pool]
    had, has = before.by_pool.group(pool), after.by_pool.group(pool)
    old = {placed.identity.id: (key, placed.weight) for key, placed in had.items()}
    new = {placed.identity.id: (key, placed.weight) for key, placed in has.items()}
    # Another name has another permutation, so all turns of a renamed backend are at other times.
    reweighted = {id_ for id_ in old.keys() & new.keys() if old[id_] != new[id_]}
    tables = was.table.current, now.table.current
    moved, minimum, bound = maglev.disruption(*tables, reweighted)
    if not was.digest:
        bound = TABLE_SIZE  # not built for its backends, as after a crash: it may move to anything
    elif moved > bound:
        names = {id_: key.name for id_, (key, _) in (old | new).items()}
        bound = min(TABLE_SIZE, bound + maglev.exchangeable(*tables, names))
    return Move(moved, minimum, bound)
