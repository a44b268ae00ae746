# SPDX-License-Identifier: Apache-2.0
"""An agent with what its unit allows: capabilities, system calls, pins on a mount of their own.

As root, as the unit has it, and as a user, as it says that one may.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from support.agent import syscall_filter
from tidegate.lab.agents import AgentProcess, config_path, log_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=1)]

UNIT = Path(__file__).resolve().parents[2] / "deploy/systemd/tidegate-agent.service"
USERS = {"root": 0, "a user": 65534}


@pytest.fixture(params=USERS)
def user(request: pytest.FixtureRequest) -> int:
    """Who runs the agent."""
    return USERS[request.param]


@pytest.fixture
def mounted_lab(bare_lab: Lab, user: int) -> Iterator[Lab]:
    """A lab whose first host has a BPF file system for pins alone, which the agent's user has."""
    pins = bare_lab.folder("lb1") / "pins"
    pins.mkdir()
    options = "mode=0700,nosuid,nodev,noexec"
    subprocess.run(["mount", "-t", "bpf", "-o", options, "bpf", str(pins)], check=True)
    for each in (bare_lab.folder("lb1"), pins):
        os.chown(each, user, user)
    config = config_path(bare_lab.spec, "lb1")
    text = config.read_text()
    config.write_text(text.replace(f'"{bare_lab.spec.pin_dir("lb1")}"', f'"{pins}"'))
    yield bare_lab
    bare_lab.agents["lb1"].kill()
    subprocess.run(["umount", "--lazy", str(pins)], check=True)


def command(lab: Lab, user: int, *words: str) -> list[str]:
    """Return a command of lb1's agent that may do no more than its unit allows."""
    unit = ConfigParser(interpolation=None, strict=False)
    unit.read_string(UNIT.read_text("utf-8"))
    capabilities = unit["Service"]["AmbientCapabilities"].lower().replace("cap_", "+").split()
    only = ",".join(["-all", *capabilities])
    rights = [
        "setpriv",
        *(f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"),
        *(f"--bounding-set={only}", f"--inh-caps={only}", f"--ambient-caps={only}"),
    ]
    run = [sys.executable, syscall_filter.__file__, str(UNIT), "tidegate.cli.main"]
    return [*rights, *run, *words, "-c", str(config_path(lab.spec, "lb1"))]


def start_limited(lab: Lab, user: int) -> AgentProcess:
    """Start lb1's agent with the capabilities and system calls that its unit allows."""
    config, log = config_path(lab.spec, "lb1"), log_path(lab.spec, "lb1")
    process = lab.node("lb1").daemon(command(lab, user, "agent", "run"), log)
    lab.agents["lb1"] = AgentProcess(lab.node("lb1"), config, log, process)
    return lab.agents["lb1"]


def rights_of(process: int) -> dict[str, str]:
    """Return a process's user ids, capabilities and filter, as the kernel has them."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_an_agent_works_with_what_its_unit_allows(
    mounted_lab: Lab, status: StatusWatch, user: int
) -> None:
    """It compiles, loads, attaches and publishes; the next one takes over, and one removes it."""
    control, pins = Control(mounted_lab), mounted_lab.folder("lb1") / "pins"
    control.put("pools/web", {})
    written = control.put("pools/web/backends/b1", {"address": "198.51.100.7"})
    agent = start_limited(mounted_lab, user)
    status.wait_applied(written.revision, timeout=60)
    rights = rights_of(agent.process.pid)
    assert set(rights["Uid"].split()) == {str(user)}
    assert int(rights["CapBnd"], 16).bit_count() == int(rights["CapEff"], 16).bit_count() == 3
    assert (rights["NoNewPrivs"], rights["Seccomp"]) == ("1", "2")
    assert agent.terminate() == 0
    assert (pins / "program").exists()
    agent = start_limited(mounted_lab, user)
    written = control.put("pools/web", {"mtu": 1400})
    status.wait_applied(written.revision, timeout=60)
    assert not status.current()["warnings"]
    assert agent.terminate() == 0
    mounted_lab.node("lb1").run(command(mounted_lab, user, "agent", "remove"))
    left = {each.name for each in pins.iterdir()}
    assert left <= {"maps.debug", "progs.debug"}  # the kernel's own
