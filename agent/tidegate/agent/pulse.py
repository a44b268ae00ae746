# SPDX-License-Identifier: Apache-2.0
"""The loop's progress, on which everything depends that says that the agent is well.

The lease of the status key, the service manager's watchdog and `ready` are renewed on threads, or
stand for themselves; each would go on for ever beside a loop that hangs. So the loop leaves a mark
at each turn, and at each stage of a change, which may take longer than a turn. Once there was none
for `limit` seconds the agent counts as hung, whatever hangs it.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from tidegate.agent.readiness import sd_notify
from tidegate.event_log import EventLog

log = EventLog(__name__)

CHECKS: Final = 3
"""So often a hang is looked for, and the loop makes a turn, within the limit."""


class Pulse:
    """The marks of one loop.

    Args:
        limit: seconds without a mark after which the loop hangs.
        watchdog: seconds between signs of life to the service manager; None for none.
        clock: monotonic, s.
    """

    def __init__(
        self,
        limit: float,
        watchdog: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._watchdog = watchdog
        self._clock = clock
        self._notify_at = 0.0
        self._marked = clock()
        self.fault = ""
        """Why what says that the host is well is not to be renewed, though the loop goes on."""

    @property
    def interval(self) -> float:
        """Seconds after which the loop makes a turn though nothing asks for one."""
        return min(self._limit / CHECKS, self._watchdog or self._limit)

    def beat(self, allowed: float = 0.0) -> None:
        """Leave a mark; tell the service manager, if that is due.

        Args:
            allowed: seconds that what begins now may take by itself, besides the limit.
        """
        now = self._clock()
        self._marked = now + allowed
        if self._watchdog is not None and now >= self._notify_at:
            self._notify_at = now + self._watchdog / 2
            sd_notify.notify("WATCHDOG=1")

    def progress(self) -> None:
        """Leave a mark, and allow no less than what is allowed already."""
        self.beat(max(0.0, self._marked - self._clock()))

    def hang(self) -> str:
        """Return that the loop hangs, as a sentence; empty if it does not. For any thread."""
        silence = self._clock() - self._marked
        if silence <= self._limit:
            return self.fault
        return f"The agent's loop has made no progress for {silence:.0f} s."


class HangWatch:
    """Looks on a thread of its own whether the loop hangs, and says so once for each hang.

    Args:
        pulse: of the loop.
        on_hang: called with the sentence, on that thread; it may block.
    """

    def __init__(self, pulse: Pulse, on_hang: Callable[[str], None]) -> None:
        self._pulse = pulse
        self._on_hang = on_hang
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hang-watch", daemon=True)

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it is not waited for, as what it does may block."""
        self._stop.set()

    def _run(self) -> None:
        was = ""
        while not self._stop.wait(self._pulse.interval):
            is_ = self._pulse.hang()
            if is_ and not was:
                log.error("loop_hangs", reason=is_)
                self._on_hang(is_)
            elif was and not is_:
                log.warning("loop_goes_on")
            was = is_
