# SPDX-License-Identifier: Apache-2.0
"""The packet path's clock: the kernel's jiffies, and ticks of four to eight seconds made of them.

A jiffy costs a packet one load, where the monotonic clock costs it a call. Entries of the tables
that packets write carry a tick of 16 bits. A time that was set in seconds is never early by it: it
is over one tick after it would be by an exact clock, or two at most.
"""

from dataclasses import dataclass
from typing import Final

_SHORTEST_SECONDS: Final = 4
TICKS: Final = 1 << 16
"""After so many ticks, three days at least, the count begins again."""


MOMENTS: Final = 1 << 6
"""Marks of SYNs have six bits of time, in quarters of a tick."""

AHEAD: Final = 2
"""Ticks that a CPU may be behind another: more than any is."""


def passed(then: int, now: int) -> int:
    """Return the ticks from one moment to another.

    What another CPU wrote in a tick that had not begun when this one read its clock is new, and not
    three days old.
    """
    age = (now - then) % TICKS
    return 0 if age >= TICKS - AHEAD else age


def moments_passed(then: int, now: int) -> int:
    """Return the moments between two, likewise; their count begins again after a minute or two."""
    age = (now - then) % MOMENTS
    return 0 if age >= MOMENTS - AHEAD else age


@dataclass(frozen=True)
class Clock:
    """The clock of a kernel.

    Attributes:
        hz: jiffies a second.
    """

    hz: int

    @property
    def shift(self) -> int:
        """Return the number of low bits of jiffies that a tick leaves out."""
        return (_SHORTEST_SECONDS * self.hz - 1).bit_length()

    @property
    def tick_seconds(self) -> float:
        """Return the length of a tick."""
        return (1 << self.shift) / self.hz

    def tick(self, jiffies: int) -> int:
        """Return the tick of a moment."""
        return (jiffies >> self.shift) % TICKS

    def moment(self, jiffies: int) -> int:
        """Return a moment as marks have it: a quarter of a tick, one to two seconds."""
        return (jiffies >> self.shift - 2) % MOMENTS

    def age(self, tick: int, jiffies: int) -> int:
        """Return the ticks that have passed since a tick."""
        return passed(tick, self.tick(jiffies))

    def limit(self, seconds: int) -> int:
        """Return the age in ticks above which more than so many seconds have passed."""
        return (seconds * self.hz >> self.shift) + 1
