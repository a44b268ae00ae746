# SPDX-License-Identifier: Apache-2.0
"""The engine of probes, with real sockets on loopback."""

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from support.etcd.server import Received, free_port
from tidegate.health import command, http
from tidegate.health.engine import Engine, Target
from tidegate.health.handshakes import Handshake
from tidegate.health.result import Result
from tidegate.health.tcp import Destination

Reports = Received[tuple[str, Result, float]]


@pytest.fixture
def reports() -> Reports:
    return Received()


@pytest.fixture
def engine(reports: Reports) -> Iterator[Engine[str]]:
    made: Engine[str] = Engine(lambda key, result: reports((key, result, time.monotonic())))
    made.start()
    yield made
    assert made.stop()


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as server:
        yield server.getsockname()[:2]


def tcp(address: str, port: int, interval: float = 0.05, timeout: float = 0.04) -> Target:
    return Target(Handshake(Destination(address, port), timeout), interval)


def first(reports: Reports, key: str = "a") -> Result:
    return reports.wait(lambda report: report[0] == key)[1]


def test_an_open_port_passes(
    engine: Engine[str], reports: Reports, listener: tuple[str, int]
) -> None:
    """A handshake with a listener passes, over both families, and has a duration."""
    engine.probe({"a": tcp(*listener)})
    result = first(reports)
    assert result.passed, result
    assert 0 < result.seconds < 0.05


def test_a_closed_port_is_refused(engine: Engine[str], reports: Reports) -> None:
    """A reset in answer to the SYN is `refused`, with the system's words."""
    engine.probe({"a": tcp("127.0.0.1", free_port())})
    result = first(reports)
    assert (result.code, result.reason) == ("refused", "Connection refused.")


def test_no_answer_is_a_timeout(engine: Engine[str], reports: Reports) -> None:
    """A listener whose queue is full does not answer; that takes the timeout and no longer."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address, port = server.getsockname()
        with socket.create_connection((address, port)):
            engine.probe({"a": tcp(address, port, interval=0.3, timeout=0.1)})
            result = reports.wait(lambda report: report[1].code == "timeout")[1]
    assert result.reason == "No answer to the handshake within 0.1 s."
    assert 0.1 <= result.seconds < 0.3


class Tunnel:
    """A way that is taken as it is set."""

    is_closed = False

    def __init__(self) -> None:
        self.takes = True
        self._packets = 0

    def sent(self, mark: int) -> int | None:
        """Return another number each time, if it is taken."""
        self._packets += mark == 1 and self.takes
        return self._packets


def test_a_probe_that_did_not_leave_says_nothing(
    reports: Reports, listener: tuple[str, int]
) -> None:
    """Neither a pass nor a failure; it is counted, and how it ended is kept."""
    tunnel = Tunnel()
    engine: Engine[str] = Engine(lambda key, got: reports((key, got, time.monotonic())), tunnel)
    engine.start()
    try:
        engine.probe({"a": replace(tcp(*listener), mark=1)})
        assert first(reports).passed
        tunnel.takes = False
        wait_until(lambda: engine.unsent > 3)
        assert engine.last_unsent.reason == "it passed"
        engine.probe({"b": replace(tcp("127.0.0.1", free_port()), mark=1)})
        wait_until(lambda: engine.last_unsent.reason == "Connection refused.")
        tunnel.is_closed = True
        wait_until(lambda: engine.last_unsent.reason == "the way is closed")
        began = engine.started
        wait_until(lambda: engine.unsent > 10)
        assert engine.started == began
        tunnel.is_closed, tunnel.takes = False, True
        assert first(reports, "b").code == "refused"
    finally:
        assert engine.stop()


def test_a_source_that_is_not_ours_is_the_hosts_fault(
    engine: Engine[str], reports: Reports
) -> None:
    """A source address that the host does not have is no finding; the reason says what to do."""
    destination = Destination("127.0.0.1", free_port(), source="192.0.2.1")
    engine.probe({"a": Target(Handshake(destination, 0.04), 0.05)})
    result = first(reports)
    assert (result.code, result.is_finding) == ("host", False)
    assert result.reason.startswith("Cannot assign requested address: the check's source address")


def test_moments_do_not_drift(engine: Engine[str], reports: Reports) -> None:
    """Probes that take half their interval still begin once an interval."""

    async def slow() -> Result:
        await asyncio.sleep(0.05)
        return Result("passed", "", 0.05)

    engine.probe({"a": Target(slow, 0.1)})
    reports.wait(lambda _: len(reports.items) > 20, timeout=20)
    times = [moment for _, _, moment in reports.items]
    steps = [round((moment - times[0]) / 0.1) for moment in times]
    assert steps == sorted(set(steps))
    offsets = [moment - times[0] - step * 0.1 for moment, step in zip(times, steps, strict=True)]
    assert max(map(abs, offsets)) < 0.05


def test_targets_are_spread_over_their_interval(engine: Engine[str]) -> None:
    """A hundred targets begin in every tenth of the interval, not all at once."""
    moments: dict[int, float] = {}

    async def note(number: int) -> Result:
        moments.setdefault(number, time.monotonic())
        return Result("passed", "", 0.0)

    engine.probe({str(number): Target(partial(note, number), 1.0) for number in range(100)})
    wait_until(lambda: len(moments) == 100)
    start = min(moments.values())
    tenths = {int((moment - start) * 10) for moment in moments.values()}
    assert len(tenths) >= 8


def test_targets_come_and_go_while_it_runs(engine: Engine[str], reports: Reports) -> None:
    """A target that is gone is not reported again; the others keep their moments."""
    port = free_port()
    engine.probe({"a": tcp("127.0.0.1", port), "b": tcp("127.0.0.1", port)})
    first(reports, "a")
    first(reports, "b")
    engine.probe({"b": tcp("127.0.0.1", port), "c": tcp("127.0.0.1", port)})
    first(reports, "c")
    seen = len(reports.items)
    reports.wait(lambda _: len(reports.items) > seen + 6)
    assert {key for key, _, _ in reports.items[seen:]} == {"b", "c"}


def test_a_probe_that_fails_by_itself_is_no_finding(
    engine: Engine[str], reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault in a probe is the agent's, is named as that and stops nothing."""

    async def broken() -> Result:
        raise ValueError("no such thing")

    engine.probe({"a": Target(broken, 0.05), "b": tcp("127.0.0.1", free_port())})
    result = first(reports)
    assert result.code == "host"
    assert "no such thing" in result.reason
    assert first(reports, "b").code == "refused"
    assert "probe_crashed target=a" in caplog.text


