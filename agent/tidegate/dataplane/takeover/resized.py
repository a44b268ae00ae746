# SPDX-License-Identifier: Apache-2.0
"""Reads a connection table of another size, pass after pass, while packets go on writing it.

The first pass yields every entry, each later one those that are new or changed since.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from tidegate.dataplane.kernel import layout
from tidegate.dataplane.kernel.lines import MappedLines
from tidegate.dataplane.takeover.candidates import candidates
from tidegate.dataplane.takeover.placing import Copies, Moment
from tidegate.spec.lines import COPIED, LINE_ENTRIES

_BLOCK_PAIRS: Final = 1 << 15
_MOST_COPIES: Final = 1 << 20
"""Of one block, so that a table may grow many times without taking much memory for it."""


class ResizedTable:
    """A table of lines as a source.

    Args:
        fd: descriptor of the map, which stays the caller's.
        old_pairs: its size.
        pairs: size of the table that copies are for.
    """

    def __init__(self, fd: int, old_pairs: int, pairs: int) -> None:
        self._mapped = MappedLines(fd, old_pairs)
        self._old_pairs, self._pairs = old_pairs, pairs
        self._seen = np.zeros(2 * old_pairs, layout.LINE)
        self.flows = 0

    def copies(self, now: Moment) -> Iterator[Copies]:  # noqa: ARG002 - as of every source
        """Yield copies of what was not seen yet, or has changed."""
        most = 10 * (self._pairs // self._old_pairs + 2)
        step = max(1, min(_BLOCK_PAIRS, _MOST_COPIES // most))
        for first in range(0, self._old_pairs, step):
            yield self._block(first, min(first + step, self._old_pairs))

    def _block(self, first: int, end: int) -> Copies:
        """Return copies of the entries of some pairs."""
        seen = self._seen[2 * first : 2 * end]
        lines = self._mapped.lines[2 * first : 2 * end].copy()
        owners, states = lines["owners"].ravel(), lines["states"].ravel()
        is_new = (owners != seen["owners"].ravel()) | (states != seen["states"].ravel())
        seen[:] = lines
        places = np.flatnonzero(is_new & (owners != 0))
        self.flows += len(places)
        pairs = (first + places // (2 * LINE_ENTRIES)).astype(np.uint64)
        found = candidates(pairs, self._old_pairs, self._pairs)
        width = (found.last - found.first).astype(np.int64) + 1
        which = np.repeat(places, width)
        nth = np.arange(len(which)) - np.repeat(np.cumsum(width) - width, width)
        return Copies(
            np.repeat(found.first.astype(np.int64), width) + nth,
            owners[which],
            states[which] | np.uint32(COPIED),
        )

    def close(self) -> None:
        """Unmap the table."""
        self._mapped.close()
