# SPDX-License-Identifier: Apache-2.0
"""Puts copies into a table of lines: where the packet path would, and never over what it wrote.

A copy has the flag COPIED until a packet of its flow clears it; by that flag a later pass knows
what it may bring up to date. A copy takes an empty place, or that of an entry that makes room more
readily than the copy itself would (spec Lines.room). So the order in which copies come does not
matter, and of an overfull pair the liveliest stay.

Packets may write to the table meanwhile. A place is looked at again right before it is written, and
after: what a packet has taken goes elsewhere. There is no lock, so in the microseconds between look
and write a packet's entry may be lost as it may between two packets; only the last pass, which is
short, runs beside them.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tidegate.model.ticks import TICKS
from tidegate.spec.lines import COPIED, ENDING, LINE_ENTRIES, SPOKE

_PLACES: Final = 2 * LINE_ENTRIES
_FINGERPRINT_SHIFT: Final = np.uint64(24)
_FINGERPRINT_BITS: Final = np.uint64(40)
_TICK_SHIFT: Final = np.uint32(16)
_ATTEMPTS: Final = 4
QUIET_TICKS: Final = 64
"""In a smaller table not all may find room: who was silent for so long yields to who was not."""

Numbers: TypeAlias = npt.NDArray[np.int64]


class Moment(NamedTuple):
    """One moment by both clocks: the monotonic one in ns, and jiffies."""

    ns: int
    jiffies: int


class Copies(NamedTuple):
    """Entries for a table of lines, one array element each.

    Attributes:
        pairs: numbers of their pairs.
        owners: as in layout.LINE, and so `states`, with the flag COPIED.
    """

    pairs: Numbers
    owners: npt.NDArray[np.uint64]
    states: npt.NDArray[np.uint32]

    def where(self, which: npt.NDArray[np.generic]) -> "Copies":
        """Return those at these indices, or of this mask."""
        return Copies(self.pairs[which], self.owners[which], self.states[which])


@dataclass
class Tally:
    """What became of copies.

    Attributes:
        placed: written, those that only brought another one up to date included.
        crowded: found no room, or had to make it for another one.
    """

    placed: int = 0
    crowded: int = 0


class Placer:
    """Places copies in a table.

    Args:
        lines: of the table (layout.LINE), writable.
    """

    def __init__(self, lines: npt.NDArray[np.void]) -> None:
        pairs = len(lines) // 2
        self._owners = lines["owners"].reshape(pairs, 2, LINE_ENTRIES)
        self._states = lines["states"].reshape(pairs, 2, LINE_ENTRIES)
        self.tally = Tally()

    def place(self, copies: Copies, tick: int) -> None:
        """Write copies; what is there already and was not copied stays."""
        for _ in range(_ATTEMPTS):
            copies = self._attempt(copies, tick)
            if not len(copies.pairs):
                return
        self.tally.crowded += len(copies.pairs)

    def close(self) -> None:
        """Let go of the lines, which may then be unmapped."""
        self._owners = np.zeros((0, 2, LINE_ENTRIES), np.uint64)
        self._states = np.zeros((0, 2, LINE_ENTRIES), np.uint32)

    def _attempt(self, copies: Copies, tick: int) -> Copies:
        """Write what can be written; return those whose place was taken meanwhile."""
        ordered = _ordered(copies, tick)
        row, first = _rows(ordered.pairs)
        there = _Pairs(self._owners, self._states, ordered.pairs[first])
        ordered, row = _distinct(ordered, row)
        ordered, row = self._refreshed(ordered, row, there)
        if not len(row):
            return ordered
        claims = _claims(there.owners, there.states, tick)
        readiest = np.argsort(-claims, axis=1, kind="stable")
        rank = _ranks(row)
        fits = rank < _PLACES
        place = readiest[row, np.minimum(rank, _PLACES - 1)]
        fits &= claims[row, place] > _claims(ordered.owners, ordered.states, tick)
        self.tally.crowded += int(np.count_nonzero(~fits))
        return self._written(ordered.where(fits), there.owners[row[fits], place[fits]], place[fits])

    def _refreshed(self, copies: Copies, row: Numbers, there: "_Pairs") -> tuple[Copies, Numbers]:
        """Bring earlier copies up to date; return those that are not there yet, with their rows."""
        if not there.owners.any():
            return copies, row
        differing = (there.owners[row] ^ copies.owners[:, None]) >> _FINGERPRINT_SHIFT
        match = (differing == 0) & (there.owners[row] != 0)
        known, place = match.any(axis=1), match.argmax(axis=1)
        stale = known & (there.states[row, place] & np.uint32(COPIED) != 0)
        old = there.owners[row[stale], place[stale]]
        self._written(copies.where(stale), old, place[stale])
        return copies.where(~known), row[~known]

    def _written(self, copies: Copies, expected: npt.NDArray[np.uint64], place: Numbers) -> Copies:
        """Write to places that still hold what is expected; return those that are not there."""
        at = copies.pairs, place // LINE_ENTRIES, place % LINE_ENTRIES
        same = self._owners[at] == expected
        at = at[0][same], at[1][same], at[2][same]
        # The owner last, as packets do: what is found has its state.
        self._states[at] = copies.states[same]
        self._owners[at] = copies.owners[same]
        kept = np.zeros(len(same), np.bool_)
        kept[same] = self._owners[at] == copies.owners[same]
        self.tally.placed += int(np.count_nonzero(kept))
        changed = (expected ^ copies.owners) >> _FINGERPRINT_SHIFT != 0
        self.tally.crowded += int(np.count_nonzero(kept & (expected != 0) & changed))
        return copies.where(~kept)


class _Pairs:
    """Owners and states of some pairs as they were at one moment, a row of ten for each."""

    def __init__(
        self, owners: npt.NDArray[np.uint64], states: npt.NDArray[np.uint32], pairs: Numbers
    ) -> None:
        self.owners = owners[pairs].reshape(len(pairs), _PLACES)
        self.states = states[pairs].reshape(len(pairs), _PLACES)


def _claims(
    owners: npt.NDArray[np.uint64], states: npt.NDArray[np.uint32], tick: int
) -> npt.NDArray[np.int32]:
    """Return how readily each entry makes room: as spec Lines.room has it, and who is quiet."""
    quiet = (np.uint32(tick) - (states >> _TICK_SHIFT) & np.uint32(TICKS - 1)).astype(np.int32)
    claims = np.where(quiet >= QUIET_TICKS, quiet, 0)
    claims = np.where(states & np.uint32(SPOKE), claims, TICKS + quiet)
    claims = np.where(states & np.uint32(ENDING), 2 * TICKS + quiet, claims)
    return np.where(owners == 0, 3 * TICKS, claims).astype(np.int32)


def _ordered(copies: Copies, tick: int) -> Copies:
    """Return the copies by pair, and within a pair the liveliest first."""
    claims = _claims(copies.owners, copies.states, tick).astype(np.int64)
    return copies.where(np.argsort(copies.pairs << 20 | claims, kind="stable"))


def _rows(pairs: Numbers) -> tuple[Numbers, Numbers]:
    """Return each copy's row among the pairs that occur, and the first copy of each row."""
    is_first = np.ones(len(pairs), np.bool_)
    is_first[1:] = pairs[1:] != pairs[:-1]
    return np.cumsum(is_first) - 1, np.flatnonzero(is_first)


def _ranks(row: Numbers) -> Numbers:
    """Return each copy's number within its row; rows ascend."""
    begins = np.searchsorted(row, row)
    ranks: Numbers = np.arange(len(row)) - begins
    return ranks


def _distinct(copies: Copies, row: Numbers) -> tuple[Copies, Numbers]:
    """Leave out all but the liveliest of several copies of one flow in one pair.

    A table that was itself copied has a flow in several pairs, which may come together again.
    """
    flow = row.astype(np.uint64) << _FINGERPRINT_BITS | copies.owners >> _FINGERPRINT_SHIFT
    ordered = np.sort(flow)
    if not (ordered[1:] == ordered[:-1]).any():
        return copies, row
    kept = np.sort(np.unique(flow, return_index=True)[1])
    return copies.where(kept), row[kept]
