# SPDX-License-Identifier: Apache-2.0
"""Flow traces from the real program's ring buffer: spans, links, and `tidegate events` beside."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from support.documents.roster import VIP4, backend, desired, vip
from support.packets.frames import CLIENT4, ip4, tcp
from support.packets.kernel import Kernel
from tidegate.agent.operator.socket import ControlSocket
from tidegate.agent.traces.flows import FlowTraces
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Desired
from tidegate.planner import plan
from tidegate.spec.events import RATE
from tidegate.telemetry.flows.gate import Limits
from tidegate.telemetry.span import Context, Span

pytestmark = pytest.mark.root

PINNED = ("events", "event_counts", "ledger", "wide_ledger")
NAMES = ("b1", "b2", "b3")
HALF = 32768


def roster(quarantined: str = "", share: int = 65536) -> Desired:
    """Return one VIP whose flows are sampled."""
    backends = [backend(name) for name in NAMES]
    if quarantined:
        backends = [
            replace(each, state="quarantine") if each.name == quarantined else each
            for each in backends
        ]
    return desired([vip("web", VIP4, flow_sampling=share)], backends)


class Host:
    """A data plane and the agent's part that traces its flows; also the sink of its spans."""

    def __init__(self, kernel: Kernel, limits: Limits, first: Desired) -> None:
        self.kernel = kernel
        self.generation = NOTHING
        self.spans: list[Span] = []
        self.first_packets: list[int] = []
        self._came = threading.Condition()
        for name in PINNED:
            bpf.pin(kernel.maps[name], str(kernel.pins / name))
        self.want(first, None)
        self.traces = FlowTraces(
            kernel.pins,
            limits,
            self,
            self.generation,
            change_of=lambda number: Context(number, number),
            first_packet=lambda number, _: self.first_packets.append(number),
        )

    def want(self, wanted: Desired, traces: FlowTraces | None) -> Generation:
        """Put the next generation in force, and pass it to the traces."""
        before, self.generation = self.generation, plan(wanted, self.generation, 1000)
        self.kernel.install(self.generation)
        if traces is not None:
            traces.follow(before, self.generation)
        return self.generation

    def emit(self, span: Span) -> None:
        """Take a span, as the exporter's queue does."""
        with self._came:
            self.spans.append(span)
            self._came.notify_all()

    def wait(self, accept: Callable[[], bool]) -> None:
        """Wait until something holds that is changed by spans."""
        with self._came:
            assert self._came.wait_for(accept, 60), self.spans


@contextmanager
def host(limits: Limits = Limits(), first: Desired | None = None) -> Iterator[Host]:  # noqa: B008
    """Return a host whose flows are traced."""
    with Kernel() as kernel:
        made = Host(kernel, limits, first or roster())
        made.traces.start()
        try:
            yield made
        finally:
            made.traces.stop()


