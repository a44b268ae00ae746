# SPDX-License-Identifier: Apache-2.0
"""Token buckets: limits for floods. A bucket holds one second's worth at most."""

from dataclasses import dataclass
from typing import Final

from tidegate.model.ticks import Clock

TOKEN: Final = 1 << 20


@dataclass
class Bucket:
    """Tokens in 1/2^20, and when they were last refilled (jiffies)."""

    tokens: int = 0
    at: int = 0

    def take(self, rate: int, now: int, clock: Clock) -> bool:
        """Take one token if there is one; `rate` is in tokens per second."""
        passed = now - self.at
        full = rate * TOKEN
        refill = full if passed >= clock.hz else full * passed // clock.hz
        if refill:
            self.tokens = min(full, self.tokens + refill)
            self.at = now
        if self.tokens < TOKEN:
            return False
        self.tokens -= TOKEN
        return True
