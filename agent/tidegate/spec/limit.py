# SPDX-License-Identifier: Apache-2.0
"""Token buckets: limits for floods. A bucket holds one second's worth at most.

A bucket is one number, the moment up to which its tokens are spent (the generic cell rate
algorithm, ITU-T I.371): a token is worth 1 / rate of a second, and one can be taken if that much
lies between that moment and now. CPUs that share a bucket then need one addition alone.

Limits of source prefixes have no buckets of their own, of which there would have to be as many as
there are prefixes. Two rows of cells are shared by all (a count-min sketch with conservative
update: Estan and Varghese, SIGCOMM 2002): a keyed hash gives each prefix a cell of either row, and
the one with more left counts. So there is nothing to allocate, to evict or to forget.

* No prefix ever has more than its limit: what it takes leaves neither cell with more than the one
  that counted has then.
* A prefix is refused too early only if others have used up both of its cells. Where F prefixes use
  up their limits, that is one in (CELLS / F)^2. Nobody can aim for it without the key of the hash.
"""

from dataclasses import dataclass, field
from typing import Final

from tidegate.model.ticks import Clock

FRACTION: Final = 24
"""Bits of a jiffy in a bucket's moment."""
CELLS: Final = 1 << 17
"""Of a row: a power of two, as a cell is some bits of a hash."""


@dataclass
class Bucket:
    """A bucket, full if it is older than a second.

    Attributes:
        spent: moment up to which its tokens are spent, in 1/2^24 of a jiffy.
    """

    spent: int = 0

    @classmethod
    def holding(cls, tokens: int, rate: int, now: int, clock: Clock) -> "Bucket":
        """Return a bucket with so many tokens at a moment (jiffies)."""
        second = clock.hz << FRACTION
        return cls((now << FRACTION) - second + (rate - tokens) * (second // rate))

    def take(self, rate: int, now: int, clock: Clock) -> bool:
        """Take one token if there is one; `rate` is in tokens per second, `now` in jiffies."""
        second, moment = clock.hz << FRACTION, now << FRACTION
        token = second // rate
        self.spent = max(self.spent, moment - second)
        if moment - self.spent < token:
            return False
        self.spent += token
        return True


@dataclass
class SharedLimits:
    """Two rows of cells that all source prefixes share.

    Attributes:
        cells: the moment up to which each one's tokens are spent, by index; those of the second
            row come after CELLS of the first.
    """

    cells: dict[int, int] = field(default_factory=dict)

    @staticmethod
    def places(hash_: int) -> tuple[int, int]:
        """Return the cells of a prefix with this hash."""
        return hash_ % CELLS, CELLS + (hash_ >> 32) % CELLS

    def take(self, hash_: int, rate: int, now: int, clock: Clock) -> bool:
        """Take one token for the prefix with this hash, if there is one; see `Bucket.take`."""
        second, moment = clock.hz << FRACTION, now << FRACTION
        places = self.places(hash_)
        for place in places:
            self.cells[place] = max(self.cells.get(place, 0), moment - second)
        spent = min(self.cells[place] for place in places) + second // rate
        if spent > moment:
            return False
        for place in places:
            self.cells[place] = max(self.cells[place], spent)
        return True