def wait_until(accept: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not accept():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_connection_is_one_span() -> None:
    """With the names of its backend, its generation, and all that happened to it."""
    with host() as lb:
        before = time.time_ns()
        for flags in ("S", "A", "FA"):
            lb.kernel.run(tcp(flags))
        lb.wait(lambda: bool(lb.spans))
        after = time.time_ns()
    (span,) = lb.spans
    said = span.attributes
    assert (said["tidegate.vip"], said["tidegate.pool"]) == ("web", "web")
    assert said["tidegate.backend"] in NAMES
    assert (said["source.address"], said["source.port"]) == (CLIENT4, 40000)
    assert said["tidegate.generation"] == said["tidegate.generation.first"] == 1
    assert said["tidegate.flow.end"] == "finished"
    assert [moment.name.rpartition(".")[2] for moment in span.events] == [
        "new",
        "promoted",
        "finished",
    ]
    assert before - 10**9 < span.began < span.ended < after
    assert lb.first_packets == [1]
    assert lb.traces.counts[:4] == (3, 0, {}, 0)


def test_a_flow_that_loses_its_backend_is_linked_to_the_change() -> None:
    """The move is an event of its span, and the link leads to the quarantine's generation."""
    with host() as lb:
        lb.kernel.run(tcp("S"))
        lb.kernel.run(tcp("A"))
        wait_until(lambda: lb.traces.counts.events == 2)
        lb.traces.stop()
        (first,) = lb.spans
        lost = str(first.attributes["tidegate.backend"])
    with host() as lb:
        lb.kernel.run(tcp("S"))
        lb.kernel.run(tcp("A"))
        lb.want(roster(quarantined=lost), lb.traces)
        for flags in ("A", "R"):
            lb.kernel.run(tcp(flags))
        lb.wait(lambda: bool(lb.spans))
    (span,) = lb.spans
    assert [link.context for link in span.links] == [Context(2, 2)]
    (moved,) = [moment for moment in span.events if moment.name == "tidegate.flow.moved"]
    assert moved.attributes["tidegate.backend.before"] == lost
    assert moved.attributes["tidegate.backend"] == span.attributes["tidegate.backend"] != lost
    assert (first.attributes["tidegate.flow.end"], span.attributes["tidegate.flow.end"]) == (
        "stopped",
        "reset",
    )
    assert lb.first_packets[-1] == 2


def test_a_flow_that_shifts_between_hosts_is_one_trace_on_both() -> None:
    """Hosts of other histories sample the same flows, and make one tree of a flow's spans."""
    other = desired(
        [vip("old", VIP4, 81), vip("web", VIP4, flow_sampling=HALF)],
        [backend(name) for name in NAMES],
    )
    ports = range(40000, 40020)
    with host(first=roster(share=HALF)) as first, host(first=other) as second:
        second.want(roster(share=HALF), second.traces)
        for port in ports:
            first.kernel.run(tcp("S", sport=port))
            first.kernel.run(tcp("A", sport=port))
            second.kernel.run(tcp("PA", sport=port))  # the router's choice has changed
            second.kernel.run(tcp("FA", sport=port))
        second.wait(lambda: len(second.spans) == first.traces.counts.followed > 0)
    begun = {span.attributes["source.port"]: span for span in first.spans}
    went_on = {span.attributes["source.port"]: span for span in second.spans}
    assert 0 < len(begun) < len(ports)
    assert begun.keys() == went_on.keys()
    for port, span in begun.items():
        after = went_on[port]
        # Whichever of the two it is, were the bucket to end between the two packets.
        assert span.context in (after.parent, *(link.context for link in after.links))
        assert after.attributes["tidegate.backend"] == span.attributes["tidegate.backend"]
        assert not after.attributes["tidegate.flow.has_begin"]


def test_a_flood_of_events_is_dropped_by_count() -> None:
    """Every event is in a span, dropped for a reason, or lost in the kernel; the reader goes on."""
    with host(Limits(flows_per_second=50)) as lb:
        for port in range(1000, 1200):
            lb.kernel.run(tcp("S", sport=port))
        bpf.run(lb.kernel.program, tcp("S", ip4("10.77.0.200")), repeat=1)
        lb.want(roster(), lb.traces)
        wait_until(lambda: lb.traces.counts.events == 201)
        counts = lb.traces.counts
        assert counts.followed + counts.refused == 201
        assert counts.dropped == {"rate": counts.refused}
        assert counts.refused > 0


def test_what_the_kernel_loses_is_counted() -> None:
    """Above its limit per CPU it writes none, and counts them as lost."""
    with Kernel() as kernel:
        lb = Host(kernel, Limits(), roster())
        lb.traces.start()
        lb.want(desired([vip("web", VIP4, flow_sampling=65536)], []), lb.traces)
        bpf.run(kernel.program, tcp("S"), repeat=2 * RATE)
        wait_until(lambda: lb.traces.counts.events + lb.traces.counts.lost == 2 * RATE)
        lb.traces.stop()
        (span,) = lb.spans
        assert lb.traces.counts.lost > 0
        assert span.attributes["tidegate.flow.drops"] == lb.traces.counts.events
        assert span.error == "All packets were dropped: no backend."


CONFIG = """\
interfaces = ["lo"]
pin_dir = "{pins}"
control_socket = "{socket}"
[encapsulation]
source4 = "10.254.0.0/16"
source6 = "fd54::/64"
"""


def test_the_command_is_served_by_the_agent_that_reads(tmp_path: Path) -> None:
    """`tidegate events` prints what comes, and the agent's spans lack nothing of it."""
    socket = tmp_path / "agent.sock"
    with host() as lb, closing(ControlSocket(socket, lb.traces.routes())):
        config = tmp_path / "agent.toml"
        config.write_text(CONFIG.format(pins=lb.kernel.pins, socket=socket))
        wait_until((lb.kernel.pins / "events-reader").exists)
        command = [sys.executable, "-m", "tidegate.cli.main", "events", "--json", "-n", "3"]
        with subprocess.Popen(
            [*command, "-c", str(config)], stdout=subprocess.PIPE, text=True
        ) as reader:
            assert reader.stdout is not None
            wait_until(lambda: lb.traces._tap._asked > 0)
            for flags in ("S", "A", "FA"):
                lb.kernel.run(tcp(flags))
            printed = [json.loads(line) for line in reader.stdout]
            assert reader.wait(60) == 0
        lb.wait(lambda: bool(lb.spans))
        alone = subprocess.run(
            [*command, "--pin-dir", str(lb.kernel.pins)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert [event["event"] for event in printed] == ["new", "promoted", "finished"]
    assert {event["vip"] for event in printed} == {"web"}
    assert len(lb.spans[0].events) == 3
    assert alone.returncode == 2
    assert "name its file with -c" in alone.stderr


def test_it_waits_for_its_turn_where_somebody_else_reads() -> None:
    """A `tidegate events` that was there first keeps the ring buffer until it ends."""
    with Kernel() as kernel:
        lb = Host(kernel, Limits(), roster())
        command = [sys.executable, "-m", "tidegate.cli.main", "events", "--pin-dir"]
        with subprocess.Popen([*command, str(kernel.pins)], stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            kernel.run(tcp("S"))
            assert reader.stdout.readline()
            lb.traces.start()
            kernel.run(tcp("A"))
            assert reader.stdout.readline()
            reader.terminate()
        for flags in ("A", "FA"):
            kernel.run(tcp(flags))
        lb.wait(lambda: bool(lb.spans))
        lb.traces.stop()
    assert [moment.name for moment in lb.spans[0].events] == ["tidegate.flow.finished"]
