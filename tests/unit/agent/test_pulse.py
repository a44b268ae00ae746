# SPDX-License-Identifier: Apache-2.0
"""The loop's progress: without it the agent counts as hung, and everybody hears of it."""

import threading

from tidegate.agent.operator.routes import OperatorRoutes
from tidegate.agent.pulse import HangWatch, Pulse
from tidegate.agent.rollback_states import RollbackStates
from tidegate.agent.stages import StageRecorder
from tidegate.http_server import Request
from tidegate.keyspace.status.document import StatusDocument


class Clock:
    """A clock that stands still unless it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time, s."""
        return self.now


def test_a_loop_without_progress_hangs_after_the_limit() -> None:
    """Not before, and no longer once it goes on."""
    clock = Clock()
    pulse = Pulse(15, clock=clock)
    clock.now += 15
    assert pulse.hang() == ""
    clock.now += 1
    assert pulse.hang() == "The agent's loop has made no progress for 16 s."
    pulse.beat()
    assert pulse.hang() == ""


def test_stages_of_a_change_are_progress() -> None:
    """A change may take longer than the limit, if each of its stages does not."""
    clock = Clock()
    pulse = Pulse(15, clock=clock)
    stages = StageRecorder(beat=pulse.beat)
    for _ in range(5):
        clock.now += 10
        stages.mark("plan")
        assert pulse.hang() == ""


def test_what_is_known_to_take_long_may_do_so() -> None:
    """A compilation has its own time besides, and what follows has not."""
    clock = Clock()
    pulse = Pulse(15, clock=clock)
    stages = StageRecorder(beat=pulse.beat)
    stages.expect(60)
    clock.now += 75
    assert pulse.hang() == ""
    stages.mark("program")
    clock.now += 16
    assert pulse.hang()


def test_the_loop_turns_often_enough_for_its_limit() -> None:
    """Also where the service manager wants signs of life more often."""
    assert Pulse(15).interval == 5
    assert Pulse(15, watchdog=1.5).interval == 1.5


def test_a_hang_is_said_once() -> None:
    """However long it lasts."""
    said: list[str] = []
    heard = threading.Event()
    clock = Clock()
    pulse = Pulse(0.03, clock=clock)

    def hear(reason: str) -> None:
        said.append(reason)
        heard.set()

    watch = HangWatch(pulse, hear)
    watch.start()
    clock.now += 1
    assert heard.wait(5)
    heard.clear()
    assert not heard.wait(0.1)
    pulse.beat()
    watch.stop()
    assert len(said) == 1


def test_a_hung_agent_is_not_ready_at_its_socket() -> None:
    """The last status is still there, with the truth about its age."""
    hang = ""
    routes = OperatorRoutes(lambda _: True, RollbackStates(3), bytes, lambda: hang)
    routes.status = StatusDocument(
        version="1", host="lb1", release="live", revision=1, generation=1, state="synced",
        started_at="2026-01-31T12:00:00Z", ready=True,
    )  # fmt: skip
    ready = routes.routes()["GET", "/ready"]
    request = Request({}, b"", "root")
    assert ready(request).status == 200
    hang = "The agent's loop has made no progress for 16 s."
    assert (ready(request).status, ready(request).value["reason"]) == (503, hang)
    assert b'"degraded"' in routes.routes()["GET", "/status"](request).value


def test_a_fault_counts_as_a_hang() -> None:
    """A loop that turns, and cannot say how its host is, renews nothing either."""
    pulse = Pulse(10)
    pulse.fault = "The agent's state cannot be reported."
    assert pulse.hang() == pulse.fault
    pulse.fault = ""
    assert pulse.hang() == ""