def test_a_probe_that_hangs_is_not_begun_twice(engine: Engine[str], reports: Reports) -> None:
    """A second probe of a target waits for the first; what was left out is counted."""
    begun: list[float] = []

    async def hang() -> Result:
        begun.append(time.monotonic())
        await asyncio.sleep(3600)
        return Result("passed", "", 0.0)

    engine.probe({"a": Target(hang, 0.02)})
    wait_until(lambda: engine.skipped > 5)
    assert len(begun) == 1


def test_stopping_ends_what_runs() -> None:
    """Stop returns soon though a probe hangs, and no thread is left."""
    engine: Engine[str] = Engine(lambda _key, _result: None)
    engine.probe({"a": Target(lambda: asyncio.sleep(3600, Result("passed", "", 0.0)), 0.02)})
    engine.start()
    wait_until(lambda: engine.started > 0)
    assert engine.stop()
    assert "tidegate-health" not in {thread.name for thread in threading.enumerate()}


def wait_until(holds: Callable[[], bool], timeout: float = 10.0) -> None:
    """Wait for a condition that nobody announces."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_socket_that_passed_is_used_again(engine: Engine[str], reports: Reports) -> None:
    """Each handshake is a connection of its own, reset at its end, from another port each time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        engine.probe({"a": tcp(*server.getsockname()[:2])})
        peers = []
        for _ in range(5):
            connection, peer = server.accept()
            with connection, pytest.raises(ConnectionResetError):
                connection.recv(1)
            peers.append(peer)
    assert len(set(peers)) == len(peers)
    assert first(reports).passed


def test_a_listener_that_comes_and_goes_is_seen(engine: Engine[str], reports: Reports) -> None:
    """A failed handshake does not fail the next one, nor does a passed one pass it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address, port = server.getsockname()[:2]
        engine.probe({"a": tcp(address, port)})
        reports.wait(lambda report: report[1].passed)
    reports.wait(lambda report: report[1].code == "refused")
    seen = len(reports.items)
    with socket.create_server((address, port)):
        wait_until(lambda: any(result.passed for _, result, _ in reports.items[seen:]))


def test_a_pause_is_not_made_up_for(engine: Engine[str], reports: Reports) -> None:
    """After a pause of some intervals each target goes on at its moments; none is probed twice."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        address, port = server.getsockname()[:2]
        engine.probe({str(i): tcp(address, port, interval=0.5, timeout=0.4) for i in range(200)})
        wait_until(lambda: engine.started >= 200)
        engine._loop.call_soon_threadsafe(time.sleep, 1.8)
        wait_until(lambda: engine.missed > 0)
        began = engine.started
        wait_until(lambda: engine.started >= began + 400)
    moments: dict[str, list[float]] = {}
    for key, result, moment in reports.items:
        assert result.passed, result
        moments.setdefault(key, []).append(moment - result.seconds)
    steps = [b - a for of_one in moments.values() for a, b in pairwise(of_one)]
    assert max(steps) > 1.5
    assert min(steps) > 0.2
    assert max(engine.lateness()) <= 0.3


