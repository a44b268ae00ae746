# SPDX-License-Identifier: Apache-2.0
"""Allocate ids: a freed id rests before it is used again. `inheritance` says who keeps which.

The rest is a precaution and not what safety stands on: each use of an id has the next incarnation,
by which entries, marks and fragments of an earlier use are told apart, keys of flows have the VIP's
in them, backends name their pool, and the sweep empties what is of nobody within a minute. So when
all ids are taken or resting, the one that has rested longest is used: names that come and go by
thousands must not hold up a change, which may be the one that takes a dead backend out.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Final, NamedTuple

from tidegate.errors import GenerationRefused
from tidegate.model.constants import ID_COOLDOWN_SECONDS, MAX_BACKENDS, MAX_POOLS, MAX_VIPS
from tidegate.model.generation import (
    Freed,
    FreedIds,
    Generation,
    Identity,
    PlacedBackend,
    PlacedPool,
    PlacedVip,
)
from tidegate.model.values import BackendKey

FIRST: Final = 1
"""Id 0 is never allocated: in a table it means that the slot has no owner."""


class Allocator:
    """Allocates ids of one kind, lowest free id first.

    An id is free if nobody has it and it was never used, or was freed longer ago than the cooldown.
    Where there is none, the one that was freed first is.
    """

    def __init__(
        self,
        kind: str,
        taken: Iterable[int],
        freed: Mapping[int, Freed],
        limit: int,
        now: int,
    ) -> None:
        self._kind = kind
        self._in_use = taken
        self._reserved: set[int] = set()
        self._freed = freed
        self._limit = limit
        self._now = now
        self._next = FIRST
        self._longest_first = self._by_rest()

    def _by_rest(self) -> Iterator[int]:
        """Yield the freed ids, the one that was freed first at first; sorted when it is asked."""
        yield from sorted(
            (id_ for id_ in self._freed if FIRST <= id_ < self._limit),
            key=lambda id_: (self._freed[id_].at, id_),
        )

    @cached_property
    def _taken(self) -> set[int]:
        """The ids that are not free; nearly no change asks for one."""
        return {*self._in_use, *self._reserved}

    def reserve(self, ids: Iterable[int]) -> None:
        """Give these ids to nobody: who had them comes back. Before any is allocated."""
        self._reserved.update(ids)

    def allocate(self) -> Identity:
        """Return the next free id.

        Raises:
            GenerationRefused: all ids are taken.
        """
        for candidate in range(self._next, self._limit):
            last = self._freed.get(candidate)
            resting = last is not None and self._now < last.at + ID_COOLDOWN_SECONDS
            if candidate in self._taken or resting:
                continue
            self._next = candidate + 1
            return self._use(candidate)
        self._next = self._limit
        longest = next((id_ for id_ in self._longest_first if id_ not in self._taken), None)
        if longest is None:
            raise GenerationRefused(f"no free {self._kind} id: all {self._limit - 1} are taken")
        return self._use(longest)

    def _use(self, id_: int) -> Identity:
        self._taken.add(id_)
        last = self._freed.get(id_)
        return Identity(id_, last.incarnation + 1 if last else 1)


def resting(freed: FreedIds, now: int) -> dict[str, int]:
    """Count the ids that rest at this wall-clock second, by the table that they are of."""
    kinds = {"vips": freed.vips, "pools": freed.pools, "backends": freed.backends}
    return {
        kind: sum(now < last.at + ID_COOLDOWN_SECONDS for last in ids.values())
        for kind, ids in kinds.items()
    }


class Allocators(NamedTuple):
    """The allocators of a next generation, by kind."""

    vips: Allocator
    pools: Allocator
    backends: Allocator


def allocators(previous: Generation, now: int) -> Allocators:
    """Return allocators of the ids that `previous` does not use and no cooldown holds.

    Args:
        previous: the generation in force.
        now: wall clock, s.
    """
    freed = previous.freed
    return Allocators(
        vips=Allocator("VIP", _taken(previous.vips), freed.vips, MAX_VIPS, now),
        pools=Allocator("pool", _taken(previous.pools), freed.pools, MAX_POOLS, now),
        backends=Allocator("backend", _taken(previous.backends), freed.backends, MAX_BACKENDS, now),
    )


def _taken(
    placed: Mapping[str, PlacedVip] | Mapping[str, PlacedPool] | Mapping[BackendKey, PlacedBackend],
) -> Iterator[int]:
    """Return the ids in use, which nobody counts unless one is allocated."""
    return (each.identity.id for each in placed.values())
