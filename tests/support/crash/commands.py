# SPDX-License-Identifier: Apache-2.0
"""Commands on a test's host: those that a text tells to run, as it prints them."""

import re
import subprocess
import sys
from pathlib import Path

from support.crash.host import Host
from tidegate.lab import netns


def commands(text: object) -> list[str]:
    """Return the commands that a text tells to run."""
    return re.findall(r"`([^`]+)`", str(text))


def file_of(of: Host, folder: Path, **others: str) -> Path:
    """Write the agent's file of a host."""
    named = {"host": "lb1", "fleet": "test", "pin_dir": str(of.pins)} | others
    path = folder / f"{named['host']}.toml"
    lines = [f'{name} = "{value}"' for name, value in named.items()]
    lines += [f"interfaces = {list(of.interfaces)}", 'xdp_mode = "generic"']
    lines += ['[encapsulation]\nsource4 = "10.0.0.0/24"\nsource6 = "2001:db8:ffff::/64"']
    path.write_text("\n".join([*lines, '[etcd]\nendpoints = ["127.0.0.1:1"]', ""]))
    return path


def run(host: Host, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as it was printed, on the host."""
    printed = command.replace("tidegate ", f"{sys.executable} -m tidegate.cli.main ", 1)
    with netns.entered(host.name):
        return subprocess.run(
            ["sh", "-c", printed], capture_output=True, text=True, check=False, timeout=300
        )
