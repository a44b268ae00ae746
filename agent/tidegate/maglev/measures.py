# SPDX-License-Identifier: Apache-2.0
"""What a table is judged by: each owner's share of the slots, and how many slots a change moves."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.model.generation import Slots


class Disruption(NamedTuple):
    """Slots that change their owner from one table to the next."""

    moved: int
    """Slots whose owners differ."""
    minimum: int
    """Slots that any table with the new shares had to move."""


def share(table: Slots, owners: int) -> npt.NDArray[np.int64]:
    """Slots of each owner.

    Args:
        table: owner of each slot.
        owners: number of owners; they are 0 to owners - 1.

    Returns:
        int64[owners].
    """
    return np.bincount(table, minlength=owners).astype(np.int64, copy=False)


def disruption(before: Slots, after: Slots) -> Disruption:
    """What a change moves, and the least that a change to these shares can move.

    Args:
        before: owner of each slot, as ids that mean the same in both tables (backend ids, say).
        after: the same after the change.

    Raises:
        ValueError: the tables differ in size.
    """
    if before.shape != after.shape:
        raise ValueError("tables of different sizes have no slots in common")
    owners = int(max(before.max(), after.max())) + 1
    lost = share(before, owners) - share(after, owners)
    return Disruption(int(np.count_nonzero(before != after)), int(lost[lost > 0].sum()))
