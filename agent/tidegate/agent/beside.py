# SPDX-License-Identifier: Apache-2.0
"""What the loop does beside its job: it may fail, and the loop goes on.

To look at links, to compare the kernel, to tidy tables, to complete traces and to sample traffic
take descriptors, memory and system calls, which a host may run out of. None of that is worth the
agent, whose job is to take the dead out. What fails is named in the status, logged when it begins
or changes, and tried again a second later: at the turn of the loop that is due then anyway, or, if
it was asked for once and is still owed, at a turn of its own.
"""

import time
from collections.abc import Callable
from typing import Final, TypeVar

from tidegate.errors import FenceError
from tidegate.event_log import EventLog

log = EventLog(__name__)

RETRY_SECONDS: Final = 1.0

_T = TypeVar("_T")


class Beside:
    """Runs parts of which none may end the agent.

    Args:
        clock: monotonic, s.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[str, str] = {}
        self._again: dict[str, float] = {}
        self._owed: dict[str, Callable[[], object]] = {}

    def run(self, part: str, work: Callable[[], _T]) -> _T | None:
        """Do some work, unless it has just failed; return what it returns, or None.

        Raises:
            FenceError: the data plane is another agent's now.
        """
        now = self._clock()
        if now < self._again.get(part, now):
            return None
        return self.once(part, work)

    def once(self, part: str, work: Callable[[], _T]) -> _T | None:
        """As `run`, though it has just failed: what is to be done now, or never.

        Raises:
            FenceError: the data plane is another agent's now.
        """
        try:
            result = work()
        except FenceError:
            raise
        except Exception as error:
            reason = f"{part}: {type(error).__name__}: {error}"
            if self._failed.get(part) != reason:
                log.exception("part_failed", part=part)
            self._failed[part], self._again[part] = reason, self._clock() + RETRY_SECONDS
            return None
        self._again.pop(part, None)
        if self._failed.pop(part, None) is not None:
            log.warning("part_works_again", part=part)
        return result

    def owe(self, part: str, work: Callable[[], object]) -> None:
        """Have `settle` do some work until it has succeeded, in place of what the part owed."""
        self._owed[part] = work

    def settle(self, *parts: str) -> None:
        """Do what these parts owe, or what all do.

        Raises:
            FenceError: the data plane is another agent's now.
        """
        for part in [each for each in self._owed if each in parts or not parts]:
            work = self._owed.get(part)
            if work is None:  # done within the work of another part
                continue
            self.run(part, work)
            if part not in self._again and self._owed.get(part) is work:
                self._owed.pop(part)

    def fails(self, part: str) -> str:
        """Return why a part fails; empty if it does not."""
        return self._failed.get(part, "")

    @property
    def problems(self) -> list[str]:
        """What fails, each as a sentence for the status."""
        return [f"{reason}; it is tried again each second" for reason in self._failed.values()]

    def due(self, part: str, at: float) -> float:
        """Return the monotonic second at which a part that is due at one is to be run.

        What fails waits, and nothing else does: the dead are taken out on time beside it.
        """
        return max(at, self._again.get(part, at))

    @property
    def owed_at(self) -> float | None:
        """The monotonic second at which something owed is to be tried again, or None."""
        return min((self._again.get(part, 0.0) for part in self._owed), default=None)
