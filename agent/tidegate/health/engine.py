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
what is left no more begins at once than `_MOST_AT_ONCE`. And what ran out while the loop did not
run is looked at twice: what has arrived meanwhile comes first.

Probes share the process's descriptors with the rest of the agent (`places`). One that finds none
free waits for its turn, as long as half an interval; then it is left out, and reported as what this
host could not do. What a probe does, and what its results mean, is not known here; what it raises
is a fault of ours, and says nothing about a backend.
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
from typing import Final, Generic, TypeVar

from tidegate.event_log import EventLog
from tidegate.health.blame import crowded as no_descriptor
from tidegate.health.handshakes import Handshake, Handshakes, Line
from tidegate.health.places import Places
from tidegate.health.result import Result
from tidegate.health.way import NAMED_SECONDS, Unsent, Way

log = EventLog(__name__)

K = TypeVar("K", bound=Hashable)

_TICK: Final = 0.005
"""Seconds of a tick."""

_MOST_AT_ONCE: Final = 100
"""Probes that begin in one turn of the loop: 20,000 a second, 5 ms of work at most."""

_STALL: Final = 0.05
"""Seconds by which a turn is late on a loop that was held up."""

_RECOUNT: Final = 1.0
"""Seconds between two looks at how many descriptors there are, while some lack."""

_RECENT: Final = 10_000
"""Probes whose lateness is remembered."""

