# SPDX-License-Identifier: Apache-2.0
"""Something that is done again and again beside a test, on a thread of its own."""

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class RepeatedAction(ABC):
    """A thread that calls `once` from `with` to its end; may be entered again.

    Attributes:
        number: of the last call that succeeded; calls are counted from 1.
        done: how many have succeeded.
    """

    def __init__(self, pause: float) -> None:
        """Take the seconds between two calls."""
        self._pause = pause
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.number = 0
        self.done = 0

    @abstractmethod
    def once(self, number: int) -> bool:
        """Make one call; return whether it succeeded."""

    def __enter__(self) -> Self:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()

    def _run(self) -> None:
        number = self.number
        while not self._stop.wait(self._pause):
            number += 1
            if self.once(number):
                self.note(number)

    def note(self, number: int) -> None:
        """Count a success."""
        with self._changed:
            self.number = number
            self.done += 1
            self._changed.notify_all()

    def wait_for_more(self, count: int = 5) -> None:
        """Wait until this many more have succeeded."""
        with self._changed:
            wanted = self.done + count
            assert self._changed.wait_for(lambda: self.done >= wanted, 30), "none succeeds"
