# SPDX-License-Identifier: Apache-2.0
"""Token buckets: limits for floods. A bucket holds one second's worth at most.

A bucket is one number, the moment up to which its tokens are spent (the generic cell rate
algorithm, ITU-T I.371): a token is worth 1 / rate of a second, and one can be taken if that much
lies between that moment and now. CPUs that share a bucket then need one addition alone.
"""

from dataclasses import dataclass
from typing import Final

from tidegate.model.ticks import Clock

FRACTION: Final = 24
"""Bits of a jiffy in a bucket's moment."""


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
