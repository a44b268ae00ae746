# SPDX-License-Identifier: Apache-2.0
"""Work that takes long, beside which the loop goes on to take the dead out.

To read 60,000 documents and to plan for them takes seconds, a compiler takes seconds, and a backend
that dies in that time must not wait for either. So such work, which changes nothing outside itself,
is done on a thread of its own, while the loop waits for it and meanwhile ejects. All that changes
the data plane stays on the loop's thread, so nothing needs a lock; it ejects between two steps.

The loop counts as alive for as long as the work makes progress: as the thread uses a CPU, and at
most for `longest` seconds. It is not its end that feeds the watchdog. While the thread waits for a
compiler there is no such sign; a compilation has its own time besides (`StageRecorder.expect`).
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

_T = TypeVar("_T")

_STEP_SECONDS: Final = 0.02
"""Between two looks at what there is to eject."""
LONGEST_SECONDS: Final = 300.0


class LongWork:
    """Does one piece of work after another.

    Args:
        beat: leaves a mark of the loop's progress.
        longest: seconds for which work may use a CPU before it counts as hung.
    """

    def __init__(self, beat: Callable[[], None], longest: float = LONGEST_SECONDS) -> None:
        self._beat = beat
        self._longest = longest
        self._meanwhile: Callable[[], None] = _nothing
        self._looked = 0.0

    def beside(self, meanwhile: Callable[[], None]) -> None:
        """Have the loop do this between two looks at the work; it must be short."""
        self._meanwhile = meanwhile

    def between(self) -> None:
        """Leave a mark of progress between two steps, and look at what there is, if it is time."""
        self._beat()
        if time.monotonic() - self._looked >= _STEP_SECONDS:
            self._look()

    def run(self, work: Callable[[], _T]) -> _T:
        """Return what work returns, or raise what it raises."""
        outcome: Future[_T] = Future()
        done = threading.Event()
        thread = threading.Thread(
            target=_settle, args=(outcome, work, done), name="long-work", daemon=True
        )
        began, spent = time.monotonic(), 0.0
        try:
            thread.start()
        except RuntimeError:  # the host has no thread left: better late than not at all
            return work()
        while not done.wait(_STEP_SECONDS):
            before, spent = spent, _cpu_seconds(thread)
            if spent > before and time.monotonic() - began < self._longest:
                self._beat()
            self._look()
        return outcome.result()

    def _look(self) -> None:
        self._meanwhile()
        self._looked = time.monotonic()


def _nothing() -> None:
    pass


def _settle(outcome: Future[_T], work: Callable[[], _T], done: threading.Event) -> None:
    try:
        outcome.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it is raised where the outcome is asked for
        outcome.set_exception(error)
    finally:
        done.set()


def _cpu_seconds(thread: threading.Thread) -> float:
    """Return the CPU time of a thread that runs; 0 for one that has just ended."""
    ident = thread.ident
    if ident is None or not thread.is_alive():
        return 0.0
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(ident))
    except OSError:
        return 0.0
