# SPDX-License-Identifier: Apache-2.0
"""Runs probes, thousands of them, each at its own moments, in one asyncio loop on its own thread.

A target's n-th probe is due at `start + phase + n * interval`, counted from the engine's start and
never from the end of the probe before, so moments do not drift, however long probes take. Phases
follow each other by the golden ratio: any number of targets that come together is spread evenly
over the interval, and adding one moves no other. Jitter is added to each moment anew, so it does
not add up either.

Time is cut into ticks. A wheel holds the targets of each tick, one timer waits for the first tick
that has any, and what is due begins together: a timer and a turn of the loop for each probe would
cost more than the probe. For the same reason TCP handshakes are no coroutines (`handshakes`).

After a pause (the process was stopped, or another thread kept the interpreter) there is no burst:
a moment that is more than half an interval ago is left out, since the next one is nearer, and of
what is left no more begins at once than `_MOST_AT_ONCE`. What a probe does, and what its results
mean, is not known here.
"""

import asyncio
import heapq
import math
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from tidegate.event_log import EventLog
from tidegate.health.handshakes import Handshake, Handshakes, Line
from tidegate.health.result import Result

log = EventLog(__name__)

K = TypeVar("K", bound=Hashable)

_TICK: Final = 0.005
"""Seconds of a tick."""

_MOST_AT_ONCE: Final = 100
"""Probes that begin in one turn of the loop: 20,000 a second, 5 ms of work at most."""

_RECENT: Final = 10_000
"""Probes whose lateness is remembered."""

NAMED_SECONDS: Final = 10.0
"""For which a probe that did not take its way is worth a word; after that a further one is news."""

_GOLDEN: Final = (5**0.5 - 1) / 2


class Way(Protocol):
    """Tells whether packets of a mark leave by the way that the mark names."""

    @property
    def is_closed(self) -> bool:
        """Whether they would leave by another one."""

    def sent(self, mark: int) -> int | None:
        """Return a number that changes with each such packet; None if that cannot be told."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is probed, and when.

    Attributes:
        probe: a TCP handshake, or what begins any other probe, which ends by itself in less than
            the interval, and does not raise for a failure.
        interval: seconds between two probes.
        jitter: share of the interval by which a probe may be later, 0 to 1.
        mark: of its packets; 0: it takes no way of its own.
    """

    probe: Handshake | Callable[[], Awaitable[Result]]
    interval: float
    jitter: float = 0.0
    mark: int = 0


class Unsent(NamedTuple):
    """The last probe that did not take its way: how it ended, and when (monotonic clock, s)."""

    reason: str
    at: float


@dataclass(slots=True, eq=False)
class _Scheduled(Generic[K]):
    """A target with its place in time."""

    key: K
    target: Target
    start: float
    line: Line | None = None
    number: int = 0
    moment: float = 0.0
    """When the next probe is due on the loop's clock, with its jitter."""
    sent: int | None = None
    """What the way said when the probe that runs began."""
    is_running: bool = False
    is_gone: bool = False

    def settle(self) -> None:
        """Compute the next moment. It does not come before that of the last probe."""
        interval = self.target.interval
        self.moment = self.start + self.number * interval
        if self.target.jitter:
            self.moment += random.uniform(0, self.target.jitter * interval)  # noqa: S311


