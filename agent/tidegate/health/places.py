# SPDX-License-Identifier: Apache-2.0
"""How many descriptors probes may hold: what the process may have, less what the rest of it needs.

A probe for which there is none would fail by this host's fault, and so might the agent's own work.
So probes have a budget, and one that finds no place in it waits. What this costs, and from when it
is told, is for the engine to say; here is arithmetic alone.

TCP targets keep a socket each, if there is room for all of them; else they too take a place for as
long as a handshake lasts. Of places for a moment few are enough: 1,000 a second of 10 ms are ten.
"""

import resource
from pathlib import Path
from typing import Final

from tidegate.health.blame import descriptor_limit

_OWN: Final = Path("/proc/self/fd")
_ENDLESS: Final = 1 << 20
"""What counts as the limit where there is none."""
_SHARE: Final = 8
"""One in so many descriptors is left to the rest of the process, beyond what it holds already."""
_MOMENTARY: Final = 256
"""Places beside sockets that are kept: for other probes, if there are so many."""


class Places:
    """The budget of one engine, and what of it is taken."""

    def __init__(self) -> None:
        self.limit = _limit()
        """Descriptors that the process may have."""
        self.budget = 0
        """Descriptors that probes may have."""
        self.is_short = False
        """Whether not all probes fit at once, so that sockets are not kept."""
        self._kept = 0
        self._used = 0

    def count(self, *, lasting: int, momentary: int, held: int) -> None:
        """Make the budget anew.

        Args:
            lasting: targets that would like to keep a descriptor.
            momentary: descriptors that all other targets take if all run at once.
            held: descriptors that probes hold now.
        """
        self.limit = _limit()
        others = max(0, _open() - held)
        free = max(0, self.limit - others)
        self.budget = max(free - self.limit // _SHARE, free // 2)
        self.is_short = lasting + min(momentary, _MOMENTARY) > self.budget
        self._kept = 0 if self.is_short else lasting

    def has(self, wanted: int) -> bool:
        """Return whether so many are free. A probe that wants more than all gets all."""
        return self._kept + self._used + wanted <= max(self.budget, wanted if not self._used else 0)

    def take(self, taken: int) -> None:
        """Take these; to be given back."""
        self._used += taken

    def give(self, taken: int) -> None:
        """Give these back."""
        self._used -= taken

    @property
    def used(self) -> int:
        """Those that are taken for a while."""
        return self._used


def _limit() -> int:
    limit = descriptor_limit()
    return _ENDLESS if limit == resource.RLIM_INFINITY else limit


def _open() -> int:
    """Return how many descriptors this process has open."""
    # Linux 6.2 and later say so in the folder's size.
    return _OWN.stat().st_size or sum(1 for _ in _OWN.iterdir())
