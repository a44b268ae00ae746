# SPDX-License-Identifier: Apache-2.0
"""An agent with what its unit allows: a user, capabilities, system calls, and pins of its own.

What systemd sets up is made here from the unit's lines. Its user has another name, since a test
makes none.
"""

import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.agent import syscall_filter
from tidegate.lab.agents import AgentProcess, config_path, log_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=1)]

UNIT = Path(__file__).resolve().parents[2] / "deploy/systemd/tidegate-agent.service"
USER, EXABGP = 65534, 4242
BPF = Path("/sys/fs/bpf")
# TemporaryFileSystem= and BindPaths=: the folder is all of /sys/fs/bpf that the agent has.
_VIEW = """
set -e
hold=$(mktemp -d)
mount --bind "$0" "$hold"
mount -t tmpfs -o mode=0755 tmpfs /sys/fs/bpf
mkdir "$0"
mount --move "$hold" "$0"
mount -o remount,ro,bind /sys/fs/bpf
rmdir "$hold"
exec "$@"
"""


@pytest.fixture
def mounted_lab(bare_lab: Lab) -> Iterator[Lab]:
    """A lab whose first host has a BPF file system for its pins alone, below one that is root's."""
    pins, mode = bare_lab.spec.pin_dir("lb1"), BPF.stat().st_mode
    pins.mkdir(mode=0o700)
    options = "mode=0700,nosuid,nodev,noexec"
    subprocess.run(["mount", "-t", "bpf", "-o", options, "bpf", str(pins)], check=True)
    yield bare_lab
    bare_lab.agents["lb1"].kill()
    subprocess.run(["umount", "--lazy", str(pins)], check=True)
    pins.rmdir()
    assert BPF.stat().st_mode == mode


def command(lab: Lab, *words: str) -> list[str]:
    """Return a command of lb1's agent that may do no more than its unit allows."""
    unit = ConfigParser(interpolation=None, strict=False)
    unit.read_string(UNIT.read_text("utf-8"))
    capabilities = unit["Service"]["AmbientCapabilities"].lower().replace("cap_", "+").split()
    only = ",".join(["-all", *capabilities])
    view = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _VIEW]
    rights = [
        "setpriv",
        *(f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"),
        *(f"--bounding-set={only}", f"--inh-caps={only}", f"--ambient-caps={only}"),
    ]
    run = [sys.executable, syscall_filter.__file__, str(UNIT), "tidegate.cli.main", *words]
    pins, config = str(lab.spec.pin_dir("lb1")), str(config_path(lab.spec, "lb1"))
    return [*view, pins, *rights, *run, "-c", config]


def start_limited(lab: Lab) -> AgentProcess:
    """Start lb1's agent with no more than its unit allows, on what an agent of root's has left."""
    pins = str(lab.spec.pin_dir("lb1"))
    for line in re.findall(r"^ExecStartPre=\+(/.*) \S+$", UNIT.read_text("utf-8"), re.MULTILINE):
        subprocess.run([*line.replace("tidegate", str(USER)).split(), pins], check=True)
    subprocess.run(["chown", "-R", f"{USER}:{USER}", str(lab.folder("lb1"))], check=True)
    config, log = config_path(lab.spec, "lb1"), log_path(lab.spec, "lb1")
    process = lab.node("lb1").daemon(command(lab, "agent", "run"), log)
    lab.agents["lb1"] = AgentProcess(lab.node("lb1"), config, log, process)
    return lab.agents["lb1"]


def rights_of(process: int) -> dict[str, str]:
    """Return a process's user ids, capabilities and filter, as the kernel has them."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@contextmanager
def exabgp_pipe(lab: Lab) -> Iterator[int]:
    """Have the agent write to a pipe that is made as docs/announce.md says; give its other end."""
    pipe = lab.folder("b1") / "tidegate.pipe"
    os.mkfifo(pipe, 0o620)
    pipe.chmod(0o620)
    os.chown(pipe, EXABGP, USER)
    with config_path(lab.spec, "lb1").open("a") as config:
        config.write(f'\n[announce]\nexabgp_pipe = "{pipe}"\nwithdraw_on_stop = false\n')
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    yield reader
    os.close(reader)


def test_a_pipe_that_exabgp_reads_can_be_written(mounted_lab: Lab, status: StatusWatch) -> None:
    """By an agent that is no root, in a folder that it may not write to."""
    control, vip = Control(mounted_lab), str(mounted_lab.vip4())
    control.put("pools/web", {})
    control.put("pools/web/backends/b1", {"address": str(mounted_lab.address("b1"))})
    written = control.put(
        "vips/www", {"address": vip, "port": 80, "protocol": "tcp", "pool": "web"}
    )
    with exabgp_pipe(mounted_lab) as reader:
        start_limited(mounted_lab)
        status.wait_applied(written.revision, timeout=60)
        with select.epoll() as poll:
            poll.register(reader, select.EPOLLIN)
            assert poll.poll(60), status.current()
        assert os.read(reader, 65536).startswith(f"announce route {vip}/32 next-hop".encode())


def test_an_agent_works_with_what_its_unit_allows(mounted_lab: Lab, status: StatusWatch) -> None:
    """It takes over from one of root's, loads and publishes; so does the next, and root ends it."""
    control, pins = Control(mounted_lab), mounted_lab.spec.pin_dir("lb1")
    written = control.put("pools/web", {})
    agent = mounted_lab.start_agent()
    status.wait_applied(written.revision, timeout=60)
    assert agent.terminate() == 0
    written = control.put("pools/web/backends/b1", {"address": "198.51.100.7"})
    agent = start_limited(mounted_lab)
    status.wait_applied(written.revision, timeout=60)
    rights = rights_of(agent.process.pid)
    assert set(rights["Uid"].split()) == {str(USER)}
    assert int(rights["CapBnd"], 16).bit_count() == int(rights["CapEff"], 16).bit_count() == 3
    assert (rights["NoNewPrivs"], rights["Seccomp"]) == ("1", "2")
    seen = {each.name for each in Path(f"/proc/{agent.process.pid}/root{BPF}").iterdir()}
    assert seen == {pins.name}
    assert agent.terminate() == 0
    assert (pins / "program").exists()
    agent = start_limited(mounted_lab)
    written = control.put("pools/web", {"mtu": 1400})
    status.wait_applied(written.revision, timeout=60)
    assert not status.current()["warnings"]
    assert "adopted=true" in agent.tail(100)
    assert agent.terminate() == 0
    own = [sys.executable, "-m", "tidegate.cli.main", "agent", "remove"]
    mounted_lab.node("lb1").run([*own, "-c", str(config_path(mounted_lab.spec, "lb1"))])
    left = {each.name for each in pins.iterdir()}
    assert left <= {"maps.debug", "progs.debug"}  # the kernel's own


def test_an_agent_ends_when_its_view_is_stale(bare_lab: Lab, status: StatusWatch) -> None:
    """Its folder is removed where others see it, and stays where it does: the next start heals."""
    control, pins = Control(bare_lab), bare_lab.spec.pin_dir("lb1")
    written = control.put("pools/web", {})
    agent = start_limited(bare_lab)
    status.wait_applied(written.revision, timeout=60)
    shutil.rmtree(pins)
    control.put("pools/web", {"mtu": 1400})
    assert agent.process.wait(60) == 2
    assert f"{pins} was removed outside of this agent's view" in agent.tail()
