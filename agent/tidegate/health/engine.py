# SPDX-License-Identifier: Apache-2.0
"""Runs probes, thousands of them, each at its own moments, in one asyncio loop on its own thread.

A target's n-th probe is due at `start + phase + n * interval`, counted from the engine's start and
never from the end of the probe before, so moments do not drift, however long probes take. The phase
is a hash of the target's key: targets are spread over the interval, and adding one moves no other.
Jitter is added to each moment anew, so it does not add up either.

One heap holds the next moment of every target, and one timer waits for the earliest: a timer for
each target would cost the loop more than most probes. What a probe does, and what its results mean,
is not known here.
"""

import asyncio
import heapq
import logging
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Final, Generic, TypeVar

from tidegate.health.result import Result

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

_TICK: Final = 0.005
"""Seconds between two looks at the heap: probes that begin together wake the loop once."""

_RECENT: Final = 10_000
"""Probes whose lateness is remembered."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is probed, and when.

    Attributes:
        probe: begins one probe, which ends by itself in less than the interval, and does not raise
            for a failure.
        interval: seconds between two probes.
        jitter: share of the interval by which a probe may be later, 0 to 1.
    """

    probe: Callable[[], Awaitable[Result]]
    interval: float
    jitter: float = 0.0


@dataclass(slots=True)
class _Scheduled:
    """A target with its place in time."""

    target: Target
    start: float
    number: int = 0
    is_running: bool = False
    is_gone: bool = False

    def due(self) -> float:
        """The next probe's moment on the loop's clock, without jitter."""
        return self.start + self.number * self.target.interval


class Engine(Generic[K]):
    """Probes a set of targets, from `start` to `stop`.

    Args:
        report: gets each result, on the engine's thread; should be quick.
    """

    def __init__(self, report: Callable[[K, Result], None]) -> None:
        self._report = report
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tidegate-health", daemon=True)
        self._targets: dict[K, _Scheduled] = {}
        self._heap: list[tuple[float, int, K, _Scheduled]] = []
        self._sequence = 0
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Future[Result]] = set()
        self._lateness: deque[float] = deque(maxlen=_RECENT)
        self.started = 0
        """Probes begun."""
        self.skipped = 0
        """Probes that were due while the one before was still running."""

    def start(self) -> None:
        """Starts the thread; once."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """Cancels what runs and ends the thread; returns whether it ended in time."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def probe(self, targets: Mapping[K, Target]) -> None:
        """Makes these the targets. For any thread. A target that stays as it was keeps its time."""
        self._loop.call_soon_threadsafe(self._take, dict(targets))

    def lateness(self) -> list[float]:
        """Seconds by which recent probes began after their moments, oldest first."""
        return list(self._lateness)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            running = list(self._running)
            for future in running:
                future.cancel()
            self._loop.run_until_complete(asyncio.gather(*running, return_exceptions=True))
            self._loop.close()

    def _take(self, targets: dict[K, Target]) -> None:
        for key in [key for key in self._targets if self._targets[key].target != targets.get(key)]:
            self._targets.pop(key).is_gone = True
        now = self._loop.time()
        for key in targets.keys() - self._targets.keys():
            target = targets[key]
            scheduled = _Scheduled(target, now + _phase(key) * target.interval)
            self._targets[key] = scheduled
            self._push(key, scheduled)
        self._set_timer()

    def _push(self, key: K, scheduled: _Scheduled) -> None:
        jitter = scheduled.target.jitter * scheduled.target.interval
        # The next interval's moment must not come before this one's.
        moment = scheduled.due() + (random.uniform(0, jitter) if jitter else 0.0)  # noqa: S311
        self._sequence += 1
        heapq.heappush(self._heap, (moment, self._sequence, key, scheduled))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._heap and self._heap[0][3].is_gone:
            heapq.heappop(self._heap)
        if self._heap:
            moment = max(self._heap[0][0], self._loop.time() + _TICK)
            self._timer = self._loop.call_at(moment, self._begin_due)

    def _begin_due(self) -> None:
        now = self._loop.time()
        while self._heap and self._heap[0][0] <= now:
            moment, _, key, scheduled = heapq.heappop(self._heap)
            if scheduled.is_gone:
                continue
            if scheduled.is_running:
                self.skipped += 1
            else:
                self._begin(key, scheduled)
                self._lateness.append(self._loop.time() - moment)
            scheduled.number += 1
            # After a pause of the whole process: what was missed is not made up for.
            behind = int((now - scheduled.due()) // scheduled.target.interval)
            scheduled.number += max(0, behind)
            self._push(key, scheduled)
        self._set_timer()

    def _begin(self, key: K, scheduled: _Scheduled) -> None:
        scheduled.is_running = True
        self.started += 1
        future = asyncio.ensure_future(scheduled.target.probe(), loop=self._loop)
        self._running.add(future)
        future.add_done_callback(partial(self._end, key, scheduled))

    def _end(self, key: K, scheduled: _Scheduled, future: "asyncio.Future[Result]") -> None:
        self._running.discard(future)
        scheduled.is_running = False
        if scheduled.is_gone or future.cancelled():
            return
        error = future.exception()
        if error is not None:
            log.error("the probe of %s failed by itself", key, exc_info=error)
            self._report(key, Result("error", f"A fault in the agent: {error!r}.", 0.0))
        else:
            self._report(key, future.result())


def _phase(key: Hashable) -> float:
    """A number from 0 to 1 that depends on the key alone."""
    digest = blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
