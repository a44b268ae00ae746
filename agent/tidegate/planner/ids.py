# SPDX-License-Identifier: Apache-2.0
"""Allocate ids: a freed id has a cooldown before reuse. `inheritance` says who keeps which."""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeVar

from tidegate.errors import GenerationRefused
from tidegate.model.constants import ID_COOLDOWN_SECONDS, MAX_BACKENDS, MAX_POOLS, MAX_VIPS
from tidegate.model.generation import (
    Freed,
    Generation,
    Identity,
    PlacedBackend,
    PlacedPool,
    PlacedVip,
)
from tidegate.model.values import BackendKey

_Name = TypeVar("_Name", str, BackendKey)

FIRST: Final = 1
"""Id 0 is never allocated: in a table it means that the slot has no owner."""


class Allocator:
    """Allocates ids of one kind, lowest free id first.

    An id is free if nobody has it and it was never used, or was freed longer ago than the cooldown.
    Each use of an id has the next incarnation, so that references to an earlier use are
    recognised.
    """

    def __init__(
        self, kind: str, taken: Iterable[int], freed: Mapping[int, Freed], limit: int, now: int
    ) -> None:
        self._kind = kind
        self._taken = set(taken)
        self._freed = freed
        self._limit = limit
        self._now = now
        self._next = FIRST

    def allocate(self) -> Identity:
        """Return the next free id.

        Raises:
            GenerationRefused: all ids are taken or in their cooldown.
        """
        for candidate in range(self._next, self._limit):
            last = self._freed.get(candidate)
            resting = last is not None and self._now < last.at + ID_COOLDOWN_SECONDS
            if candidate in self._taken or resting:
                continue
            self._taken.add(candidate)
            self._next = candidate + 1
            return Identity(candidate, last.incarnation + 1 if last else 1)
        raise GenerationRefused(
            f"no free {self._kind} id: {self._limit - 1} are taken or were freed less than "
            f"{ID_COOLDOWN_SECONDS} s ago"
        )


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


def _taken(placed: Mapping[_Name, PlacedVip | PlacedPool | PlacedBackend]) -> set[int]:
    return {each.identity.id for each in placed.values()}
