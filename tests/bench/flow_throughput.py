# SPDX-License-Identifier: Apache-2.0
"""What events of flows cost: a part of `./dev bench telemetry`.

First arrays of events, as the ring buffer of a host with many CPUs would give them, at several
rates; beside them a loop that wants to wake every 5 ms, as the agent's loop shares the interpreter
with the reader. Then 50,000 events/s with their spans sent over gRPC to a receiver in a process of
its own. Then the real program: two processes offer it packets of sampled flows, and the agent's
reader handles what comes. CPU is that of the reader, and of the exporter where there is one.
"""

import os
import subprocess
import sys
import threading
import time
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from support.collector.otlp_receiver import Receiver
from support.documents.roster import VIP4, backend, desired, vip
from support.packets.flow_events import FlowEvent, records
from support.packets.frames import ip4, tcp
from support.packets.kernel import Kernel
from tidegate.agent.traces.flow_names import FlowNames
from tidegate.agent.traces.flows import FlowTraces
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.model.decision import EventKind
from tidegate.model.generation import NOTHING
from tidegate.planner import plan
from tidegate.telemetry.export.pipeline import Pipeline
from tidegate.telemetry.export.settings import TelemetrySettings
from tidegate.telemetry.flows.follow import Flows
from tidegate.telemetry.flows.gate import Limits
from tidegate.telemetry.flows.spans import Roots, span_of
from tidegate.telemetry.sdk import Identity
from tidegate.telemetry.span import Span

SECONDS: Final = 5
LOOKS: Final = 20
"""Per second, as the reader pauses for 50 ms."""
RATES: Final = (0, 10_000, 50_000, 200_000, 1_000_000)
TICK: Final = 0.005
OFFERED: Final = 25_000
"""Events per second, by each of two processes."""
PINNED: Final = ("events", "event_counts")
LIFE: Final = (EventKind.NEW, EventKind.PROMOTED, EventKind.FINISHED)


class Drain:
    """Takes spans and counts them; exporting is measured elsewhere."""

    count = 0

    def emit(self, _: Span) -> None:
        """Take one."""
        self.count += 1


class Cost(NamedTuple):
    """What a rate cost, in s of CPU per s, and what came of it."""

    share: float
    spans: int
    dropped: int
    late: float


def batch(first: int, size: int, rate: int) -> npt.NDArray[np.void]:
    """Events of flows of three events each, from the `first` event on."""
    made = np.repeat(records([FlowEvent(EventKind.NEW)]), size)
    number = first + np.arange(size)
    made["kind"] = np.array(LIFE, np.uint8)[number % 3]
    made["source_port"] = 1024 + number // 3 % 60_000
    made["time"] = number * 1_000_000_000 // rate
    return made


