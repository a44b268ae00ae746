# SPDX-License-Identifier: Apache-2.0
"""From the verdict that decides to the flag in the kernel: 200 VIPs, 2,000 backends, 40 pools.

Run it with `./dev bench verdict [TRIALS]`. Three hosts have voted on all backends. In each trial a
second of them finds one backend dead, which makes a majority. A thread hands the verdicts over as
the watch does; the loop's mailbox wakes up, the agent reads and judges them all, and the backend is
flagged in the real map, where the figure ends and the flag is read back. Then the generation
without the backend is planned and published. In the next trial the backend is well again.
"""

import gc
import os
import secrets
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from bench_publish import SMALL, roster

from tidegate.agent.health.fleet import FleetHealth
from tidegate.agent.mailbox import Mailbox, WakeReason
from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.status import verdicts
from tidegate.model.checks import Check, Health
from tidegate.model.generation import Generation
from tidegate.model.values import BackendKey, Desired, Document, Snapshot
from tidegate.planner import plan

HOSTS = ("lb1", "lb2", "lb3")
NAMES = (
    "the fleet's verdict to the flag",
    "the deciding vote to the flag",
    "the deciding vote to the generation",
)
LONG_AGO = 1_700_000_000.0


def checked() -> Desired:
    """Return the roster with a check in each pool; nothing here sends one."""
    health = Health(check=Check(type="tcp", interval=3600.0, timeout=1.0))
    wanted = roster()
    pools = {name: replace(pool, health=health) for name, pool in wanted.pools.items()}
    return replace(wanted, pools=pools)


def verdict(*, is_healthy: bool, revision: int) -> Document:
    """Return one host's finding."""
    state, code = ("healthy", "passed") if is_healthy else ("unhealthy", "refused")
    text = verdicts.encode(state, code, "", LONG_AGO, has_recovered=False)
    return Document(text, revision)


class Trials:
    """A publisher over real maps, and the fleet health that judges for it."""

    def __init__(self, publisher: Publisher, fds: maps.Maps) -> None:
        self.publisher, self.fds = publisher, fds
        self.mailbox = Mailbox()
        self.health = FleetHealth(
            EtcdSettings(endpoints=("http://127.0.0.1:1",)),
            "default",
            "lb1",
            lambda: self.mailbox.wake(WakeReason.HEALTH),
            allow_exec=False,
        )
        self.wanted = checked()
        self.documents = {
            f"{name}/{key.pool}/{key.name}": verdict(is_healthy=True, revision=1)
            for name in HOSTS
            for key in self.wanted.backends
        }
        self.revision = 1
        publisher.publish(plan(self.wanted, publisher.in_force, 1000), 0.0)

    def trial(self, key: BackendKey) -> tuple[float, float, float]:
        """Take a backend out and put it back in.

        Returns:
            Seconds from the fleet's verdict to the flag, and from the deciding vote on to the flag
            and to the generation.
        """
        self._vote("lb2", key, is_healthy=False)
        self._judged()
        deliver = threading.Thread(
            target=self._vote, args=("lb3", key), kwargs={"is_healthy": False}
        )
        deliver.start()
        self.mailbox.wait(10.0)
        fitness = self._judged()
        judged = time.perf_counter()
        flagged = self.publisher.flag_unhealthy(k for k, fit in fitness.items() if fit.is_out)
        at_flag = time.perf_counter()
        assert flagged == 1
        assert self._flag(self.publisher.in_force, key) == layout.QUARANTINED
        self.publisher.publish(plan(self.wanted, self.publisher.in_force, 1000, fitness), 0.0)
        at_end = time.perf_counter()
        deliver.join()
        began = self.handed
        for name in ("lb2", "lb3"):
            self._vote(name, key, is_healthy=True)
        back = self._judged()
        self.publisher.publish(plan(self.wanted, self.publisher.in_force, 1000, back), 0.0)
        self.publisher.reap(1.0)
        assert self._flag(self.publisher.in_force, key) == 0
        return at_flag - judged, at_flag - began, at_end - began

    def _vote(self, name: str, key: BackendKey, *, is_healthy: bool) -> None:
        self.revision += 1
        document = verdict(is_healthy=is_healthy, revision=self.revision)
        self.documents = {**self.documents, f"{name}/{key.pool}/{key.name}": document}
        snapshot = Snapshot(self.revision, self.documents)
        self.handed = time.perf_counter()
        self.health._deliver(snapshot)

    def _judged(self) -> dict[BackendKey, object]:
        self.mailbox.collect()
        in_force = self.publisher.in_force
        assert self.health.judge(in_force, woken=True, is_alone=False)
        assert self.health.fitness is not None
        return dict(self.health.fitness)

    def _flag(self, generation: Generation, key: BackendKey) -> int:
        id_ = generation.backends[key].identity.id
        return int(maps.read_array(self.fds["backends"], layout.BACKEND, id_ + 1)[id_]["flags"])


def main(trials: int) -> int:
    """Print percentiles; return 1 if the 99th from verdict to flag is 10 ms or more."""
    pins = Path(f"/sys/fs/bpf/tgbench-{secrets.token_hex(4)}")
    make_plane_folder(pins)
    fds, _ = maps.create_or_adopt(pins, SMALL)
    publisher = Publisher(fds, pins, grace=0)
    gc.collect()
    gc.freeze()  # as the agent does at its start, with nothing read yet
    try:
        bench = Trials(publisher, fds)
        keys = sorted(bench.wanted.backends)
        step = max(1, len(keys) // trials)
        bench.trial(keys[-1])  # the first reads every verdict there is
        times = np.array([bench.trial(keys[i * step % len(keys)]) for i in range(trials)]) * 1e3
    finally:
        publisher.close()
        fds.close()
        shutil.rmtree(pins)
    print(
        f"200 VIPs, {len(keys)} backends, {len(HOSTS)} hosts' verdicts, {trials} trials, "
        f"{os.cpu_count()} cores, kernel {os.uname().release}, load {os.getloadavg()[0]:.2f}"
    )
    for column, name in enumerate(NAMES):
        p50, p99, worst = np.percentile(times[:, column], [50, 99, 100])
        print(f"{name:36} ms: p50 {p50:6.2f}, p99 {p99:6.2f}, max {worst:6.2f}")
    return int(np.percentile(times[:, 0], 99) >= 10)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
