# SPDX-License-Identifier: Apache-2.0
"""An agent whose loop hangs: what says that the host is well runs out, and comes back."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tidegate.keyspace import paths
from tidegate.lab.agents import FLEET, ROOT, AgentProcess, config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import CONTROL
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=1)]

TTL = 3


@pytest.fixture
def ready_file(bare_lab: Lab) -> Path:
    return config_path(bare_lab.spec, "lb1").with_name("ready")


@pytest.fixture
def agent(bare_lab: Lab, status: StatusWatch, ready_file: Path) -> AgentProcess:
    """Give an agent that is ready, and whose status has a short lease."""
    control = Control(bare_lab)
    control.put("pools/web", {})
    control.put("pools/web/backends/b1", {"address": str(bare_lab.address("b1"))})
    control.put(
        "vips/web4",
        {"address": str(bare_lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"},
    )
    config = config_path(bare_lab.spec, "lb1")
    text = config.read_text().replace("[etcd]", f"[etcd]\nstatus_ttl = {TTL}")
    config.write_text(f'ready_file = "{ready_file}"\n{text}')
    started = bare_lab.start_agent("lb1")
    status.wait("ready", lambda s: s.get("ready") and s["state"] == "synced", timeout=30)
    return started


def until(condition: Callable[[], bool], timeout: float) -> None:
    """Look again and again until it holds."""
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.1)


def has_status(lab: Lab) -> bool:
    key = paths.status_key(ROOT, FLEET, "lb1")
    return "lb1" in lab.node(CONTROL).run(["etcdctl", "get", key]).stdout


def test_what_says_that_it_is_well_runs_out(
    bare_lab: Lab, agent: AgentProcess, ready_file: Path
) -> None:
    """The loop reads its file from a pipe that nobody writes: any other wait would do."""
    text = agent.config.read_text()
    agent.config.unlink()
    os.mkfifo(agent.config)
    assert ready_file.exists()
    agent.reload()
    until(lambda: not has_status(bare_lab), timeout=5 * TTL)
    until(lambda: not ready_file.exists(), timeout=TTL)
    assert "loop_hangs" in agent.tail(50)
    agent.config.write_text(text)  # waits for the loop, which goes on with it
    until(lambda: has_status(bare_lab) and ready_file.exists(), timeout=4 * TTL)
    assert agent.terminate() == 0
