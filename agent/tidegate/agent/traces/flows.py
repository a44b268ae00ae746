# SPDX-License-Identifier: Apache-2.0
"""Reads the ring buffer of events and has spans made of flows, in a thread of its own.

Nobody waits for this thread: the kernel drops what it does not read in time, the loop only leaves
new generations in a list, and the sink drops what it cannot take. What it does is bounded per
second by `telemetry.flows.gate`, whatever comes, and every event that is in no span is counted.

The reader sleeps between two reads, so that a batch is worth its price. A ring buffer of 1 MiB
holds more than half a second of what two CPUs may write.

Where another process reads the ring buffer (`tidegate events`, started before), it waits until that
one has ended.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.agent.config import AgentConfig
from tidegate.agent.traces.changes import ChangeTraces
from tidegate.agent.traces.flow_names import FlowNames
from tidegate.agent.traces.flow_tap import FlowTap
from tidegate.dataplane.inspect.event_stream import RingReader
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.event_log import EventLog
from tidegate.http_server import Routes
from tidegate.model.generation import Generation
from tidegate.telemetry.flows.follow import Flow, Flows
from tidegate.telemetry.flows.gate import Limits
from tidegate.telemetry.flows.spans import Roots, span_of
from tidegate.telemetry.span import Context, Sink

log = EventLog(__name__)

_WAIT: Final = 0.5
_PAUSE: Final = 0.05
"""Seconds to wait for an event, and between two reads."""
MOST_AT_STOP: Final = 8192
"""Open flows that get a span when the agent ends, which takes 0.3 s; more are counted."""
_RETRY: Final = 2.0
"""Seconds until the next try, where the ring buffer cannot be read."""


class FlowCounts(NamedTuple):
    """What became of events since the agent began.

    Attributes:
        events: that were read.
        lost: that the kernel did not write: above its limit, or the ring buffer full.
        dropped: that were read and that are in no span, by reason.
        floods: that were about a VIP and no flow.
        refused: flows that got no span, because there were too many.
        followed: flows that are open now.
        spans: that were made.
    """

    events: int = 0
    lost: int = 0
    dropped: Mapping[str, int] = {}
    floods: int = 0
    refused: int = 0
    followed: int = 0
    spans: int = 0


class FlowTraces:
    """Makes spans of flows, from `start` to `stop`.

    Args:
        pins: folder of the data plane's pins.
        limits: how many flows.
        sink: takes the spans; None has none made, and leaves the ring buffer alone, as a limit of
            no flows does.
        generation: in force.
        change_of: context of the change trace of a generation, if it has one; called in the thread.
        first_packet: called, in the thread, with the generation of an event and its time (ns since
            1970), whenever that generation is above all that were seen before.
    """

    def __init__(
        self,
        pins: Path,
        limits: Limits,
        sink: Sink | None,
        generation: Generation,
        change_of: Callable[[int], Context | None] = lambda _: None,
        first_packet: Callable[[int, int], None] = lambda _number, _at: None,
    ) -> None:
        self._pins = pins
        self._sink = sink if limits.flows_per_second else None
        self._names = FlowNames(generation, change_of)
        self._first_packet = first_packet
        self._newest = 0
        self._fresh_generations: list[tuple[Generation, Generation]] = []
        self._lock = threading.Lock()
        self._flows = Flows(limits, time.monotonic_ns())
        self._roots = Roots()
        self._events = self._lost = self._spans = 0
        self._fault = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flow-traces", daemon=True)
        self._tap = FlowTap()
        self.counts = FlowCounts()
        """As of the last read; for any thread."""

    @property
    def is_active(self) -> bool:
        """Whether flows are traced."""
        return self._sink is not None

    def start(self) -> None:
        """Begin to read."""
        if self.is_active:
            self._thread.start()

    def routes(self) -> Routes:
        """Return the routes of the control socket that it answers."""
        return {("GET", "/events"): self._tap.answer} if self.is_active else {}

    def has_samples(self, generation: Generation) -> bool:
        """Return whether packets of this generation will be reported, if any come."""
        return self.is_active and any(p.vip.flow_sampling for p in generation.vips.values())

    def stop(self) -> None:
        """Hand the sink what is known of open flows, and end."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def follow(self, previous: Generation, generation: Generation) -> None:
        """Take note of a generation that came into force; called by the agent's loop."""
        if self.is_active:
            with self._lock:
                self._fresh_generations.append((previous, generation))

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                with RingReader(self._pins) as ring:
                    self._note_fault("")
                    self._read(ring)
            except (DataplaneError, CapabilityError, OSError) as error:  # OSError: no descriptors
                self._note_fault(str(error))
                self._update_names()
                self._ended.wait(_RETRY)
        left = self._flows.stop()
        if len(left) > MOST_AT_STOP:
            self._flows.dropped["stop"] += sum(map(_events, left[MOST_AT_STOP:]))
        self._emit_spans(left[:MOST_AT_STOP], time.time_ns() - time.monotonic_ns())
        self._update_counts()

    def _note_fault(self, fault: str) -> None:
        """Log why events cannot be read, once, and that they can be again."""
        if fault and fault != self._fault:
            log.warning("flows_not_traced", reason=fault)
        elif self._fault and not fault:
            log.info("flows_traced_again")
        self._fault = fault

    def _read(self, ring: RingReader) -> None:
        while not self._ended.is_set():
            records = ring.read(_WAIT)
            self._lost += ring.lost()
            self._process(records)
            self._ended.wait(_PAUSE)

    def _process(self, records: npt.NDArray[np.void]) -> None:
        now = time.monotonic_ns()
        offset = time.time_ns() - now
        self._events += len(records)
        self._tap.put(records, self._lost)
        self._report_first_packets(records, offset)
        over = self._flows.take(records, now)
        self._update_names()  # after the events, before their names
        self._emit_spans(over, offset)
        self._update_counts()

    def _update_names(self) -> None:
        with self._lock:
            came, self._fresh_generations = self._fresh_generations, []
        for previous, generation in came:
            self._names.follow(previous, generation)

    def _report_first_packets(self, records: npt.NDArray[np.void], offset: int) -> None:
        generations = records["generation"]
        if not len(records) or generations.max() <= self._newest:
            return
        highest = np.maximum.accumulate(generations)
        rises = np.flatnonzero(np.diff(highest, prepend=np.uint64(self._newest)) > 0)
        for number, at in records[rises][["generation", "time"]].tolist():
            if number > self._newest:
                self._newest = number
                self._first_packet(number, at + offset)

    def _emit_spans(self, over: list[Flow], offset: int) -> None:
        if self._sink is None:
            return
        for flow in over:
            self._sink.emit(span_of(flow, self._names.naming, self._roots, offset))
        self._spans += len(over)

    def _update_counts(self) -> None:
        flows = self._flows
        self.counts = FlowCounts(
            self._events,
            self._lost,
            Counter(flows.dropped),
            flows.floods,
            flows.refused,
            flows.followed,
            self._spans,
        )


def flow_traces(
    config: AgentConfig, sink: Sink | None, in_force: Generation, changes: ChangeTraces
) -> FlowTraces:
    """Return the traces of a data plane's flows, linked to the changes that moved them."""
    return FlowTraces(
        Path(config.pin_dir),
        config.telemetry.flows.limits(),
        sink,
        in_force,
        changes.context_of,
        changes.pending.first_packet,
    )


def _events(flow: Flow) -> int:
    """Return how many events it is made of."""
    return flow.untold + sum(happening.times for happening in flow.happenings)