def test_answers_that_came_during_a_pause_are_in_time(
    engine: Engine[str], reports: Reports, listener: tuple[str, int]
) -> None:
    """A loop that is held up for longer than the timeout takes no answer for a missing one."""
    engine.probe({"a": tcp(*listener, interval=0.1, timeout=0.05)})
    first(reports)
    begun = engine.started
    while engine.started < begun + 20:
        engine._loop.call_soon_threadsafe(time.sleep, 0.07)
        time.sleep(0.09)
    assert {result.code for _, result, _ in reports.items} == {"passed"}


def test_targets_that_go_while_probed_leave_nothing(engine: Engine[str], tmp_path: Path) -> None:
    """Sockets are closed and programs are ended at once, not when their time is over."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        port = server.getsockname()[1]
        to, ask = Destination("127.0.0.1", port), http.Ask("x")
        sleeper = ("/bin/sh", "-c", f"echo $$ >> {tmp_path}/pids; exec sleep 600")
        engine.probe({})
        before = descriptors()
        engine.probe(
            {f"page {n}": Target(partial(http.get, to, ask, 60.0), 0.2) for n in range(20)}
            | {f"tcp {n}": tcp("127.0.0.1", port, 0.2, 0.15) for n in range(20)}
            | {
                f"program {n}": Target(partial(command.run, to, sleeper, f"web/b{n}", 60.0), 0.2)
                for n in range(3)
            }
        )
        wait_until(lambda: engine.started >= 43 and len(lines(tmp_path / "pids")) == 3)
        engine.probe({})
        wait_until(lambda: descriptors() <= before)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in lines(tmp_path / "pids")))


def test_a_crash_in_one_probe_or_report_stops_no_other() -> None:
    """What cannot even be begun, and a report that fails, leave the others at their pace."""
    seen: Received[tuple[str, Result]] = Received()

    def report(key: str, result: Result) -> None:
        seen((key, result))
        if key == "b":
            raise ValueError("no such backend")

    def never_begins() -> Awaitable[Result]:
        raise RuntimeError("cannot begin")

    made: Engine[str] = Engine(report)
    made.start()
    made.probe(
        {"a": Target(never_begins, 0.05)}
        | {key: tcp("127.0.0.1", free_port()) for key in ("b", "c")}
    )
    try:
        seen.wait(lambda _: all(sum(k == key for k, _ in seen.items) > 3 for key in "abc"))
    finally:
        assert made.stop()
    assert {result.code for key, result in seen.items if key == "a"} == {"host"}


@pytest.mark.parametrize("kind", ["tcp", "page"])
def test_what_arrived_during_a_stall_beats_the_clock(
    engine: Engine[str], reports: Reports, kind: str
) -> None:
    """A loop that is held up for longer than each limit takes no answer for a missing one."""
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:

        def serve() -> None:
            while True:
                try:
                    peer = server.accept()[0]
                except OSError:
                    return
                with peer:
                    try:
                        peer.recv(65536)
                        peer.sendall(page)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        to = Destination("127.0.0.1", server.getsockname()[1])
        probe = partial(http.get, to, http.Ask("x"), 0.25)

        async def hold_up() -> Result:
            time.sleep(0.4)  # noqa: ASYNC251 - that is what is tried
            return Result("passed", "", 0.4)

        good = Target(Handshake(to, 0.25) if kind == "tcp" else probe, 0.3)
        engine.probe({"stall": Target(hold_up, 1.0)} | {f"a{n}": good for n in range(10)})
        reports.wait(lambda _: sum(key == "stall" for key, _, _ in reports.items) >= 5, timeout=30)
        engine.probe({})
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    codes = {result.code for key, result, _ in reports.items if key != "stall"}
    assert codes == {"passed"}, codes


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}
