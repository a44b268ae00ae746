# SPDX-License-Identifier: Apache-2.0
"""The tables of lines (bpf/lines.h) in user space: mapped memory, which packets go on writing.

Reading takes no call and nothing of the packet path. An entry that is written meanwhile may be
seen with the state of the one before it, as packets see it.
"""

import mmap
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.kernel import layout
from tidegate.spec.lines import FINGERPRINT, LINE_ENTRIES, MOMENT_BITS, SEQUENCE_BITS, Entry

_FINGERPRINT_SHIFT: Final = 24
_INCARNATION_SHIFT: Final = 16
_INCARNATION: Final = 0xFF
_BACKEND: Final = 0xFFFF

_WORDS: Final = layout.LINE.itemsize // 8
_FIRST_STATE: Final = layout.LINE.fields["states"][1] // 4 if layout.LINE.fields else 0
_PART: Final = 1 << 14
"""Lines that are looked at together: they and what is made of them stay in a CPU's cache."""

Lines = npt.NDArray[np.void]
"""layout.LINE, one element each, one after another in memory."""


class Occupied(NamedTuple):
    """The entries of a part of a table, as they were read.

    Attributes:
        owner_at: where each owner is among the table's words of 64 bits.
        state_at: where each state is among its words of 32 bits.
    """

    owner_at: npt.NDArray[np.intp]
    state_at: npt.NDArray[np.intp]
    owners: npt.NDArray[np.uint64]
    states: npt.NDArray[np.uint32]


def occupied(lines: Lines, first: int = 0, count: int | None = None) -> Iterator[Occupied]:
    """Yield the entries of `count` lines from the `first` on, in parts."""
    end = len(lines) if count is None else min(len(lines), first + count)
    owners, states = words(lines)
    for start in range(first, end, _PART):
        stop = min(end, start + _PART)
        is_taken = owners[_WORDS * start : _WORDS * stop] != 0
        is_taken.reshape(-1, _WORDS)[:, LINE_ENTRIES:] = False  # these words are states
        owner_at = np.flatnonzero(is_taken)
        owner_at += _WORDS * start
        # The i-th owner of line n is word 8n + i, the i-th state half word 16n + 10 + i.
        state_at = owner_at * 2
        state_at -= owner_at & (_WORDS - 1)
        state_at += _FIRST_STATE
        yield Occupied(owner_at, state_at, owners.take(owner_at), states.take(state_at))


def words(lines: Lines) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """Return a table as words of 64 bits and of 32 bits; both are the table's own memory."""
    return lines.view(np.uint64), lines.view(np.uint32)


class MappedLines:
    """A table of lines, from `with` to its end.

    Args:
        fd: descriptor of the map.
        pairs: of lines.
        writable: whether it is written too.

    Attributes:
        lines: layout.LINE, one element each.
    """

    def __init__(self, fd: int, pairs: int, *, writable: bool = False) -> None:
        size = -(-2 * pairs * layout.LINE.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._memory = mmap.mmap(fd, size, mmap.MAP_SHARED, access)
        self.lines: Lines = np.frombuffer(self._memory, layout.LINE, 2 * pairs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap it, or have it unmapped when who looks at a part of it is done."""
        self.lines = np.zeros(0, layout.LINE)
        with suppress(BufferError):  # a view keeps the memory, and frees it at its end
            self._memory.close()

    def entries(self) -> dict[int, Entry]:
        """Return every entry by its place, as the specification's value."""
        owners, states = self.lines["owners"].ravel(), self.lines["states"].ravel()
        places = np.flatnonzero(owners)
        each, moments = owners[places], self._moments(places)
        return dict(
            zip(
                places.tolist(),
                map(
                    Entry._make,
                    zip(
                        (each >> np.uint64(_FINGERPRINT_SHIFT)).tolist(),
                        (each >> np.uint64(_INCARNATION_SHIFT) & np.uint64(_INCARNATION)).tolist(),
                        (each & np.uint64(_BACKEND)).tolist(),
                        (moments << np.uint64(SEQUENCE_BITS) | states[places]).tolist(),
                        strict=True,
                    ),
                ),
                strict=True,
            )
        )

    def _moments(self, places: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
        """Return the moments of marks; 0 in the other tables."""
        lines, at = np.divmod(places, LINE_ENTRIES)
        shifts = (MOMENT_BITS * at).astype(np.uint32)
        found: npt.NDArray[np.uint64] = (
            self.lines["moments"][lines] >> shifts & np.uint32((1 << MOMENT_BITS) - 1)
        ).astype(np.uint64)
        return found


def owner_of(entry: Entry) -> int:
    """Return an entry's owner as the kernel has it."""
    owner = (entry.fingerprint & FINGERPRINT) << _FINGERPRINT_SHIFT
    return owner | entry.incarnation << _INCARNATION_SHIFT | entry.backend


def place_of(place: int) -> tuple[int, int]:
    """Return the line and the position in it of a place."""
    return divmod(place, LINE_ENTRIES)
