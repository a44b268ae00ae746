# SPDX-License-Identifier: Apache-2.0
"""A bounded queue between producers of telemetry and the thread that exports it.

Offering costs an append and takes no lock that an export holds, so it may be done on any thread at
any time. Each item that does not arrive is counted, by reason. The SDK's own batch processor does
the same work, but throws the oldest out, and counts them only in metrics of its own.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import Final, Generic, NamedTuple, TypeVar

Item = TypeVar("Item")

BATCH: Final = 512
DELAY_SECONDS: Final = 0.5
"""The longest that an item waits for others to go with it."""
_LOOK_SECONDS: Final = 0.05
_LONGEST_PAUSE: Final = 30.0
FULL, NOT_EXPORTED, SHUTDOWN = "queue_full", "not_exported", "shutdown"


class Tally(NamedTuple):
    """What became of what was offered: exported, and lost by reason."""

    exported: int
    lost: Mapping[str, int]


class Queue(Generic[Item]):
    """Has a thread, from the first item on, that hands batches to `send`.

    `send` says whether a batch arrived; one that did not is lost, and the thread then pauses, for
    longer with each failure of a row. So while a collector is away the queue fills, and what is in
    it is sent when the collector is back.
    """

    def __init__(self, name: str, size: int, send: Callable[[list[Item]], bool]) -> None:
        self._size = size
        self._send = send
        self._items: SimpleQueue[Item | None] = SimpleQueue()
        self._lock = threading.RLock()  # a log record may come out of a finalizer, anywhere
        self._lost: Counter[str] = Counter()
        self._exported = 0
        self._in_hand = 0
        self._closing = threading.Event()
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name=f"telemetry-{name}", daemon=True)
        self._thread.start()

    def offer(self, item: Item) -> None:
        """Take an item, or drop and count it."""
        if self._closing.is_set():
            self._lose(SHUTDOWN)
        elif self._items.qsize() >= self._size:
            self._lose(FULL)
        else:
            self._items.put(item)

    def tally(self) -> Tally:
        """Return what became of what was offered; what still waits is in neither number."""
        with self._lock:
            return Tally(self._exported, dict(self._lost))

    def begin_close(self) -> None:
        """Take no more, and send what there is."""
        self._closing.set()
        self._items.put(None)

    def end_close(self, deadline: float) -> None:
        """Wait until this monotonic second for what is queued; the rest is lost and counted."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._given_up = True
            left = self._in_hand
        while (item := self._next(wait=None)) is not _NOTHING:
            left += item is not None
        if left:
            self._lose(SHUTDOWN, left)

    def _lose(self, reason: str, number: int = 1) -> None:
        with self._lock:
            self._lost[reason] += number

    def _next(self, wait: float | None) -> "Item | _Nothing | None":
        try:
            return self._items.get(block=wait is not None, timeout=wait)
        except Empty:
            return _NOTHING

    def _work(self) -> None:
        failures = 0
        while not self._given_up:
            batch = self._collect()
            if batch:
                failures = 0 if self._export(batch) else failures + 1
                if failures:
                    self._closing.wait(min(2.0 ** (failures - 1), _LONGEST_PAUSE))
            elif self._closing.is_set():
                return

    def _collect(self) -> list[Item]:
        """Wait for an item, then a little for more; empty when there is nothing left to come."""
        first = self._items.get() if not self._closing.is_set() else self._next(wait=None)
        due = time.monotonic() + DELAY_SECONDS
        while self._items.qsize() < BATCH and time.monotonic() < due:
            if self._closing.wait(_LOOK_SECONDS):
                break
        batch = [] if first is None or isinstance(first, _Nothing) else [first]
        while len(batch) < BATCH and (item := self._next(wait=None)) is not _NOTHING:
            if item is not None and not isinstance(item, _Nothing):
                batch.append(item)
        return batch

    def _export(self, batch: list[Item]) -> bool:
        with self._lock:
            self._in_hand = len(batch)
        is_sent = self._send(batch)
        with self._lock:
            self._in_hand = 0
            if self._given_up:  # counted as lost by then
                return is_sent
            if is_sent:
                self._exported += len(batch)
            else:
                self._lost[NOT_EXPORTED] += len(batch)
        return is_sent


class _Nothing:
    """The queue is empty."""


_NOTHING: Final = _Nothing()
