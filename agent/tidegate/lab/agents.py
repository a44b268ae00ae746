# SPDX-License-Identifier: Apache-2.0
"""The Tidegate agent on the lab's LB hosts: its file, its process, and its sudden death.

The agent is started as on a real host, by its command line. It enters the LB host's network
namespace and no other, so that it sees the machine's /sys/fs/bpf.
"""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tidegate.errors import LabError
from tidegate.lab.plan import NIC, OUTER4, OUTER6, LabSpec, etcd_endpoints
from tidegate.lab.processes import Node

ROOT = "/tidegate"
FLEET = "default"
RELEASE = "live"

_CONFIG = """\
host = "{host}"
fleet = "{fleet}"
release = "{release}"
interfaces = ["{nic}"]
xdp_mode = "native"
pin_dir = "{pin_dir}"
control_socket = "{folder}/agent.sock"
state_dir = "{folder}/state"

[etcd]
root = "{root}"
endpoints = {etcd}

[encapsulation]
source4 = "{outer4}"
source6 = "{outer6}"
"""


def config_path(spec: LabSpec, lb: str) -> Path:
    """Return where the agent's file of an LB host is."""
    return spec.folder / lb / "agent.toml"


def log_path(spec: LabSpec, lb: str) -> Path:
    """Return where an agent that the lab started writes its log."""
    return spec.folder / lb / "agent.log"


def write_config(spec: LabSpec, lb: str) -> Path:
    """Write the agent's file of an LB host and return its path."""
    path = config_path(spec, lb)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        _CONFIG.format(
            host=lb,
            fleet=FLEET,
            release=RELEASE,
            nic=NIC,
            pin_dir=spec.pin_dir(lb),
            folder=path.parent,
            root=ROOT,
            etcd=json.dumps(etcd_endpoints(spec.stations())),
            outer4=OUTER4,
            outer6=OUTER6,
        )
    )
    return path


@dataclass
class AgentProcess:
    """A running agent on an LB host."""

    node: Node
    config: Path
    log: Path
    process: "subprocess.Popen[bytes]"

    @classmethod
    def start(cls, node: Node, config: Path, log: Path) -> "AgentProcess":
        """Start `tidegate agent run -c FILE`, without waiting until it has synchronised."""
        command = [sys.executable, "-m", "tidegate.cli.main", "agent", "run", "-c", str(config)]
        return cls(node, config, log, node.daemon(command, log))

    def kill(self) -> None:
        """Kill it with SIGKILL, without a chance to clean up; return when it is gone."""
        self.process.kill()
        self.process.wait(10)

    def terminate(self, timeout: float = 10) -> int:
        """Send SIGTERM, wait for the end, and return the exit code.

        Raises:
            LabError: it is still there after `timeout` seconds.
        """
        self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise LabError(
                f"the agent on {self.node.name} ignores SIGTERM for {timeout:g} s; see {self.log}"
            ) from error

    def reload(self) -> None:
        """Send SIGHUP."""
        self.process.send_signal(signal.SIGHUP)

    def restart(self) -> None:
        """Start it once more after `kill` or `terminate`, on the same file."""
        self.process = AgentProcess.start(self.node, self.config, self.log).process

    def tail(self, lines: int = 10) -> str:
        """Return the last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
