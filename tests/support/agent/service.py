# SPDX-License-Identifier: Apache-2.0
"""An agent as its unit has it run, without systemd: its limits are set, its manager stands in.

MemoryMax and TasksMax are control groups of either version, LimitNOFILE is a limit, and the filter
of system calls is systemd's own. The manager reads what the agent notifies, and has the patience
that the unit, or systemd, gives it: TimeoutStartSec until READY=1, extended where the agent asks,
and WatchdogSec from then on. What it would have ended the agent for it keeps as a sentence.
"""

import re
import secrets
import socket
import sys
import threading
import time
from configparser import ConfigParser
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from support.agent import syscall_filter
from tidegate.lab.agents import AgentProcess, config_path, log_path
from tidegate.lab.rack import Lab

UNIT: Final = Path(__file__).resolve().parents[3] / "deploy/systemd/tidegate-agent.service"
CGROUPS: Final = Path("/sys/fs/cgroup")
START_SECONDS: Final = 90.0
"""systemd's own DefaultTimeoutStartSec."""
_ENTER: Final = 'ulimit -n "$1"; shift; for g in $1; do echo $$ > "$g/cgroup.procs"; done; shift; '
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def setting(name: str) -> str:
    """Return a setting of the unit's service."""
    parser = ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text("utf-8"))
    return parser["Service"][name]


def size(text: str) -> int:
    """Return bytes of a size such as 6G."""
    return int(text.rstrip("KMG")) * _UNITS[text[-1] if text[-1] in _UNITS else ""]


class Groups:
    """The control groups of one service."""

    def __init__(self, memory: int, tasks: int) -> None:
        name = f"tidegate-test-{secrets.token_hex(4)}"
        self.is_v1 = (CGROUPS / "memory" / "memory.limit_in_bytes").exists()
        if self.is_v1:
            self.folders = [CGROUPS / "memory" / name, CGROUPS / "pids" / name]
        else:
            self.folders = [CGROUPS / name, CGROUPS / name]
            (CGROUPS / "cgroup.subtree_control").write_text("+memory +pids")
        for folder in self.folders:
            folder.mkdir(exist_ok=True)
        limit = "memory.limit_in_bytes" if self.is_v1 else "memory.max"
        (self.folders[0] / limit).write_text(str(memory))
        (self.folders[1] / "pids.max").write_text(str(tasks))

    @property
    def peak(self) -> int:
        """The most bytes of memory that it had, maps of the kernel and page cache included."""
        name = "memory.max_usage_in_bytes" if self.is_v1 else "memory.peak"
        return int((self.folders[0] / name).read_text())

    def remove(self) -> None:
        """Remove them; nobody is in them any more."""
        for folder in {*self.folders}:
            folder.rmdir()


class Service:
    """Runs lb1's agent of a lab; a context manager."""

    def __init__(self, lab: Lab, watchdog: float = float(setting("WatchdogSec"))) -> None:
        self._lab = lab
        self.groups = Groups(size(setting("MemoryMax")), int(setting("TasksMax")))
        self._watchdog = watchdog
        self._path = lab.spec.folder / "notify"
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(self._path))
        self._manager.settimeout(0.2)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._manage, daemon=True)
        self.failure = ""
        """Why systemd would have ended the agent; empty if it would not."""
        self.longest = 0.0
        """Seconds between two signs of life, at most, once it was ready."""
        self.ready = threading.Event()
        self.start_seconds = 0.0
        self.agent: AgentProcess | None = None

    def __enter__(self) -> Self:
        lab = self._lab
        command = [sys.executable, syscall_filter.__file__, str(UNIT), "tidegate.cli.main"]
        command += ["agent", "run", "-c", str(config_path(lab.spec, "lb1"))]
        groups = " ".join(str(folder) for folder in {*self.groups.folders})
        shell = ["sh", "-c", f'{_ENTER} exec "$@"', "sh", setting("LimitNOFILE"), groups, *command]
        environment = {
            "NOTIFY_SOCKET": str(self._path),
            "WATCHDOG_USEC": str(int(self._watchdog * 1e6)),
        }
        log = log_path(lab.spec, "lb1")
        process = lab.node("lb1").daemon(shell, log, environment)
        self.agent = AgentProcess(lab.node("lb1"), config_path(lab.spec, "lb1"), log, process)
        lab.agents["lb1"] = self.agent
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self.agent is not None and self.agent.process.poll() is None:
            self.agent.kill()
        self._manager.close()
        self._path.unlink()
        self.groups.remove()

    def stop(self) -> int:
        """End it as systemd does; return its exit code."""
        assert self.agent is not None
        self._ended.set()
        return self.agent.terminate(float(setting("TimeoutStopSec")))

    def threads(self) -> int:
        """Return how many tasks it has."""
        assert self.agent is not None
        return len(list(Path(f"/proc/{self.agent.process.pid}/task").iterdir()))

    def _manage(self) -> None:
        began = seen = time.monotonic()
        ends = began + START_SECONDS
        while not self._ended.is_set() and not self.failure:
            text = ""
            with suppress(TimeoutError):
                text = self._manager.recv(4096).decode()
            now = time.monotonic()
            extended = re.search(r"^EXTEND_TIMEOUT_USEC=(\d+)$", text, re.MULTILINE)
            if "READY=1" in text.splitlines() and not self.ready.is_set():
                self.start_seconds, seen = now - began, now
                self.ready.set()
            if not self.ready.is_set():
                ends = max(ends, now + int(extended[1]) / 1e6) if extended else ends
                if now > ends:
                    self.failure = f"not ready after {now - began:.0f} s"
                continue
            if "WATCHDOG=1" in text.splitlines():
                self.longest, seen = max(self.longest, now - seen), now
            if now - seen > self._watchdog:
                self.failure = f"no sign of life for {now - seen:.0f} s"
