# SPDX-License-Identifier: Apache-2.0
"""Two agents and one data plane: whatever sleeps, wakes or is taken away, one of them publishes.

Real processes open the data plane on a veth of a namespace of the test's own, and publish what is
ordered over a pipe. Replacing the program is killed at each of its steps in the same way.
"""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from support.crash.bench import SMALL, fork, link_loopback, open_maps, wait_gone
from support.crash.capabilities import CAP_PERFMON, CAP_SYS_ADMIN, without_capabilities
from support.crash.host import NOW, Host, assert_flows_stay, packets_of, publish
from support.documents.roster import backend, desired, vip
from tidegate.dataplane import plane as dataplane
from tidegate.dataplane.kernel import maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.pins import pinned_programs
from tidegate.dataplane.publish import tables, vip_images
from tidegate.dataplane.publish.steps import Step
from tidegate.errors import CapabilityError, DataplaneError, FenceError
from tidegate.lab import netns
from tidegate.planner import plan

pytestmark = pytest.mark.root

PLAIN = desired([vip("web4", "192.0.2.1")], [backend("b1"), backend("b2")])
CLAMPED = desired([vip("web4", "192.0.2.1", mss_clamp=1200)], [backend("b1"), backend("b3")])
OF_PROGRAMS = [step for step in Step if step.name.startswith("PROGRAM_")]


@pytest.fixture
def host() -> Iterator[Host]:
    built = Host()
    yield built
    built.close()


class Agent:
    """A process that has the data plane open and carries out orders, with an answer to each."""

    def __init__(self, host: Host) -> None:
        self._orders, orders = os.pipe()
        answers, self._answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(orders)
            os.close(answers)
            self._run(host)
        os.close(self._orders)
        os.close(self._answers)
        self._to, self._from = os.fdopen(orders, "w"), os.fdopen(answers)
        self.opened = self._from.readline().strip()

    def _run(self, host: Host) -> None:
        answers = os.fdopen(self._answers, "w")

        def answer(text: object) -> None:
            print(str(text).replace("\n", " "), file=answers, flush=True)

        try:
            with netns.entered(host.name):
                try:
                    plane = host.open()
                except DataplaneError as error:
                    answer(error)
                    os._exit(1)
                answer("open")
                for line in os.fdopen(self._orders):
                    work: dict[str, Callable[[], object]] = {
                        "plain": lambda: publish(plane, PLAIN),
                        "clamped": lambda: publish(plane, CLAMPED),
                        "follow": plane.follow,
                        "audit": lambda: plane.audit(deep=True),
                        "close": plane.close,
                    }
                    try:
                        answer(f"done {work[line.strip()]()}")
                    except FenceError as error:
                        answer(f"fence {error}")
        finally:
            os._exit(0)

    def tell(self, order: str) -> str:
        """Give an order and return the answer."""
        print(order, file=self._to, flush=True)
        return self._from.readline().strip()

    def end(self) -> None:
        """Kill it, and wait for it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._to.close()
        self._from.close()


@pytest.fixture
def agents(host: Host) -> Iterator[Callable[[], Agent]]:
    started: list[Agent] = []

    def start() -> Agent:
        started.append(Agent(host))
        return started[-1]

    yield start
    for agent in started:
        agent.end()


def holds(host: Host) -> set[str]:
    """Names of all pins."""
    return {str(path.relative_to(host.pins)) for path in host.pins.rglob("*")}


def test_a_second_agent_is_turned_away(host: Host, agents: Callable[[], Agent]) -> None:
    """While the first one lives, also if it is stopped; when it is gone, the next one goes on."""
    first = agents()
    assert (first.opened, first.tell("plain")) == ("open", "done 1")
    assert "another agent holds" in agents().opened
    os.kill(first.pid, signal.SIGSTOP)
    assert "another agent holds" in agents().opened
    os.kill(first.pid, signal.SIGCONT)
    assert first.tell("clamped") == "done 2"
    os.kill(first.pid, signal.SIGKILL)
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    second = agents()
    assert (second.opened, second.tell("plain")) == ("open", "done 3")


def test_an_agent_that_wakes_beside_a_new_plane_writes_nothing(
    host: Host, agents: Callable[[], Agent]
) -> None:
    """It slept while everything was removed and made anew: each of its writes is refused."""
    stale = agents()
    assert stale.tell("plain") == "done 1"
    os.kill(stale.pid, signal.SIGSTOP)
    host.take_down()
    fresh = agents()
    assert (fresh.opened, fresh.tell("plain")) == ("open", "done 1")
    there, program = holds(host), host.attached()
    os.kill(stale.pid, signal.SIGCONT)
    for order in ("clamped", "follow", "audit"):
        assert "created again by another agent" in stale.tell(order)
    assert stale.tell("close").startswith("done")
    assert (holds(host), host.attached()) == (there, program)
    assert fresh.tell("clamped") == "done 2"
    assert fresh.tell("audit") == "done []"
    os.kill(fresh.pid, signal.SIGKILL)  # the advice is to stop one: the other goes on
    os.waitid(os.P_PID, fresh.pid, os.WEXITED | os.WNOWAIT)
    last = agents()
    assert (last.opened, last.tell("plain")) == ("open", "done 3")


def test_an_agent_whose_plane_was_removed_does_not_make_it_again(
    host: Host, agents: Callable[[], Agent]
) -> None:
    """Its folder is gone: it says so, and nothing comes back."""
    left = agents()
    assert left.tell("plain") == "done 1"
    host.take_down()
    for order in ("clamped", "follow", "audit"):
        assert "was removed while this agent ran" in left.tell(order)
    assert left.tell("close").startswith("done")
    assert (host.pins.exists(), host.attached()) == (False, None)


def test_a_writer_without_the_lock_stops_the_one_who_has_it(host: Host) -> None:
    """A number above ours in the ledger is somebody else's: nothing is written after it."""
    with netns.entered(host.name):
        plane = host.open()
        publish(plane, PLAIN)
        own, _ = maps.create_or_adopt(host.pins, SMALL)
        other = dataplane.Publisher(own, host.pins, grace=0)
        other.publish(plan(CLAMPED, other.adopt(), NOW + 5), 0.0)
        entries = vip_images.read(own).in_force
        with pytest.raises(FenceError, match="generation 2 is in the kernel"):
            publish(plane, CLAMPED)
        with pytest.raises(FenceError, match="generation 2 is in the kernel"):
            plane.audit(deep=True)
        assert vip_images.read(own).in_force == entries
        other.close()
        own.close()
        plane.close()
        plane = host.open()  # the advice is to stop one: a start goes on from what is there
        assert publish(plane, PLAIN) == 3
        plane.close()


