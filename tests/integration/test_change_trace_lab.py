# SPDX-License-Identifier: Apache-2.0
"""Change traces from a write with etcdctl to the packet, on two hosts, at a real OTLP receiver.

One host's agent exports over gRPC and the other's over HTTP.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from support.collector.otlp_receiver import Received, ReceivedSpan, Receiver
from tidegate.keyspace import paths
from tidegate.lab import netns
from tidegate.lab.agents import FLEET, RELEASE, ROOT, config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import CONTROL
from tidegate.lab.rack import Lab
from tidegate.telemetry.names.metric_attributes import STAGE
from tidegate.telemetry.names.metrics import STAGE_DURATION
from tidegate.telemetry.span import Context, format_traceparent, new_span_id, new_trace_id

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=3, lbs=2)]

HOSTS: Final = {"lb1": "grpc", "lb2": "http"}
PREFIX: Final = "tidegate.change."
WORK: Final = (
    "receive",
    "validate",
    "guard",
    "plan",
    "disruption",
    "program",
    "entries",
    "fill",
    "swap",
    "vips",
    "record",
    "journal",
)
TELEMETRY: Final = """
[telemetry]
endpoint = "{endpoint}"
protocol = "{protocol}"
"""


def writer() -> Context:
    """Return the span of a control system that writes something."""
    return Context(new_trace_id(), new_span_id())


def backend(lab: Lab, name: str, context: Context, state: str = "active") -> dict[str, Any]:
    traceparent = format_traceparent(context)
    return {"address": str(lab.address(name)), "state": state, "traceparent": traceparent}


@dataclass
class TracedLab:
    """A lab with two LB hosts whose agents export to a receiver each."""

    lab: Lab
    control: Control
    receivers: Mapping[str, Receiver] = field(default_factory=dict)
    status: dict[str, StatusWatch] = field(default_factory=dict)

    def put(self, name: str, context: Context, state: str = "active") -> int:
        """Write a backend's document with a trace context; return its revision."""
        document = backend(self.lab, name, context, state)
        return self.control.put(f"pools/web/backends/{name}", document).revision

    def put_at_once(self, documents: Mapping[str, Mapping[str, Any]]) -> int:
        """Write documents in one transaction of etcd; return its revision."""
        prefix = paths.release_prefix(ROOT, FLEET, RELEASE)
        puts = [
            f"put {prefix}{key} {json.dumps(json.dumps(each))}" for key, each in documents.items()
        ]
        order = "\n".join(["", *puts, "", "", ""])
        command = ["etcdctl", "-w", "json", "txn"]
        answer = json.loads(self.lab.node(CONTROL).run(command, text=order).stdout)
        assert answer["succeeded"]
        return int(answer["header"]["revision"])

    def wait_applied(self, revision: int) -> None:
        """Wait until it is in force on each host."""
        for watch in self.status.values():
            watch.wait_applied(revision)

    def visit(self, lb: str) -> None:
        """Have a client's connection go through this host."""
        via = ["via", str(self.lab.address(lb))]
        self.lab.node("router").run(["ip", "route", "replace", "10.99.0.0/24", *via])
        url = f"http://{self.lab.vip4()}/"
        self.lab.client(1).run(["curl", "-sS", "--max-time", "20", url])

    def trace(self, lb: str, context: Context, last: str = "first_packet") -> list[ReceivedSpan]:
        """Return a host's spans of a trace, when the one that is sent after the others is there."""

        def is_there(received: Received) -> bool:
            return any(s.name == PREFIX + last for s in received.trace(context.trace_id))

        spans = self.receivers[lb].wait_for(is_there, 40).trace(context.trace_id)
        assert {span.resource["host.name"] for span in spans} == {lb}
        return spans


@pytest.fixture(scope="module")
def traced_lab(shared_lab: Lab) -> Iterator[TracedLab]:
    """Give the file's lab with agents that have two backends in force and export traces."""
    lab = shared_lab
    address = str(lab.address(CONTROL))
    made = TracedLab(lab, Control(lab))
    made.receivers = {lb: Receiver(p, address=address) for lb, p in HOSTS.items()}
    made.control.put("pools/web", {"max_removed_percent": 40})
    vip = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    made.control.put("vips/www", vip | {"flow_sampling": 65536})
    for name in ("b1", "b2"):
        revision = made.put(name, writer())
    for lb, protocol in HOSTS.items():
        with netns.entered(lab.node(CONTROL).namespace):
            made.receivers[lb].start()
        endpoint = made.receivers[lb].endpoint
        with config_path(lab.spec, lb).open("a") as file:
            file.write(TELEMETRY.format(endpoint=endpoint, protocol=protocol))
        lab.start_agent(lb)
    with StatusWatch(lab, "lb1") as first, StatusWatch(lab, "lb2") as second:
        made.status = {"lb1": first, "lb2": second}
        made.wait_applied(revision)
        yield made
    for receiver in made.receivers.values():
        receiver.stop()


def root_of(spans: list[ReceivedSpan], parent: Context) -> ReceivedSpan:
    (found,) = (s for s in spans if s.name == "tidegate.change" and s.parent == parent.span_id)
    return found


