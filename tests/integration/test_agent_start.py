# SPDX-License-Identifier: Apache-2.0
"""An agent that cannot start now and could a moment later needs nobody to start it again."""

import resource
import signal
import sys
import time

import pytest

from tidegate.lab.agents import AgentProcess, config_path, log_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=1)]

FEW, ENOUGH = 24, 1024
"""File descriptors: fewer than the data plane has maps, and as many as an agent needs."""
# An agent takes all descriptors that it may have; this one is left with few.
_SHORT = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({FEW}, {ENOUGH}))
resource.setrlimit = lambda *_: None
from tidegate.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def start_with_few_descriptors(lab: Lab) -> AgentProcess:
    """Start lb1's agent as on a host that has no more to give."""
    config, log = config_path(lab.spec, "lb1"), log_path(lab.spec, "lb1")
    run = [sys.executable, "-c", _SHORT, "agent", "run", "-c", str(config)]
    process = lab.node("lb1").daemon(run, log)
    lab.agents["lb1"] = AgentProcess(lab.node("lb1"), config, log, process)
    return lab.agents["lb1"]


def wait_for_attempts(agent: AgentProcess, count: int) -> None:
    """Wait until the agent has said this often that it tries again."""
    wait_for_log(agent, "event=start_postponed ", count)


def wait_for_log(agent: AgentProcess, text: str, count: int = 1) -> None:
    """Wait until the agent has said something so often."""
    deadline = time.monotonic() + 40
    while agent.log.read_text().count(text) < count:
        assert agent.process.poll() is None, agent.tail()
        assert time.monotonic() < deadline, agent.tail()
        time.sleep(0.05)


def test_an_agent_waits_for_a_host_that_is_short(bare_lab: Lab, status: StatusWatch) -> None:
    """It says what is lacking and tries again; once there is enough, it is as any other agent."""
    written = Control(bare_lab).put("pools/web", {})
    agent = start_with_few_descriptors(bare_lab)
    wait_for_attempts(agent, 2)
    assert "Too many open files" in agent.tail()
    resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (ENOUGH, ENOUGH))
    status.wait_applied(written.revision, timeout=40)
    assert agent.terminate() == 0


def test_an_agent_that_waits_can_be_ended(bare_lab: Lab) -> None:
    """A signal ends it at once, and the next one starts where it would have."""
    agent = start_with_few_descriptors(bare_lab)
    wait_for_attempts(agent, 1)
    agent.terminate(timeout=5)
    written = Control(bare_lab).put("pools/web", {})
    agent.restart()
    with StatusWatch(bare_lab, "lb1") as status:
        status.wait_applied(written.revision, timeout=40)


def test_an_agent_outlives_a_lack_of_descriptors(bare_lab: Lab, status: StatusWatch) -> None:
    """Audits, links and publishing fail meanwhile, are named, and work again; it is never gone."""
    control, agent = Control(bare_lab), bare_lab.start_agent("lb1")
    status.wait_applied(control.put("pools/web", {}).revision, timeout=40)
    hard = resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (3, hard))
    bare_lab.node("lb1").run(["ip", "address", "add", "10.99.99.1/32", "dev", "lo"])
    written = control.put("pools/other", {})
    wait_for_log(agent, "Too many open files")
    agent.process.send_signal(signal.SIGHUP)  # so that it reads its file, too
    wait_for_log(agent, "event=part_failed ")
    assert agent.process.poll() is None, agent.tail()
    resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (hard, hard))
    status.wait("in force", lambda s: s["generation_revision"] >= written.revision, 40)
    wait_for_log(agent, "event=part_works_again ")
    assert agent.terminate() == 0
