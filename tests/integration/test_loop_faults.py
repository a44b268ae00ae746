# SPDX-License-Identifier: Apache-2.0
"""Real faults under a running agent: it goes on, names them, takes the dead out, and recovers."""

import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support.agent.service import Service
from tidegate.lab.agents import config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=3), pytest.mark.timeout(300)]

PATIENCE = 90
"""Seconds; the machine may be busy."""
HEALTH = {"check": {"type": "tcp", "interval": 0.3, "timeout": 0.25, "rise": 2, "fall": 2}}


@pytest.fixture
def disks(bare_lab: Lab) -> Iterator[tuple[Path, Path]]:
    """Give two small file systems: lb1's journal is on one, its ready file on the other."""
    config = config_path(bare_lab.spec, "lb1")
    found = config.with_name("journal"), config.with_name("flags")
    for folder in found:
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", "size=256k"]
        subprocess.run(["mount", *options, "tmpfs", str(folder)], check=True)
    text = config.read_text().replace(f"{config.parent}/state", str(found[0]))
    config.write_text(f'ready_file = "{found[1] / "ready"}"\n{text}')
    yield found
    bare_lab.agents["lb1"].kill()
    for folder in found:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def lock(folder: Path, mode: str) -> None:
    """Make a file system read-only (ro), or writable again (rw)."""
    subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)


def until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until it holds."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.05)


def fill(file: Path) -> None:
    """Leave no room beside a file."""
    with file.open("wb", buffering=0) as junk, suppress(OSError):
        while True:
            junk.write(b"x" * 4096)


def serve(lab: Lab) -> Control:
    """Write a service of three servers that are checked."""
    control = Control(lab)
    control.put("pools/web", {"health": HEALTH})
    for name in ("b1", "b2", "b3"):
        control.put(f"pools/web/backends/{name}", {"address": str(lab.address(name))})
    vip = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    control.put("vips/web4", vip)
    return control


def test_a_full_and_a_locked_disk_end_nothing(
    bare_lab: Lab, disks: tuple[Path, Path], status: StatusWatch
) -> None:
    """Journal and ready file are warnings; changes come into force, and the dead are out."""
    journal, flags = disks
    control = serve(bare_lab)
    agent = bare_lab.start_agent("lb1")
    status.wait("ready", lambda s: s["ready"] and s["state"] == "synced", PATIENCE)
    until((flags / "ready").exists, "ready file")
    fill(journal / "junk")
    lock(flags, "ro")
    for mtu in range(1400, 1440):  # what the journal's last page has room for is written
        written = control.put("pools/web", {"health": HEALTH, "mtu": mtu})
        status.wait_applied(written.revision, PATIENCE)
        if "journal" in kinds(status.current()):
            break
    agent.reload()
    bare_lab.stop_http("b1")
    status.wait("b1 is out", lambda s: s["backends"]["unhealthy"] == 1, PATIENCE)
    status.wait("both named", lambda s: {"journal", "ready_file"} <= kinds(s), PATIENCE)
    lock(flags, "rw")
    (journal / "junk").unlink()
    bare_lab.start_http("b1")
    written = control.put("pools/web", {"health": HEALTH})
    status.wait_applied(written.revision, PATIENCE)
    status.wait("well", lambda s: not s["warnings"] and s["state"] == "synced", PATIENCE)
    assert agent.terminate() == 0


def kinds(status: dict[str, Any]) -> set[str]:
    """Return what the warnings of a status are about."""
    return {
        kind for kind in ("journal", "ready_file") for text in status["warnings"] if kind in text
    }


def test_an_agent_without_descriptors_is_alive(bare_lab: Lab, status: StatusWatch) -> None:
    """For longer than its watchdog waits; a reload and a change that failed are made up for."""
    control = serve(bare_lab)
    with Service(bare_lab, watchdog=10) as service:
        assert service.ready.wait(PATIENCE)
        status.wait("ready", lambda s: s["ready"] and s["state"] == "synced", PATIENCE)
        agent = service.agent
        assert agent is not None
        pid = agent.process.pid
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
        began = time.monotonic()
        written = control.put("pools/other", {})
        agent.reload()
        until(lambda: "Too many open files" in agent.log.read_text(), agent.tail())
        until(lambda: time.monotonic() > began + 15, "15 s")  # more than the watchdog has
        assert service.failure == ""
        assert agent.process.poll() is None
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        status.wait("it", lambda s: s["generation_revision"] >= written.revision, PATIENCE)
        status.wait("well", lambda s: not s["warnings"] and s["state"] == "synced", PATIENCE)
        assert service.failure == ""
        assert service.stop() == 0
