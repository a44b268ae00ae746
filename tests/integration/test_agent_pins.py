# SPDX-License-Identifier: Apache-2.0
"""An agent whose pins are lost, under traffic; and pools that come and go by the thousand."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent.lifecycle import LifecycleHost
from support.documents.keyspaces import WEB, Contents
from support.lab.datagrams import Datagrams
from tidegate.dataplane.kernel.pins import pinned_programs
from tidegate.dataplane.kernel.programs import attached
from tidegate.lab import netns
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab
from tidegate.model.constants import MAX_POOLS
from tidegate.model.values import BackendKey

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=2), pytest.mark.timeout(600)]


class Served:
    """Clients of a lab that must notice nothing: a download and datagrams."""

    def __init__(self, lab: Lab) -> None:
        url = f"http://{lab.vip4()}/download?bytes=1"
        get = ["curl", "--silent", "--fail", "--max-time", "120", "--output", "/dev/null", url]
        self._download = lab.client(1).popen(get)
        self._echo = Datagrams(lab)

    def assert_unnoticed(self) -> None:
        """No connection has ended, and no datagram is missing."""
        assert self._download.poll() in (None, 0)
        self._download.kill()
        self._download.wait()
        sent, missing = self._echo.end()
        assert sent > 100
        assert missing == "[]"


def served(lab: Lab, status: StatusWatch) -> Served:
    """Write documents, start the agent, and let clients begin when they are in force."""
    control = Control(lab)
    service = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    control.put("pools/web", {})
    for name in ("b1", "b2"):
        control.put(f"pools/web/backends/{name}", {"address": str(lab.address(name))})
    control.put("vips/web", service)
    written = control.put("vips/echo", service | {"port": 7, "protocol": "udp"})
    lab.start_agent("lb1")
    status.wait_applied(written.revision, timeout=120)
    return Served(lab)


def program(lab: Lab) -> int | None:
    """Return the number of the program on lb1."""
    with netns.entered(lab.node("lb1").namespace):
        there = attached("eth0")
    return there.program_id if there else None


def test_a_killed_agent_whose_pins_go_starts_again(bare_lab: Lab, status: StatusWatch) -> None:
    """It finds what forwards, goes on with its numbers, and no packet is lost over it."""
    clients = served(bare_lab, status)
    assert status.latest is not None
    before, pins = status.latest.status, bare_lab.spec.pin_dir("lb1")
    agent = bare_lab.agents["lb1"]
    agent.kill()
    shutil.rmtree(pins)
    agent.restart()
    written = Control(bare_lab).put("pools/web/backends/b3", {"address": "198.51.100.9"})
    after = status.wait_applied(written.revision, timeout=120).status
    assert after["generation"] > before["generation"]
    assert "event=pins_put_back" in agent.log.read_text()
    assert pinned_programs(pins) == {program(bare_lab)}
    clients.assert_unnoticed()


def test_a_running_agent_puts_its_pins_back(bare_lab: Lab, status: StatusWatch) -> None:
    """The folder is deleted: all is pinned again with the next change, counted and logged."""
    clients = served(bare_lab, status)
    pins, agent = bare_lab.spec.pin_dir("lb1"), bare_lab.agents["lb1"]
    there = {str(path) for path in pins.rglob("*")}
    shutil.rmtree(pins)
    written = Control(bare_lab).put("pools/web", {"mtu": 1400})
    status.wait_applied(written.revision, timeout=120)
    status.wait("repaired", lambda s: s["repairs"] >= len(there) - 2, 120)
    assert "event=pins_put_back" in agent.log.read_text()
    assert {path.name for path in map(Path, there)} >= {path.name for path in pins.iterdir()}
    assert pinned_programs(pins) == {program(bare_lab)}
    assert agent.terminate() == 0
    agent.restart()
    written = Control(bare_lab).put("pools/web", {"mtu": 1420})
    status.wait_applied(written.revision, timeout=120)
    clients.assert_unnoticed()


def test_take_over_replaces_what_a_start_refused(bare_lab: Lab, status: StatusWatch) -> None:
    """The refusal's own command: it is run as printed, and the agent forwards."""
    from tidegate.dataplane.kernel.programs import attach_pass  # noqa: PLC0415

    lab, written = bare_lab, Control(bare_lab).put("pools/web", {})
    with netns.entered(lab.node("lb1").namespace):
        attach_pass("eth0")
    agent = lab.start_agent("lb1")
    assert agent.process.wait(120) == 2
    refusal = agent.tail(1)
    command = refusal.split("; `tidegate ")[1].partition("`")[0].split()
    process = lab.node("lb1").popen(
        [*agent_command(), *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        status.wait_applied(written.revision, timeout=120)
        assert pinned_programs(lab.spec.pin_dir("lb1")) == {program(lab)}
    finally:
        process.terminate()
        process.wait(20)


def test_ids_that_rest_are_in_the_status(bare_lab: Lab, status: StatusWatch) -> None:
    """A pool has gone: its id is counted as resting, of as many as there are."""
    control = Control(bare_lab)
    control.put("pools/web", {})
    written = control.put("pools/gone", {})
    bare_lab.start_agent("lb1")
    before = status.wait_applied(written.revision, timeout=120).status["capacity"]["pools"]
    assert before == {"used": 2, "resting": 0, "limit": MAX_POOLS - 1}
    written = control.delete("pools/gone")
    after = status.wait_applied(written.revision, timeout=120).status["capacity"]["pools"]
    assert after == {"used": 1, "resting": 1, "limit": MAX_POOLS - 1}


def agent_command() -> list[str]:
    """Return how a test runs `tidegate`."""
    return [sys.executable, "-m", "tidegate.cli.main"]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[LifecycleHost]:
    built = LifecycleHost(tmp_path)
    yield built
    built.close()


def test_a_quarantine_gets_through_when_no_id_has_rested(host: LifecycleHost) -> None:
    """1,100 pools come and go within the hour; then a dead backend, and one more pool."""
    served = WEB | {"pools/web/backends/b": {"address": "198.51.100.2"}}
    for step in range(11):
        churned: Contents = {f"pools/p{step}-{n}": {} for n in range(100)}
        assert host.want(served | churned, step + 1) == []
    freed = host.plane.publisher.in_force.freed.pools
    assert len(freed) >= MAX_POOLS - 110
    dead = {"address": "198.51.100.1", "state": "quarantine"}
    wanted = served | {"pools/web/backends/a": dead, "pools/new": {}}
    assert host.want(wanted, 100) == []
    in_force = host.plane.publisher.in_force
    assert not in_force.backends[BackendKey("web", "a")].reachable
    assert in_force.pools["new"].identity.incarnation > 1