class Engine(Generic[K]):
    """Probes a set of targets, from `start` to `stop`.

    Args:
        report: gets each result, on the engine's thread; should be quick.
        way: of marked packets. A probe none of whose packets took it found out nothing of its
            target, whatever the result: it is counted and not reported.
    """

    def __init__(self, report: Callable[[K, Result], None], way: Way | None = None) -> None:
        self._report = report
        self._way = way
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tidegate-health", daemon=True)
        self._targets: dict[K, _Scheduled[K]] = {}
        self._handshakes = Handshakes(self._loop)
        self._wheel: dict[int, list[_Scheduled[K]]] = {}
        self._ticks: list[int] = []
        """Heap of the ticks that are in the wheel."""
        self._overdue: deque[_Scheduled[K]] = deque()
        self._known = 0
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Future[Result]] = set()
        self._lateness: deque[float] = deque(maxlen=_RECENT)
        self.started = 0
        """Probes begun."""
        self.skipped = 0
        """Probes that were due while the one before was still running."""
        self.unsent = 0
        """Probes that did not take their way."""
        self.last_unsent = Unsent("", -math.inf)
        self.missed = 0
        """Probes that were left out after a pause."""

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """Cancel what runs and end the thread; return whether it ended in time."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def probe(self, targets: Mapping[K, Target]) -> None:
        """Make these the targets, from any thread. A target that stays as it was keeps its time."""
        self._loop.call_soon_threadsafe(self._take, dict(targets))

    def lateness(self) -> list[float]:
        """Return the seconds by which recent probes began after their moments, oldest first."""
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
            self._handshakes.close()
            self._loop.close()

    def _take(self, targets: dict[K, Target]) -> None:
        for key in [key for key in self._targets if self._targets[key].target != targets.get(key)]:
            gone = self._targets.pop(key)
            gone.is_gone = True
            if gone.line is not None:
                self._handshakes.drop(gone.line)
        now = self._loop.time()
        for key in targets.keys() - self._targets.keys():
            self._add(key, targets[key], now)
        self._set_timer()

    def _add(self, key: K, target: Target, now: float) -> None:
        self._known += 1
        phase = self._known * _GOLDEN % 1.0
        scheduled = self._targets[key] = _Scheduled(key, target, now + phase * target.interval)
        if isinstance(target.probe, Handshake):
            scheduled.line = Line(target.probe, partial(self._finish, scheduled))
        scheduled.settle()
        self._slot(scheduled.moment).append(scheduled)

    def _slot(self, moment: float) -> list[_Scheduled[K]]:
        """Return the targets of the first tick that is not before this moment."""
        tick = math.ceil(moment / _TICK)
        slot = self._wheel.get(tick)
        if slot is None:
            slot = self._wheel[tick] = []
            heapq.heappush(self._ticks, tick)
        return slot

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ticks or self._overdue:
            moment = self._ticks[0] * _TICK if not self._overdue else self._loop.time() + _TICK
            self._timer = self._loop.call_at(moment, self._turn)

    def _turn(self) -> None:
        """Begin what is due, and end what has waited for too long."""
        now = self._loop.time()
        while self._ticks and self._ticks[0] * _TICK <= now:
            self._overdue.extend(self._wheel.pop(heapq.heappop(self._ticks)))
        began = 0
        while self._overdue and began < _MOST_AT_ONCE:
            began += self._begin_due(self._overdue.popleft())
        self._handshakes.expire()
        self._set_timer()

    def _begin_due(self, scheduled: _Scheduled[K]) -> bool:
        """Begin a probe, unless the last one still runs, and schedule the next one."""
        if scheduled.is_gone:
            return False
        late = self._loop.time() - scheduled.moment
        interval = scheduled.target.interval
        begins = not scheduled.is_running and late <= max(interval / 2, _TICK)
        if begins:
            self._begin(scheduled)
            self._lateness.append(late)
        elif scheduled.is_running:
            self.skipped += 1
        else:
            self.missed += 1
        # The next moment that is not past, or this one's follower if that is later.
        scheduled.number += 1 + max(0, int(late // interval))
        scheduled.settle()
        self._slot(scheduled.moment).append(scheduled)
        return begins

    def _begin(self, scheduled: _Scheduled[K]) -> None:
        probe, mark = scheduled.target.probe, scheduled.target.mark
        if self._way is not None and mark:
            if self._way.is_closed:
                self._note_unsent("the way is closed")
                return
            scheduled.sent = self._way.sent(mark)
        scheduled.is_running = True
        self.started += 1
        if scheduled.line is not None:
            # Somebody must look at the clock when its limit has passed.
            self._slot(self._loop.time() + scheduled.line.handshake.limit)
            self._handshakes.begin(scheduled.line)
        elif not isinstance(probe, Handshake):
            future = asyncio.ensure_future(probe(), loop=self._loop)
            self._running.add(future)
            future.add_done_callback(partial(self._end, scheduled))

    def _end(self, scheduled: _Scheduled[K], future: "asyncio.Future[Result]") -> None:
        self._running.discard(future)
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            log.error("probe_crashed", exc_info=error, target=scheduled.key)
            self._finish(scheduled, Result("error", f"A fault in the agent: {error!r}.", 0.0))
        else:
            self._finish(scheduled, future.result())

    def _finish(self, scheduled: _Scheduled[K], result: Result) -> None:
        scheduled.is_running = False
        if scheduled.is_gone:
            return
        before, way = scheduled.sent, self._way
        if way is not None and before is not None and way.sent(scheduled.target.mark) == before:
            self._note_unsent(result.reason or "it passed")
        else:
            self._report(scheduled.key, result)

    def _note_unsent(self, reason: str) -> None:
        now = self._loop.time()
        if now - self.last_unsent.at > NAMED_SECONDS:
            log.warning("probes_unsent", reason=reason)
        self.unsent += 1
        self.last_unsent = Unsent(reason, now)