_GOLDEN: Final = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Target:
    """What is probed, and when.

    Attributes:
        probe: a TCP handshake, or what begins any other probe, which ends by itself in less than
            the interval, and does not raise for a failure.
        interval: seconds between two probes.
        jitter: share of the interval by which a probe may be later, 0 to 1.
        mark: of its packets; 0: it takes no way of its own.
        descriptors: how many it has open at once, at most.
    """

    probe: Handshake | Callable[[], Awaitable[Result]]
    interval: float
    jitter: float = 0.0
    mark: int = 0
    descriptors: int = 1


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
    taken: int = 0
    """Places that it has."""
    future: "asyncio.Future[Result] | None" = None

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
        self._places = Places()
        self._counted = 0.0
        self._is_blocked = False
        """Whether probes that are due wait for a descriptor."""
        self._looks_again = False
        self._is_ending = False
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
        """Probes that were left out after a pause, or for want of a descriptor."""

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
            self._is_ending = True  # nothing begins while the rest ends
            running = list(self._running)
            for future in running:
                future.cancel()
            self._loop.run_until_complete(asyncio.gather(*running, return_exceptions=True))
            self._handshakes.close()
            self._loop.close()

    def _take(self, targets: dict[K, Target]) -> None:
        if self._is_ending:
            return
        for key in [key for key in self._targets if self._targets[key].target != targets.get(key)]:
            gone = self._targets.pop(key)
            self._leave(gone)
        now = self._loop.time()
        for key in targets.keys() - self._targets.keys():
            self._add(key, targets[key], now)
        self._count()
        self._set_timer()

    def _leave(self, gone: _Scheduled[K]) -> None:
        """End what runs for a target that is gone: it leaves nothing open."""
        gone.is_gone = True
        if gone.line is not None:
            self._handshakes.drop(gone.line)
            self._give_back(gone)
        elif gone.future is not None:
            gone.future.cancel()

    def _count(self) -> None:
        """Count descriptors, and those that targets want; let go of sockets that are too many."""
        was_short, self._counted = self._places.is_short, self._loop.time()
        others = [each.target.descriptors for each in self._targets.values() if each.line is None]
        lasting = len(self._targets) - len(others)
        held = self._handshakes.open + sum(
            e.taken for e in self._targets.values() if e.line is None
        )
        self._places.count(lasting=lasting, momentary=sum(others), held=held)
        if self._places.is_short and not was_short:
            log.warning(
                "descriptors_short",
                wanted=lasting + sum(others),
                for_probes=self._places.budget,
                limit=self._places.limit,
                reason="Probes take turns; raise LimitNOFILE in the agent's unit.",
            )
            for each in self._targets.values():
                if each.line is not None and not each.is_running:
                    self._handshakes.drop(each.line)

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
        if self._ticks or self._overdue or self._looks_again:
            at_once = self._overdue or self._looks_again
            moment = self._loop.time() + _TICK if at_once else self._ticks[0] * _TICK
            self._timer = self._loop.call_at(moment, self._turn)

    def _turn(self) -> None:
        """Begin what is due, and end what has waited for too long."""
        if self._is_ending:
            return
        try:
            now = self._loop.time()
            late = now - self._timer.when() if self._timer is not None else 0.0
            while self._ticks and self._ticks[0] * _TICK <= now:
                self._overdue.extend(self._wheel.pop(heapq.heappop(self._ticks)))
            self._begin_some()
            # After a stall the kernel, too, may have answers that it has not handed out.
            self._looks_again = late > _STALL and not self._looks_again
            if not self._looks_again:
                self._handshakes.expire()
        finally:
            self._set_timer()

    def _begin_some(self) -> None:
        began, was_blocked, self._is_blocked = 0, self._is_blocked, False
        if was_blocked and self._loop.time() - self._counted >= _RECOUNT:
            self._count()
        while self._overdue and began < _MOST_AT_ONCE:
            first = self._overdue[0]
            is_blocked = not first.is_gone and not first.is_running and not self._has_place(first)
            self._is_blocked |= is_blocked
            if is_blocked and not self._is_missed(first):
                return
            began += self._begin_due(self._overdue.popleft(), crowded=was_blocked or is_blocked)

    def _has_place(self, scheduled: _Scheduled[K]) -> bool:
        if scheduled.line is not None and not self._places.is_short:
            return True  # its socket stays, and is counted already
        return self._places.has(scheduled.target.descriptors)

    def _is_missed(self, scheduled: _Scheduled[K]) -> bool:
        """Return whether the next moment is nearer than the one that was not kept."""
        late = self._loop.time() - scheduled.moment
        return late > max(scheduled.target.interval / 2, _TICK)

    def _begin_due(self, scheduled: _Scheduled[K], *, crowded: bool) -> bool:
        """Begin a probe, unless the last one still runs, and schedule the next one."""
        if scheduled.is_gone:
            return False
        late = self._loop.time() - scheduled.moment
        begins = not scheduled.is_running and not self._is_missed(scheduled)
        if begins:
            self._begin(scheduled)
            self._lateness.append(late)
        elif scheduled.is_running:
            self.skipped += 1
        else:
            self._miss(scheduled, crowded=crowded)
        # The next moment that is not past, or this one's follower if that is later.
        scheduled.number += 1 + max(0, int(late // scheduled.target.interval))
        scheduled.settle()
        self._slot(scheduled.moment).append(scheduled)
        return begins

    def _miss(self, scheduled: _Scheduled[K], *, crowded: bool) -> None:
        self.missed += 1
        if crowded:
            self._tell(scheduled, no_descriptor(self._places.limit, 0.0))

    def _begin(self, scheduled: _Scheduled[K]) -> None:
        mark = scheduled.target.mark
        if self._way is not None and mark:
            if self._way.is_closed:
                self._note_unsent("the way is closed")
                return
            scheduled.sent = self._way.sent(mark)
        scheduled.is_running = True
        self.started += 1
        probe = scheduled.target.probe
        if scheduled.line is None or self._places.is_short:
            scheduled.taken = scheduled.target.descriptors
            self._places.take(scheduled.taken)
        try:
            if scheduled.line is not None:
                # Somebody must look at the clock when its limit has passed.
                self._slot(self._loop.time() + scheduled.line.handshake.limit)
                self._handshakes.begin(scheduled.line)
            elif not isinstance(probe, Handshake):
                scheduled.future = asyncio.ensure_future(probe(), loop=self._loop)
                self._running.add(scheduled.future)
                scheduled.future.add_done_callback(partial(self._end, scheduled))
        except Exception as error:  # noqa: BLE001 - of one probe, which must not end all others
            self._crash(scheduled, error)

    def _end(self, scheduled: _Scheduled[K], future: "asyncio.Future[Result]") -> None:
        self._running.discard(future)
        scheduled.future = None
        if future.cancelled():
            self._give_back(scheduled)
            return
        error = future.exception()
        if error is not None:
            self._crash(scheduled, error)
        else:
            self._finish(scheduled, future.result())

    def _crash(self, scheduled: _Scheduled[K], error: BaseException) -> None:
        log.error("probe_crashed", exc_info=error, target=scheduled.key)
        self._finish(scheduled, Result("host", f"A fault in the agent: {error!r}.", 0.0))

    def _finish(self, scheduled: _Scheduled[K], result: Result) -> None:
        if scheduled.line is not None and self._places.is_short:
            self._handshakes.drop(scheduled.line)
        self._give_back(scheduled)
        if not result.is_finding and self._loop.time() - self._counted >= _RECOUNT:
            self._count()
        self._tell(scheduled, result)

    def _give_back(self, scheduled: _Scheduled[K]) -> None:
        scheduled.is_running = False
        self._places.give(scheduled.taken)
        scheduled.taken = 0

    def _tell(self, scheduled: _Scheduled[K], result: Result) -> None:
        before, scheduled.sent = scheduled.sent, None
        if scheduled.is_gone:
            return
        way, mark = self._way, scheduled.target.mark
        has_left = way is None or before is None or way.sent(mark) != before
        if result.is_finding and not has_left:
            self._note_unsent(result.reason or "it passed")
            return
        try:
            self._report(scheduled.key, result)
        except Exception as error:
            log.error("report_crashed", exc_info=error, target=scheduled.key)

    def _note_unsent(self, reason: str) -> None:
        now = self._loop.time()
        if now - self.last_unsent.at > NAMED_SECONDS:
            log.warning("probes_unsent", reason=reason)
        self.unsent += 1
        self.last_unsent = Unsent(reason, now)
