# SPDX-License-Identifier: Apache-2.0
"""The units for systemd: an agent that ends comes back, and may do no more than it needs."""

import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
UNITS = ROOT / "deploy/systemd"
AGENT = UNITS / "tidegate-agent.service"
MOUNT = UNITS / "sys-fs-bpf-tidegate.mount"
SYSUSERS = UNITS / "tidegate.sysusers"


def parsed(path: Path) -> ConfigParser:
    """Return a unit; of several lines with one name the first."""
    unit = ConfigParser(interpolation=None)
    lines: dict[str, str] = {}
    for line in path.read_text("utf-8").splitlines():
        lines.setdefault(line.partition("=")[0], line)
    unit.read_string("\n".join(lines.values()))
    return unit


def test_the_agent_is_started_again_without_a_limit() -> None:
    """After any exit and within seconds; systemd's own limit of five starts is off."""
    unit = parsed(AGENT)
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["Restart"] == "always"
    assert float(unit["Service"]["RestartSec"]) <= 5
    assert unit["Service"]["Type"] == "notify"


def test_the_agent_has_three_capabilities_and_a_filter() -> None:
    """Nothing else of root's, system calls by a list, and a limit to what it may take."""
    service = parsed(AGENT)["Service"]
    assert service["CapabilityBoundingSet"].split() == ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]
    assert service["SystemCallFilter"].split() == ["@system-service", "bpf"]
    assert service["MemoryMax"].endswith("G")
    assert service["NoNewPrivileges"] == service["MemoryDenyWriteExecute"] == "yes"


def prepared() -> list[str]:
    """Return what the agent's unit does before each start, in order."""
    return re.findall(r"^ExecStartPre=(.*)$", AGENT.read_text("utf-8"), re.MULTILINE)


def test_lost_pins_come_back_before_the_agent_starts() -> None:
    """By a command that has root's powers and ends; that it fails does not stop the start."""
    repin, _, _ = prepared()
    flags, _, command = repin.partition("/")
    assert set(flags) == {"+", "-"}
    assert command.split()[1:] == [
        "agent",
        "repin",
        *parsed(AGENT)["Service"]["ExecStart"].split()[3:],
    ]


def test_pins_have_a_file_system_of_their_own() -> None:
    """Its unit is called as its place, hides no pins that are there, and comes before the agent."""
    mount, agent = parsed(MOUNT), parsed(AGENT)["Unit"]
    where = mount["Mount"]["Where"]
    assert MOUNT.stem == where.strip("/").replace("/", "-")
    assert mount["Unit"]["ConditionDirectoryNotEmpty"] == f"!{where}"
    assert "mode=0700" in mount["Mount"]["Options"].split(",")
    assert MOUNT.name in agent["Wants"].split()
    assert MOUNT.name in agent["After"].split()


def test_the_agent_is_a_user_that_sees_its_pins_alone() -> None:
    """Not root, by name or by powers; the folder is made, and made its own, before each start."""
    unit, users = parsed(AGENT)["Service"], SYSUSERS.read_text("utf-8")
    assert f"u {unit['User']} - " in users
    where = parsed(MOUNT)["Mount"]["Where"]
    assert unit["BindPaths"] == where
    assert unit["TemporaryFileSystem"] == f"{Path(where).parent}:ro"
    _, made, owned = prepared()
    assert made.startswith("+/usr/bin/install -d ")
    assert owned.startswith("+/usr/bin/chown ")
    assert all(line.endswith(where) and unit["User"] in line for line in (made, owned))


@pytest.mark.parametrize("unit", [AGENT, MOUNT], ids=lambda path: path.name)
def test_systemd_understands_every_line(unit: Path, tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say about them."""
    for each in (AGENT, MOUNT):
        text = each.read_text("utf-8").replace("/opt/tidegate/bin/tidegate", "/bin/true")
        (tmp_path / each.name).write_text(text, "utf-8")
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    done = subprocess.run(
        [*command, str(tmp_path / unit.name)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_the_agent_little_exposed() -> None:
    """By its own measure, on which 10 is a service without any protection."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(AGENT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:]
