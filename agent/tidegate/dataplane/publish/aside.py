# SPDX-License-Identifier: Apache-2.0
"""How whoever works for long lets others work meanwhile."""

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

_T = TypeVar("_T")


class Aside(Protocol):
    """What there is to do beside long work, and the ways to let it happen."""

    def run(self, work: Callable[[], _T]) -> _T:
        """Do what takes long and changes nothing; return what it returns."""

    def between(self) -> None:
        """Be called between two steps of work that changes something."""


class Directly:
    """Nothing is to be done beside work."""

    def run(self, work: Callable[[], _T]) -> _T:
        """Do it at once."""
        return work()

    def between(self) -> None:
        """Go on."""


NOTHING_ASIDE: Final = Directly()
