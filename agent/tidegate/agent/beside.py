# SPDX-License-Identifier: Apache-2.0
"""What the loop does beside its job: it may fail, and the loop goes on.

To look at links, to compare the kernel, to tidy tables, to complete traces and to sample traffic
take descriptors, memory and system calls, which a host may run out of. None of that is worth the
agent, whose job is to take the dead out. What fails is named in the status, logged when it begins
or changes, and tried again a second later.
"""

import time
from collections.abc import Callable
from typing import Final

from tidegate.errors import FenceError
from tidegate.event_log import EventLog

log = EventLog(__name__)

RETRY_SECONDS: Final = 1.0


class Beside:
    """Runs parts of which none may end the agent.

    Args:
        clock: monotonic, s.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[str, str] = {}
        self._again: dict[str, float] = {}

    def run(self, part: str, work: Callable[[], object]) -> None:
        """Do some work, unless it has just failed.

        Raises:
            FenceError: the data plane is another agent's now.
        """
        now = self._clock()
        if now < self._again.get(part, now):
            return
        try:
            work()
        except FenceError:
            raise
        except Exception as error:
            reason = f"{part}: {type(error).__name__}: {error}"
            if self._failed.get(part) != reason:
                log.exception("part_failed", part=part)
            self._failed[part], self._again[part] = reason, now + RETRY_SECONDS
            return
        self._again.pop(part, None)
        if self._failed.pop(part, None) is not None:
            log.warning("part_works_again", part=part)

    @property
    def problems(self) -> list[str]:
        """What fails, each as a sentence for the status."""
        return [f"{reason}; it is tried again each second" for reason in self._failed.values()]

    def due(self, part: str, at: float) -> float:
        """Return the monotonic second at which a part that is due at one is to be run.

        What fails waits, and nothing else does: the dead are taken out on time beside it.
        """
        return max(at, self._again.get(part, at))
