# SPDX-License-Identifier: Apache-2.0
"""Spans and log lines on their way to a real OTLP receiver, and what happens when there is none."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from support.collector.certificates import self_signed
from support.collector.otlp_receiver import Receiver
from support.etcd.server import free_port
from tidegate.errors import DataplaneError
from tidegate.telemetry.export.metric_sender import Measured
from tidegate.telemetry.export.pipeline import Pipeline
from tidegate.telemetry.export.settings import TelemetrySettings
from tidegate.telemetry.metrics.points import ALONE, Points, Series
from tidegate.telemetry.names import metric_attributes as attributes
from tidegate.telemetry.names import metrics as names
from tidegate.telemetry.sdk import Identity, Line
from tidegate.telemetry.span import Context, Link, Moment, Span, new_span_id, new_trace_id

Protocol = Literal["grpc", "http"]
both = pytest.mark.parametrize("protocol", ["grpc", "http"])


@contextmanager
def pipeline(**settings: object) -> Iterator[Pipeline]:
    """Yield a pipeline that does not wait at its end."""
    made = Pipeline(
        TelemetrySettings(**{"timeout": 2.0, "flush": 0.2, **settings}),  # type: ignore[arg-type]
        Identity("f", "lb1"),
    )
    try:
        yield made
    finally:
        made.close()


def span(name: str = "tidegate.test", **more: object) -> Span:
    """Return a span of one millisecond."""
    context = Context(new_trace_id(), new_span_id())
    began = time.time_ns()
    return Span(name=name, context=context, began=began, ended=began + 10**6, **more)  # type: ignore[arg-type]


def problem(made: Pipeline, seconds: float = 20.0) -> str:
    """Return what is wrong, as soon as something is."""
    deadline = time.monotonic() + seconds
    while not made.faults.problems and time.monotonic() < deadline:
        time.sleep(0.02)
    [text] = made.faults.problems
    return text


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a certificate for 127.0.0.1 that nobody else signed, with its key, in one file."""
    return self_signed(tmp_path_factory.mktemp("tls"), "collector", "IP:127.0.0.1")


@both
def test_everything_that_a_span_says_arrives(protocol: Protocol) -> None:
    """Ids, times, attributes, events, links, error and resource are those that were emitted."""
    parent = Context(new_trace_id(), new_span_id())
    other = Context(new_trace_id(), new_span_id())
    sent = span(
        parent=parent,
        attributes={"tidegate.text": "x", "tidegate.keys": ["a", "b"], "tidegate.n": 3},
        events=(Moment("tidegate.moved", 17, {"tidegate.slot": 5}),),
        links=(Link(other, {"tidegate.why": "because"}),),
        error="A guard refused it.",
    )
    with Receiver(protocol) as receiver:
        with pipeline(endpoint=receiver.endpoint, protocol=protocol, flush=5.0) as made:
            made.emit(sent)
            made.emit(span(kind="server"))
            line = Line(23, logging.WARNING, "careful", {"tidegate.n": 1}, sent.context)
            made.write(line._replace(event="tidegate.warned"))
        received = receiver.wait_for(lambda r: len(r.spans) == 2 and r.logs)
    found = received.spans[0]
    assert found.context == sent.context
    assert (found.parent, found.began, found.ended) == (parent.span_id, sent.began, sent.ended)
    assert found.attributes == sent.attributes
    assert (found.events, found.links) == (sent.events, sent.links)
    assert (found.error, found.kind) == ("A guard refused it.", 1)
    assert received.spans[1].error == ""
    assert found.resource["service.name"] == "tidegate"
    assert found.resource["service.instance.id"] == "f/lb1"
    [line] = received.logs
    assert (line.severity, line.body, line.attributes) == ("WARN", "careful", {"tidegate.n": 1})
    assert line.event == "tidegate.warned"
    assert (line.trace_id, line.span_id) == sent.context[:2]
    assert line.resource == found.resource
    assert made.tallies()["traces"] == (2, {})


@both
def test_tls_and_headers_from_files(protocol: Protocol, certificate: Path, tmp_path: Path) -> None:
    """A certificate that `ca` vouches for is accepted, and the headers of the file are sent."""
    headers = tmp_path / "headers"
    headers.write_text("# of the collector\nAuthorization: Bearer s3cret\n")
    with Receiver(protocol, certificate=certificate) as receiver:
        settings = {"ca": str(certificate), "headers_file": str(headers), "flush": 5.0}
        with pipeline(endpoint=receiver.endpoint, protocol=protocol, **settings) as made:
            made.emit(span())
        received = receiver.wait_for(lambda r: r.spans)
    assert received.headers[0]["authorization"] == "Bearer s3cret"


