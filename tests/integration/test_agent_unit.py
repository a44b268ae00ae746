# SPDX-License-Identifier: Apache-2.0
"""An agent under what its unit allows: a filter of system calls, pins on a mount of their own."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent import syscall_filter
from tidegate.lab.agents import AgentProcess, config_path, log_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=1)]

UNIT = Path(__file__).resolve().parents[2] / "deploy/systemd/tidegate-agent.service"


@pytest.fixture
def mounted_lab(bare_lab: Lab) -> Iterator[Lab]:
    """A lab whose first host has a BPF file system for its pins alone."""
    pins = bare_lab.spec.pin_dir("lb1")
    pins.mkdir(mode=0o700)
    options = "mode=0700,nosuid,nodev,noexec"
    subprocess.run(["mount", "-t", "bpf", "-o", options, "bpf", str(pins)], check=True)
    yield bare_lab
    bare_lab.agents["lb1"].kill()
    subprocess.run(["umount", "--lazy", str(pins)], check=True)
    pins.rmdir()


def command(lab: Lab, *words: str) -> list[str]:
    """Return a command of lb1's agent that makes no system call but those that its unit allows."""
    run = [sys.executable, syscall_filter.__file__, str(UNIT), "tidegate.cli.main"]
    return [*run, *words, "-c", str(config_path(lab.spec, "lb1"))]


def start_filtered(lab: Lab) -> AgentProcess:
    """Start lb1's agent with the system calls that its unit allows."""
    config, log = config_path(lab.spec, "lb1"), log_path(lab.spec, "lb1")
    process = lab.node("lb1").daemon(command(lab, "agent", "run"), log)
    lab.agents["lb1"] = AgentProcess(lab.node("lb1"), config, log, process)
    return lab.agents["lb1"]


def test_an_agent_works_under_its_units_filter(mounted_lab: Lab, status: StatusWatch) -> None:
    """It compiles, loads, attaches and publishes; the next one takes over, and one removes it."""
    control = Control(mounted_lab)
    control.put("pools/web", {})
    written = control.put("pools/web/backends/b1", {"address": "198.51.100.7"})
    agent = start_filtered(mounted_lab)
    status.wait_applied(written.revision, timeout=40)
    assert agent.terminate() == 0
    assert (mounted_lab.spec.pin_dir("lb1") / "program").exists()
    agent = start_filtered(mounted_lab)
    written = control.put("pools/web", {"mtu": 1400})
    status.wait_applied(written.revision, timeout=40)
    assert agent.terminate() == 0
    mounted_lab.node("lb1").run(command(mounted_lab, "agent", "remove"))
    left = {each.name for each in mounted_lab.spec.pin_dir("lb1").iterdir()}
    assert left <= {"maps.debug", "progs.debug"}  # the kernel's own