def handle(rate: int, costs: list[Cost]) -> None:
    """One thread's work at this rate, in real time."""
    flows, roots, names = Flows(Limits(), 0), Roots(), FlowNames(NOTHING, lambda _: None)
    size, spans, used = rate // LOOKS, 0, 0.0
    begin = time.monotonic()
    for i in range(SECONDS * LOOKS):
        events = batch(i * size, size, max(rate, 1))
        time.sleep(max(0.0, begin + i / LOOKS - time.monotonic()))
        before = time.thread_time()
        for flow in flows.take(events, (i + 1) * 1_000_000_000 // LOOKS):
            span_of(flow, names.naming, roots, 0)
            spans += 1
        used += time.thread_time() - before
    costs.append(Cost(used / SECONDS, spans, flows.dropped.total(), 0.0))


def arrays() -> None:
    """Print what each rate costs, and how late the loop beside it is."""
    for rate in RATES:
        costs: list[Cost] = []
        worker = threading.Thread(target=handle, args=(rate, costs))
        worker.start()
        late = []
        while worker.is_alive():
            due = time.monotonic() + TICK
            time.sleep(TICK)
            late.append(time.monotonic() - due)
        (cost,) = costs
        p50, p99 = np.percentile(late, [50, 99]) * 1e3
        print(
            f"arrays: {rate:>9,} events/s: {cost.share:6.1%} of a core, {cost.spans:,} spans, "
            f"{cost.dropped:,} events above the limits; a loop of 5 ms beside it is late by "
            f"{p50:.2f} ms p50, {p99:.2f} ms p99"
        )


def export() -> None:
    """Print what a rate costs with the export of its spans."""
    rate = 50_000
    size = rate // LOOKS
    flows, roots, names = Flows(Limits(), 0), Roots(), FlowNames(NOTHING, lambda _: None)
    batches = [batch(i * size, size, rate) for i in range(SECONDS * LOOKS)]
    command = [sys.executable, __file__, "receive"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as receiver:
        assert receiver.stdout is not None
        endpoint = receiver.stdout.readline().strip()
        pipeline = Pipeline(TelemetrySettings(endpoint=endpoint), Identity("bench", "lb1"))
        used, begin, spans = time.process_time(), time.monotonic(), 0
        for i, events in enumerate(batches):
            time.sleep(max(0.0, begin + i / LOOKS - time.monotonic()))
            for flow in flows.take(events, (i + 1) * 1_000_000_000 // LOOKS):
                pipeline.emit(span_of(flow, names.naming, roots, 0))
                spans += 1
        pipeline.close()
        seconds, used = time.monotonic() - begin, time.process_time() - used
        received = int(receiver.communicate("")[0])
    print(
        f"export: {rate:,} events/s, {spans:,} spans made and {received:,} received in "
        f"{seconds:.1f} s; {used / seconds:.1%} of a core"
    )
    if received != spans:
        raise SystemExit(1)


def receive() -> None:
    """Take spans until standard input ends; print where it is, and at the end how many came."""
    with Receiver() as receiver:
        print(receiver.endpoint, flush=True)
        sys.stdin.read()
        print(len(receiver.received.spans))


def offer(pin: str, cpu: int) -> None:
    """Send packets of sampled flows through the program; print how many events they make."""
    os.sched_setaffinity(0, {cpu})
    program, number = bpf.open_pin(pin), 0
    life = [bytearray(tcp(flags, ip4(f"10.77.{1 + cpu}.1"))) for flags in ("S", "A", "FA")]
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for frame in life:
            frame[34:36] = (1024 + number % 60_000).to_bytes(2)
            bpf.run(program, bytes(frame))
        number += 1
        if number % 100 == 0:
            time.sleep(max(0.0, end - SECONDS + number * len(life) / OFFERED - time.monotonic()))
    print(number * len(life))


def program() -> None:
    """Print what became of the events of the real program."""
    wanted = desired([vip("web", VIP4, flow_sampling=65536)], [backend("b1")])
    with Kernel() as kernel:
        kernel.install(plan(wanted, NOTHING, 1000))
        for name in PINNED:
            bpf.pin(kernel.maps[name], str(kernel.pins / name))
        pin = str(kernel.pins / "offered")
        bpf.pin(kernel.program, pin)
        drain = Drain()
        traces = FlowTraces(kernel.pins, Limits(), drain, kernel.publisher.in_force)
        traces.start()
        used, begin = time.process_time(), time.monotonic()
        load = [
            subprocess.Popen([sys.executable, __file__, pin, str(cpu)], stdout=subprocess.PIPE)
            for cpu in range(2)
        ]
        offered = sum(int(each.communicate()[0]) for each in load)
        seconds, used = time.monotonic() - begin, time.process_time() - used
        traces.stop()
        counts = traces.counts
    print(
        f"program: {offered:,} events offered in {seconds:.1f} s ({offered / SECONDS:,.0f}/s while "
        f"there was load), {counts.events:,} read, {counts.lost:,} lost in the kernel (10,000 per "
        f"second and CPU), {sum(counts.dropped.values()):,} above the agent's limits, "
        f"{counts.spans:,} spans; {used / seconds:.1%} of a core"
    )
    if counts.events + counts.lost != offered:
        raise SystemExit(f"{offered - counts.events - counts.lost} events are not accounted for")


def main() -> None:
    """All parts."""
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    arrays()
    export()
    program()


if __name__ == "__main__":
    if sys.argv[1:] == ["receive"]:
        receive()
    elif len(sys.argv) > 1:
        offer(sys.argv[1], int(sys.argv[2]))
    else:
        main()