@both
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("away", "the connection is refused"),
        ("name", "the name does not resolve"),
        ("tls", "not one that telemetry.ca vouches for"),
        ("plain", "TLS"),
        ("file", "cannot read /nonexistent/ca.pem"),
        ("refuse", "not taken here|Bad Request"),
        ("slow", "does not answer in time"),
        ("other", "check"),
    ],
)
def test_each_fault_is_logged_once_in_words(
    fault: str,
    words: str,
    protocol: Protocol,
    certificate: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever keeps telemetry away is one sentence, in the log once, and is counted."""
    other: Protocol = "http" if protocol == "grpc" else "grpc"
    receiver = Receiver(
        other if fault == "other" else protocol,
        "refuse" if fault == "refuse" else "slow" if fault == "slow" else "take",
        certificate=certificate if fault == "tls" else None,
    )
    with receiver:
        endpoint = {
            "away": f"http://127.0.0.1:{free_port()}",
            "name": "http://collector.invalid:4317",
            "plain": receiver.endpoint.replace("http:", "https:"),
            "file": "https://127.0.0.1:4317",
        }.get(fault, receiver.endpoint)
        ca = "/nonexistent/ca.pem" if fault == "file" else ""
        with pipeline(
            endpoint=endpoint, protocol=protocol, ca=ca, signals=("traces",), timeout=1.0
        ) as made:
            made.emit(span())
            text = problem(made)
            made.emit(span())
    assert any(word in text for word in words.split("|")), text
    assert text.startswith(f"Telemetry (traces) does not reach {endpoint}: ")
    assert sum(record.message.startswith("telemetry_away ") for record in caplog.records) == 1
    exported, lost = made.tallies()["traces"]
    assert (exported, sum(lost.values())) == (0, 2)


@both
def test_goes_on_when_the_collector_is_back(protocol: Protocol) -> None:
    """What waits in the queue arrives later, and the fault is over."""
    receiver = Receiver(protocol)
    receiver.start()
    receiver.stop()
    with pipeline(endpoint=receiver.endpoint, protocol=protocol, signals=("traces",)) as made:
        made.emit(span("tidegate.lost"))
        problem(made)
        made.emit(span("tidegate.kept"))
        with receiver:
            receiver.wait_for(lambda r: r.named("tidegate.kept"))
            deadline = time.monotonic() + 10
            while made.faults.problems and time.monotonic() < deadline:
                time.sleep(0.02)
            assert made.faults.problems == ()
    assert made.tallies()["traces"] == (1, {"not_exported": 1})


@both
def test_a_hundred_thousand_spans_for_nobody_take_bounded_memory(protocol: Protocol) -> None:
    """While the collector is away the queue holds what it may, and emitting stays quick."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    with pipeline(endpoint=endpoint, protocol=protocol, signals=("traces",)) as made:
        made.emit(span())
        problem(made)  # whatever is imported and allocated once is by now
        before, longest = resident(), 0.0
        for _ in range(100_000):
            one = span(attributes={"tidegate.vip": "web", "tidegate.slot": 17})
            began = time.thread_time()
            made.emit(one)
            longest = max(longest, time.thread_time() - began)
        grown = resident() - before
    _, lost = made.tallies()["traces"]
    assert sum(lost.values()) == 100_001
    assert lost["queue_full"] >= 100_001 - 8192 - 2 * 512
    assert grown < 32 << 20, f"{grown >> 20} MiB"
    assert longest < 0.05, f"emitting took {1e3 * longest:.1f} ms of CPU"


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@both
def test_ends_within_its_bound(protocol: Protocol) -> None:
    """A collector that does not answer holds the end up for `flush` seconds, no longer."""
    with (
        Receiver(protocol, "slow") as receiver,
        pipeline(endpoint=receiver.endpoint, protocol=protocol, timeout=30.0, flush=0.5) as made,
    ):
        for _ in range(1000):
            made.emit(span())
        deadline = time.monotonic() + 20
        while not receiver.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        began = time.monotonic()
        made.close()
        assert time.monotonic() - began < 3
        assert made.tallies()["traces"] == (0, {"shutdown": 1000})


@both
def test_metrics_end_within_the_same_bound(protocol: Protocol) -> None:
    """Values that a slow collector does not take are given up after `flush` seconds and counted."""
    series = Series((attributes.VIP,), [(str(n),) for n in range(5000)])
    counts = [0] * 4999 + [1]
    families = [
        Points(names.VIP_LIVE_FLOWS, series, range(5000)),
        Points(names.VIP_PACKETS, series, counts),
    ]
    measured = Measured(None, families)
    with (
        Receiver(protocol, "slow") as receiver,
        pipeline(endpoint=receiver.endpoint, protocol=protocol, timeout=30.0, flush=0.5) as made,
    ):
        assert made.metrics is not None
        made.metrics.start(lambda: measured)
        made.metrics.begin_close()
        deadline = time.monotonic() + 20
        while not receiver.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        began = time.monotonic()
        made.close()
        assert time.monotonic() - began < 3
        assert made.tallies()["metrics"] == (0, {"shutdown": 5001})


def test_values_that_cannot_be_read_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The thread goes on, and sends them when they can be."""
    values = iter([DataplaneError("no map"), DataplaneError("no map")])
    families = [Points(names.GENERATION, Series((), ALONE), [7])]

    def measure() -> Measured:
        for error in values:
            raise error
        return Measured(None, families)

    with (
        Receiver() as receiver,
        pipeline(endpoint=receiver.endpoint, interval=0.05, flush=5.0) as made,
    ):
        assert made.metrics is not None
        made.metrics.start(measure)
        receiver.wait_for(lambda r: r.points)
        made.metrics.begin_close()
    points = receiver.received.points
    assert {(p.name, p.value) for p in points} == {("tidegate.generation", 7)}
    assert made.tallies()["metrics"] == (len(points), {})
    assert [r.message for r in caplog.records] == ['metrics_not_read reason="no map"']


def test_without_an_endpoint_nothing_is_done() -> None:
    """There is no thread and no exporter, and emitting is nothing."""
    with pipeline() as made:
        made.emit(span())
        made.write(Line(1, logging.INFO, "x"))
        assert made.sink is None
        assert not made.takes_lines
        assert made.metrics is None
        assert made.tallies() == {}


def test_a_span_that_is_not_sampled_goes_nowhere() -> None:
    """The control system that wrote the traceparent has decided so."""
    with Receiver() as receiver, pipeline(endpoint=receiver.endpoint) as made:
        one = span()
        made.emit(Span(name="x", context=one.context._replace(is_sampled=False), began=1, ended=2))
        made.emit(one)
        received = receiver.wait_for(lambda r: r.spans)
        assert [s.name for s in received.spans] == [one.name]
