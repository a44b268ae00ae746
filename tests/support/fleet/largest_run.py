# SPDX-License-Identifier: Apache-2.0
"""The largest fleet's first and second generation under the shipped unit, and deaths meanwhile."""

import json
import sys
import time
from typing import Final, NamedTuple

import numpy as np

from support.agent.service import Service, setting, size
from support.fleet import largest
from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.keyspace import paths
from tidegate.lab.agents import FLEET, ROOT
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import CONTROL, etcd_endpoints
from tidegate.lab.rack import Lab
from tidegate.model.address import packed
from tidegate.model.constants import MAX_BACKENDS

SERVERS: Final = ("b1", "b2", "b3", "b4", "b5", "b6")
"""Real ones, in a pool of their own that is checked."""
VICTIMS: Final = SERVERS[:3]
CHECK: Final = {"type": "tcp", "interval": 0.3, "timeout": 0.25, "rise": 2, "fall": 2}
HEALTH: Final = {"check": CHECK, "panic_percent": 10}


class Figures(NamedTuple):
    """What was measured; seconds and bytes.

    Attributes:
        start: from the process to READY=1.
        first: from the process to the status that says that all is in force.
        change: from the flip of the release to the status that says that it is in force.
        failovers: from a server's end to the flag of its entry, each while the change was made.
        silence: the longest between two signs of life to the service manager.
        peak: memory, the kernel's maps and the page cache of its files included.
        limit: the unit's MemoryMax.
        tasks: threads, at the end.
        again: from another process over what is in force to its READY=1.
        adopted: from that process to the status that says that it is in step with etcd.
    """

    start: float
    first: float
    change: float
    failovers: tuple[float, ...]
    silence: float
    peak: int
    limit: int
    tasks: int
    again: float
    adopted: float

    def __str__(self) -> str:
        times = ", ".join(f"{each:.2f}" for each in self.failovers)
        return (
            f"ready after {self.start:.1f} s, all in force after {self.first:.1f} s; all weights "
            f"changed in {self.change:.1f} s; servers that ended meanwhile were flagged after "
            f"{times} s; signs of life at most {self.silence:.1f} s apart; peak "
            f"{self.peak / 2**20:.0f} MiB of {self.limit / 2**20:.0f}; {self.tasks} tasks; started "
            f"again it was ready after {self.again:.1f} s and synced after {self.adopted:.1f} s"
        )


class Entries:
    """The entries of a lab host's backends, by address, as its packets meet them."""

    def __init__(self, lab: Lab) -> None:
        self._fd = bpf.open_pin(str(lab.spec.pin_dir("lb1") / "backends"))
        there = maps.read_array(self._fd, layout.BACKEND, MAX_BACKENDS)
        first = np.ascontiguousarray(there["endpoints"]["address"][:, 0])
        rows = first.view(np.uint8).reshape(len(there), -1)
        self._ids = {server: _row(rows, packed(lab.address(server))) for server in SERVERS}

    def is_out(self, server: str) -> bool:
        """Return whether a server is flagged."""
        key = self._ids[server].to_bytes(4, "little")
        found = bpf.map_lookup(self._fd, key, layout.BACKEND.itemsize)
        assert found is not None
        return int(np.frombuffer(found, layout.BACKEND)[0]["flags"]) == layout.QUARANTINED


def _row(rows: np.ndarray, address: bytes) -> int:
    (found,) = (rows == np.frombuffer(address, np.uint8)).all(axis=1).nonzero()[0]
    return int(found)


def fill(lab: Lab, release: str, pools: int, backends: int, weight: int) -> None:
    """Write a release, with the servers of the lab in a pool of their own among them."""
    (endpoint,) = etcd_endpoints(lab.spec.stations())
    numbers = map(str, (pools - 1, backends - len(SERVERS), weight))
    command = [sys.executable, "-m", largest.__name__, endpoint, release, *numbers]
    lab.node(CONTROL).run(command, timeout=300)
    prefix = paths.release_prefix(ROOT, FLEET, release)
    lab.etcdctl("put", f"{prefix}pools/web", json.dumps({"health": HEALTH}))
    for server in SERVERS:
        document = {"address": str(lab.address(server))}
        lab.etcdctl("put", f"{prefix}pools/web/backends/{server}", json.dumps(document))
    vip = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    lab.etcdctl("put", f"{prefix}vips/web4", json.dumps(vip))


def run(lab: Lab, status: StatusWatch, pools: int, backends: int, patience: float) -> Figures:
    """Start an agent over so many pools and backends, change all, and end three servers meanwhile.

    Args:
        lab: bare, with six backends.
        status: of lb1.
        pools: in all.
        backends: in all.
        patience: seconds for each step.
    """
    fill(lab, "live", pools, backends, 100)
    fill(lab, "next", pools, backends, 50)
    began = time.monotonic()
    with Service(lab) as service:
        assert service.ready.wait(patience), service.failure
        seen = status.wait(
            "all in force",
            lambda s: s["generation"] > 0 and s["backends"]["serving"] == backends,
            patience,
        )
        first = seen.at - began
        status.wait("synced", lambda s: s["state"] == "synced", patience)
        entries = Entries(lab)
        assert not any(entries.is_out(server) for server in SERVERS)
        track = f"{ROOT}/{FLEET}/tracks/stable"
        written = Control(lab)._run("put", track, json.dumps({"release": "next"}))
        failovers = []
        for server in VICTIMS:
            lab.stop_http(server)
            stopped = time.monotonic()
            while not entries.is_out(server):
                assert time.monotonic() < stopped + patience, service.failure
                time.sleep(0.01)
            failovers.append(time.monotonic() - stopped)
            time.sleep(max(0.0, first / 10))  # at other moments of the change
        seen = status.wait_applied(written.revision, patience)
        assert service.failure == ""
        tasks, peak = service.threads(), service.groups.peak
        assert service.stop() == 0
    with Service(lab) as again:
        assert again.ready.wait(patience), again.failure
        restarted = time.monotonic()
        before = seen.status["started_at"]
        status.wait(
            "adopted", lambda s: s["started_at"] != before and s["state"] == "synced", patience
        )
        assert again.failure == ""
        adopted = time.monotonic() - restarted + again.start_seconds
        peak = max(peak, again.groups.peak)
        assert again.stop() == 0
        return Figures(
            service.start_seconds,
            first,
            seen.at - written.ended,
            tuple(failovers),
            max(service.longest, again.longest),
            peak,
            size(setting("MemoryMax")),
            tasks,
            again.start_seconds,
            adopted,
        )
