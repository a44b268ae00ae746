# SPDX-License-Identifier: Apache-2.0
"""Tables that others have replaced, which stay loaded until the grace delay has passed."""

import math
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tidegate.dataplane.publish.mirror import Loaded
from tidegate.dataplane.publish.steps import Step


class _Replaced(NamedTuple):
    until: float
    pool_id: int
    table: Loaded


class ReplacedTables:
    """The replaced tables that are still loaded: one of each pool, however fast it changes."""

    def __init__(self) -> None:
        self._kept: list[_Replaced] = []

    def __iter__(self) -> Iterator[Loaded]:
        return (each.table for each in self._kept)

    def keep(self, pool_id: int, table: Loaded, until: float) -> None:
        """Keep a pool's table until this monotonic second.

        The one before it may go at once: nobody has read it since that one replaced it, as each
        update of the outer map waits for an RCU grace period.
        """
        self._kept = [
            each._replace(until=-math.inf) if each.pool_id == pool_id else each
            for each in self._kept
        ]
        self._kept.append(_Replaced(until, pool_id, table))

    def next_due(self) -> float | None:
        """Return the monotonic second at which the next one may be freed."""
        return min((each.until for each in self._kept), default=None)

    def free(self, now: float, reached: Callable[[Step], None]) -> None:
        """Free those whose time has passed by this monotonic second."""
        for each in [each for each in self._kept if each.until <= now]:
            each.table.pin.unlink(missing_ok=True)
            reached(Step.TABLE_UNPINNED)
            os.close(each.table.fd)
            self._kept.remove(each)
            reached(Step.TABLE_FREED)
