# SPDX-License-Identifier: Apache-2.0
"""Flow traces from clients of a lab to a real OTLP receiver: one connection, one span per host."""

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from support.collector.otlp_receiver import Received, ReceivedSpan, Receiver
from tidegate.lab import netns
from tidegate.lab.agents import config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import CONTROL
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=3, lbs=2)]

NAMES = ("b1", "b2", "b3")
HOSTS = ("lb1", "lb2")
TELEMETRY = """
[telemetry]
endpoint = "{endpoint}"

[telemetry.flows]
idle_timeout = 3.0
"""


@dataclass
class TracedLab:
    """A lab with two LB hosts whose agents export to a receiver on the control node."""

    lab: Lab
    receiver: Receiver
    control: Control
    status: dict[str, StatusWatch]

    def put(self, key: str, **document: Any) -> None:
        """Write a document, and wait until it is in force on each host."""
        written = self.control.put(key, document)
        for watch in self.status.values():
            watch.wait_applied(written.revision, timeout=30)

    def backend(self, name: str, state: str = "active") -> None:
        """Write a backend's document."""
        self.put(f"pools/web/backends/{name}", address=str(self.lab.address(name)), state=state)

    def route(self, *lbs: str) -> None:
        """Have the router send VIP traffic to these hosts alone."""
        hops = [hop for lb in lbs for hop in ("nexthop", "via", str(self.lab.address(lb)))]
        self.lab.node("router").run(["ip", "route", "replace", "10.99.0.0/24", *hops])

    @contextmanager
    def connection(self) -> Iterator[tuple[socket.socket, int]]:
        """Yield a client's connection to the VIP, and its port."""
        with netns.entered(self.lab.client(1).namespace):
            made = socket.create_connection((str(self.lab.vip4()), 80), timeout=20)
        with made:
            yield made, made.getsockname()[1]

    def flows(self, port: int, count: int) -> list[ReceivedSpan]:
        """Wait for so many spans of a client's port; return them in the order of their begin."""
        found = self.receiver.wait_for(lambda received: len(of(received, port)) >= count)
        return sorted(of(found, port), key=lambda span: span.began)


def of(received: Received, port: int) -> list[ReceivedSpan]:
    return [s for s in received.named("tidegate.flow") if s.attributes["source.port"] == port]


@pytest.fixture(scope="module")
def traced_lab(shared_lab: Lab) -> Iterator[TracedLab]:
    """Give the file's lab with agents that have three backends in force and export traces."""
    lab = shared_lab
    receiver = Receiver(address=str(lab.address(CONTROL)))
    with netns.entered(lab.node(CONTROL).namespace):
        receiver.start()
    control = Control(lab)
    # Without windows no host takes a flow that another hands over for one from before a change.
    control.put("pools/web", {"transition_window": 0})
    vip = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    control.put("vips/www", vip | {"flow_sampling": 65536})
    for lb in HOSTS:
        with config_path(lab.spec, lb).open("a") as file:
            file.write(TELEMETRY.format(endpoint=receiver.endpoint))
        lab.start_agent(lb)
    with StatusWatch(lab, "lb1") as first, StatusWatch(lab, "lb2") as second:
        made = TracedLab(lab, receiver, control, {"lb1": first, "lb2": second})
        for name in NAMES:
            made.backend(name)
        yield made
    receiver.stop()


def exchange(connection: socket.socket) -> str:
    """Name of the backend that answers on a connection, which stays open."""
    connection.sendall(b"GET / HTTP/1.1\r\nHost: www\r\n\r\n")
    return connection.recv(4096).decode().splitlines()[-1]


def test_a_connection_of_curl_is_one_span(traced_lab: TracedLab) -> None:
    """With the backend that answered, the generation in force, and the host in the resource."""
    traced_lab.route("lb1")
    generation = traced_lab.status["lb1"].wait("a status", lambda _: True).status["generation"]
    command = [
        "curl",
        "-sS",
        "--max-time",
        "20",
        "-w",
        "\n%{local_port}",
        f"http://{traced_lab.lab.vip4()}/",
    ]
    answer, port = traced_lab.lab.client(1).run(command).stdout.split()
    (span,) = traced_lab.flows(int(port), 1)
    said = span.attributes
    assert (said["tidegate.vip"], said["tidegate.pool"], said["tidegate.backend"]) == (
        "www",
        "web",
        answer,
    )
    assert said["source.address"] == str(traced_lab.lab.address("client1"))
    assert (said["destination.address"], said["destination.port"]) == (
        str(traced_lab.lab.vip4()),
        80,
    )
    assert said["tidegate.generation.first"] == said["tidegate.generation"] == generation
    assert said["tidegate.flow.end"] == "finished"
    assert span.resource["host.name"] == "lb1"
    assert span.events[0].name == "tidegate.flow.new"
    assert span.parent == 0


def test_a_connection_moved_to_another_host_is_one_trace(traced_lab: TracedLab) -> None:
    """The second host's span is a child of the first one's, with the same backend."""
    traced_lab.route("lb1")
    with traced_lab.connection() as (connection, port):
        name = exchange(connection)
        traced_lab.route("lb2")
        assert exchange(connection) == name
    first, second = traced_lab.flows(port, 2)
    assert [span.resource["host.name"] for span in (first, second)] == ["lb1", "lb2"]
    assert [span.attributes["tidegate.backend"] for span in (first, second)] == [name, name]
    assert first.context in (second.context._replace(span_id=second.parent), *linked(second))
    assert second.attributes["tidegate.flow.end"] == "finished"


def test_a_connection_that_loses_its_backend_links_to_the_change(traced_lab: TracedLab) -> None:
    """The link leads to the root of the trace of the write that took the backend away."""
    traced_lab.route("lb1")
    with traced_lab.connection() as (connection, port):
        name = exchange(connection)
        traced_lab.backend(name, "quarantine")
        connection.sendall(b"GET / HTTP/1.1\r\nHost: www\r\n\r\n")
        assert lost(connection)
    traced_lab.backend(name)
    (span,) = traced_lab.flows(port, 1)
    (moved,) = [event for event in span.events if event.name == "tidegate.flow.moved"]
    assert moved.attributes["tidegate.backend.before"] == name
    (change,) = linked(span)
    found = traced_lab.receiver.wait_for(lambda received: received.trace(change.trace_id))
    (root,) = [each for each in found.spans if each.context == change]
    assert root.name == "tidegate.change"
    assert f"pools/web/backends/{name}" in "".join(root.attributes["tidegate.change.keys"])


def linked(span: ReceivedSpan) -> list[Any]:
    return [link.context for link in span.links]


def lost(connection: socket.socket) -> bool:
    """Return whether the connection has no backend that knows it any more."""
    try:
        return connection.recv(4096) == b""
    except ConnectionResetError:
        return True


def test_the_command_prints_events_beside_the_agent(traced_lab: TracedLab) -> None:
    """`tidegate events -c` is served by the agent, which goes on making spans."""
    traced_lab.route("lb1")
    command = [sys.executable, "-m", "tidegate.cli.main", "events", "--json", "-n", "1", "-c"]
    reader = traced_lab.lab.node("lb1").popen(
        [*command, str(config_path(traced_lab.lab.spec, "lb1"))], stdout=-1
    )
    with reader:
        while reader.poll() is None:
            traced_lab.lab.client(1).run(
                ["curl", "-sS", "--max-time", "20", f"http://{traced_lab.lab.vip4()}/"]
            )
        assert reader.returncode == 0
        event = json.loads(reader.stdout.read())
    assert event["vip"] == "www"
    traced_lab.flows(event["source_port"], 1)
