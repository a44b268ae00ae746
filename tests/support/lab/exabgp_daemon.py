# SPDX-License-Identifier: Apache-2.0
"""A real ExaBGP on a lab's load balancer, fed by its agent's pipe, beside the host's BIRD.

It speaks to the router's BIRD from addresses of its own, and what it announces goes into tables of
their own there: the router's routes stay those of the hosts' BIRDs.
"""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tidegate.lab.plan import NIC, ROUTER
from tidegate.lab.rack import Lab

if TYPE_CHECKING:
    import subprocess

_NUMBER: Final = 77
"""Of its addresses on the host's link."""
PEERS: Final = """
ipv4 table learned4;
ipv6 table learned6;
protocol bgp exa4 {{
    local {router} as 65000;
    neighbor {address} as 65001;
    passive;
    ipv4 {{ table learned4; import all; export none; }};
    {timers}
}}
protocol bgp exa6 {{
    local {router6} as 65000;
    neighbor {address6} as 65001;
    passive;
    ipv6 {{ table learned6; import all; export none; }};
    {timers}
}}
"""
CONFIGURATION: Final = """
process tidegate {{
    run /bin/cat {pipe};
    encoder text;
}}
neighbor {router} {{
    router-id {address};
    local-address {address};
    local-as 65001;
    peer-as 65000;
    family {{ ipv4 unicast; }}
    api {{ processes [ tidegate ]; }}
}}
neighbor {router6} {{
    router-id {address};
    local-address {address6};
    local-as 65001;
    peer-as 65000;
    family {{ ipv6 unicast; }}
    api {{ processes [ tidegate ]; }}
}}
"""


class ExaBgp:
    """One ExaBGP with its configuration; ended with its lab."""

    def __init__(self, lab: Lab, host: str) -> None:
        """Make the pipe, without which its process would end at once; nothing runs yet."""
        self._lab, self._host = lab, host
        station = lab.station(host)
        self.pipe = lab.folder(host) / "exabgp.pipe"
        os.mkfifo(self.pipe, 0o600)
        self._names = {
            "router": str(station.address4(1)),
            "router6": str(station.address6(1)),
            "address": str(station.address4(_NUMBER)),
            "address6": str(station.address6(_NUMBER)),
        }
        self._child: subprocess.Popen[bytes] | None = None

    def peers(self, timers: str) -> str:
        """Return what the router's BIRD has to know of it."""
        return PEERS.format(**self._names, timers=timers)

    def start(self) -> None:
        """Start it, the first time and again."""
        node, folder = self._lab.node(self._host), self._lab.folder(self._host)
        for address, length in ((self._names["address"], 32), (self._names["address6"], 128)):
            command = ["ip", "addr", "replace", f"{address}/{length}", "dev", NIC]
            node.run([*command, "nodad"] if length > 32 else command)
        file = folder / "exabgp.conf"
        file.write_text(CONFIGURATION.format(pipe=self.pipe, **self._names))
        settings = {"exabgp.api.ack": "false", "exabgp.daemon.user": "root"}
        child = node.daemon(
            ["/usr/sbin/python3-exabgp", str(file)], folder / "exabgp.log", settings
        )
        self._lab._children.append(child)
        self._child = child

    def kill(self) -> None:
        """End it and its process without notice, as a service manager does."""
        assert self._child is not None
        pid = self._child.pid
        readers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._child.kill()
        self._child.wait()
        for reader in readers:
            with suppress(ProcessLookupError):
                os.kill(int(reader), signal.SIGKILL)

    def learned(self) -> set[str]:
        """Return the routes that the router has from it."""
        door = str(self._lab.folder(ROUTER) / "bird.ctl")
        found: set[str] = set()
        for table in ("learned4", "learned6"):
            command = ["birdc", "-s", door, "show", "route", "table", table]
            said = self._lab.node(ROUTER).run(command).stdout
            found |= set(re.findall(r"^([0-9a-f.:]+)/\d+ ", said, re.MULTILINE))
        return found