def below(spans: list[ReceivedSpan], parent: ReceivedSpan) -> list[ReceivedSpan]:
    """Return the children of a span, in the order in which they ended."""
    found = (span for span in spans if span.parent == parent.context.span_id)
    return sorted(found, key=lambda span: (span.ended, span.began))


def stages(spans: list[ReceivedSpan], parent: ReceivedSpan) -> list[str]:
    return [span.name.removeprefix(PREFIX) for span in below(spans, parent)]


def test_a_write_is_one_trace_from_etcd_to_each_hosts_packet(traced_lab: TracedLab) -> None:
    """Below the writer's span: every stage, in order and without a gap, inside its parent."""
    context = writer()
    traced_lab.wait_applied(traced_lab.put("b3", context))
    for lb in HOSTS:
        traced_lab.visit(lb)
    for lb in HOSTS:
        spans = traced_lab.trace(lb, context)
        root = root_of(spans, context)
        assert len(spans) == 1 + len(WORK) + len(("read_back", "acknowledge", "first_packet"))
        (fill,) = (span for span in spans if span.name == f"{PREFIX}fill")
        assert stages(spans, fill) == ["read_back"]
        children = {s.name.removeprefix(PREFIX): s for s in below(spans, root)}
        assert {*children} == {*WORK, "acknowledge", "first_packet"}
        work = [children[stage] for stage in WORK]
        assert [span.began for span in work] == [root.began, *(s.ended for s in work[:-1])]
        assert children["acknowledge"].began == work[-1].ended
        assert children["first_packet"].began == children["swap"].began
        assert root.ended == max(span.ended for span in children.values())
        assert not any(span.error for span in spans)
        seen, status = root.attributes, traced_lab.status[lb].current()
        assert seen["tidegate.change.keys"] == ["pools/web/backends/b3"]
        assert seen["tidegate.change.outcome"] == "applied"
        assert (seen["tidegate.generation"], seen["tidegate.digest"]) == (
            status["generation"],
            status["digest"],
        )


def test_a_guard_that_refuses_is_an_error_of_the_writers_trace(traced_lab: TracedLab) -> None:
    """On each host the root, the stage and the refusal have the status' own reason."""
    context = writer()
    state = {name: backend(traced_lab.lab, name, context, "quarantine") for name in ("b1", "b2")}
    traced_lab.put_at_once({f"pools/web/backends/{name}": each for name, each in state.items()})
    for lb in HOSTS:
        seen = traced_lab.status[lb].wait("a refusal", lambda status: bool(status["refusals"]))
        (reason,) = (each["reason"] for each in seen.status["refusals"])
        spans = traced_lab.trace(lb, context, "acknowledge")
        root = root_of(spans, context)
        assert root.attributes["tidegate.change.outcome"] == "refused"
        assert stages(spans, root) == ["receive", "validate", "guard", "acknowledge"]
        failed = [span for span in spans if span.error]
        assert {s.name for s in failed} == {root.name, f"{PREFIX}guard", f"{PREFIX}refusal"}
        assert {(s.error, s.attributes["error.type"]) for s in failed} == {(reason, "guard")}
    revision = max(traced_lab.put(name, writer()) for name in state)
    for watch in traced_lab.status.values():
        watch.wait("no refusal", lambda status: not status["refusals"])
    traced_lab.wait_applied(revision)


def test_writes_that_arrive_together_each_have_their_own_trace(traced_lab: TracedLab) -> None:
    """One is above the change, the other has a span that is linked to it, and it to that one."""
    contexts = {"b1": writer(), "b2": writer()}
    written = {
        f"pools/web/backends/{name}": backend(traced_lab.lab, name, context) | {"weight": 50}
        for name, context in contexts.items()
    }
    traced_lab.wait_applied(traced_lab.put_at_once(written))
    above = contexts["b2"]
    for lb in HOSTS:
        traced_lab.visit(lb)
        (joined,) = traced_lab.trace(lb, contexts["b1"], "joined")
        assert joined.parent == contexts["b1"].span_id
        root = root_of(traced_lab.trace(lb, above), above)
        assert [link.context for link in joined.links] == [root.context]
        assert [link.context for link in root.links] == [joined.context]
        assert joined.attributes["tidegate.generation"] == root.attributes["tidegate.generation"]
        assert joined.attributes["tidegate.change.keys"] == ["pools/web/backends/b1"]


def test_a_trace_that_still_waits_is_sent_when_the_agent_ends(traced_lab: TracedLab) -> None:
    """Without the packet that did not come, and with what etcd acknowledged."""
    context = writer()
    traced_lab.wait_applied(traced_lab.put("b3", context, "drain"))
    process = traced_lab.lab.agents["lb2"]
    assert process.terminate() == 0
    spans = traced_lab.trace("lb2", context, "acknowledge")
    names = stages(spans, root_of(spans, context))
    assert ("acknowledge" in names, "first_packet" in names) == (True, False)
    # What it says of durations is in the last metrics.
    received = traced_lab.receivers["lb2"].received
    totals = [
        point.count
        for point in received.points
        if point.name == STAGE_DURATION.name and point.attributes[STAGE.key] == "total"
    ]
    roots = received.named("tidegate.change")
    applied = [span for span in roots if span.attributes["tidegate.change.outcome"] == "applied"]
    assert max(totals) == len(applied)
