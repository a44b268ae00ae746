# SPDX-License-Identifier: Apache-2.0
"""The way that a probe's packets are to leave by, as far as a checker has to know it."""

from typing import Final, NamedTuple, Protocol

NAMED_SECONDS: Final = 10.0
"""For which a probe that did not take its way is worth a word; after that a further one is news."""


class Way(Protocol):
    """Tells whether packets of a mark leave by the way that the mark names."""

    @property
    def is_closed(self) -> bool:
        """Whether they would leave by another one."""

    def sent(self, mark: int) -> int | None:
        """Return a number that changes with each such packet; None if that cannot be told."""


class Unsent(NamedTuple):
    """The last probe that did not take its way: how it ended, and when (monotonic clock, s)."""

    reason: str
    at: float
