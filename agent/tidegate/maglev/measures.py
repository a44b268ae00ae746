# SPDX-License-Identifier: Apache-2.0
"""Measure tables: each owner's share of the slots, and how many slots a change moves."""

from collections.abc import Collection, Mapping
from math import ceil, log, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.maglev.construction import permutations
from tidegate.model.generation import Slots


class Disruption(NamedTuple):
    """Slots that change their owner from one table to the next."""

    moved: int
    """Slots whose owners differ."""
    minimum: int
    """Slots that any table with the new shares had to move."""
    bound: int
    """Slots that such a change moves at most (`bound`)."""


def share(table: Slots, owners: int) -> npt.NDArray[np.int64]:
    """Return the number of slots of each owner.

    Args:
        table: owner of each slot.
        owners: number of owners; they are 0 to owners - 1.

    Returns:
        int64[owners].
    """
    return np.bincount(table, minlength=owners).astype(np.int64, copy=False)


def disruption(before: Slots, after: Slots, reweighted: Collection[int] = ()) -> Disruption:
    """Return how many slots a change moves, and the least and the most that it may move.

    Args:
        before: owner of each slot, as ids that mean the same in both tables (backend ids, say).
        after: the same after the change.
        reweighted: owners in both tables whose weight differs, so that all their turns are at other
            times.

    Raises:
        ValueError: the tables differ in size.
    """
    if before.shape != after.shape:
        raise ValueError("tables of different sizes have no slots in common")
    owners = int(max(before.max(), after.max())) + 1
    had, has = share(before, owners), share(after, owners)
    lost, won = np.maximum(had - has, 0), np.maximum(has - had, 0)
    minimum = int(lost.sum())
    again = np.fromiter((o for o in reweighted if o < owners), np.int64)
    lost[again], won[again] = had[again], has[again]
    turns = int(max(lost.sum(), won.sum()))
    moved = int(np.count_nonzero(before != after))
    return Disruption(moved, minimum, bound(turns, len(before)))


def exchangeable(before: Slots, after: Slots, names: Mapping[int, str]) -> int:
    """Return how many slots a change may move beyond its bound, for owners with equal skips.

    Two owners that go through the slots in equal steps meet again and again: one slot that changes
    its owner can start an exchange of all that they have.

    Args:
        before: owner of each slot.
        after: the same after the change.
        names: of owners, by what they are in the tables; others count as having steps of their own.
    """
    owners = int(max(before.max(), after.max())) + 1
    slots = np.maximum(share(before, owners), share(after, owners))
    there = [owner for owner in names if owner < owners and slots[owner]]
    _, skip = permutations([names[owner] for owner in there], len(before))
    _, which, count = np.unique(skip, return_inverse=True, return_counts=True)
    return int(slots[there][count[which] > 1].sum())


def bound(turns: int, size: int) -> int:
    """Return the most slots that a change of `turns` moves; docs/maglev.md derives it.

    Args:
        turns: those that are in one of the two constructions only, or at another time in it.
        size: slots of the table.
    """
    if turns == 0:
        return 0
    part = turns / size
    others = 2 * turns * (1 - part) * log(1.5 + 0.2 / part)
    return min(size, ceil(turns + others + 4 * sqrt(others) + 16))