@pytest.mark.parametrize("hit", [1, 2])
@pytest.mark.parametrize("step", OF_PROGRAMS, ids=lambda s: s.name)
def test_a_crash_while_the_program_is_replaced(host: Host, step: Step, hit: int) -> None:
    """At the start and at a change: packets go on, and the next start leaves one program."""

    def work(reached: Callable[[Step], None]) -> None:
        with netns.entered(host.name):
            plane = host.open(reached)
            publish(plane, CLAMPED)
            plane.close()

    with netns.entered(host.name):
        plane = host.open()
        publish(plane, PLAIN)
        plane.close()
        fds, _ = maps.create_or_adopt(host.pins, SMALL)
        old = dataplane.Publisher(fds, host.pins, grace=0)
        in_force = old.adopt()
        old.close()
    vips = {"web4": in_force.vips["web4"].vip}
    link_loopback(fds)
    flows = packets_of(host, in_force).establish(vips)
    died = fork(work, step, hit)
    assert died.steps[step] == hit
    assert host.attached() in pinned_programs(host.pins)
    new = plan(CLAMPED, in_force, NOW)
    assert_flows_stay(host, in_force, new, vips, flows)
    fork(work, None)
    assert pinned_programs(host.pins) == {host.attached()}
    assert not (host.pins / "program-next").exists()
    assert not (host.pins / "proof").exists()
    assert_flows_stay(host, in_force, new, vips, flows)
    pinned = {bpf.map_info(fd).id for fd in fds.values()}
    in_use = pinned | set(tables.slots(fds["outer"]).values()) | open_maps()
    fds.close()
    assert wait_gone(died.map_ids - in_use) == set()


def test_a_refused_program_leaves_the_last_one(host: Host) -> None:
    """The verifier refuses it for want of CAP_PERFMON: program, pins and generation stay."""

    def work(_: Callable[[Step], None]) -> None:
        with netns.entered(host.name):
            plane = host.open()
            publish(plane, PLAIN)
            before = (host.attached(), holds(host), plane.publisher.in_force)
            for _attempt in range(2):
                with (
                    without_capabilities(CAP_SYS_ADMIN, CAP_PERFMON),
                    pytest.raises(CapabilityError, match="the verifier wants CAP_PERFMON"),
                ):
                    publish(plane, CLAMPED)
                assert (host.attached(), holds(host), plane.publisher.in_force) == before
            assert publish(plane, CLAMPED) == 2
            assert host.attached() != before[0]
            plane.close()

    fork(work, None)
