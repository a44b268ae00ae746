# SPDX-License-Identifier: Apache-2.0
"""Probes of many backends, each at its own moments: how late they begin, and what that costs.

Run it with `./dev bench health [BACKENDS [SECONDS]]`. Backends stand in pools of 50, each pool with
a VIP of its own in 127.0.0.0/8, whose port has a real listener in another process on another core.
Each backend is probed once a second by a TCP handshake, as the agent does it: the checker with its
standings is measured, not the engine alone. Lateness is from the moment that a probe is due to the
connect call. Over loopback the listener's half of a handshake is done by the kernel in the prober's
calls, so CPU time is more than it is over a wire.
"""

import os
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from ipaddress import IPv4Address

import numpy as np

from support.documents.roster import backend, desired, vip
from tidegate.health.checker import Checker
from tidegate.model.checks import Check, Health
from tidegate.model.generation import NOTHING, Generation
from tidegate.planner import plan

FIRST = IPv4Address("127.1.0.1")
IN_POOL = 50

LISTENER = """
import socket
with socket.create_server(("0.0.0.0", 0), backlog=4096) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        server.accept()[0].close()
"""


def main(backends: int, seconds: float) -> int:
    """Run it; return 1 if probes were late or failed."""
    os.sched_setaffinity(0, {0})  # one core, as the figure says
    listener = subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE)
    os.sched_setaffinity(listener.pid, set(range(1, os.cpu_count() or 1)) or {0})
    try:
        assert listener.stdout is not None
        return measure(generation(backends, int(listener.stdout.readline())), seconds)
    finally:
        listener.kill()
        listener.wait()


def generation(backends: int, port: int) -> Generation:
    """Backends in pools of 50, each pool behind a VIP of its own."""
    pools = range(-(-backends // IN_POOL))
    check = Check(type="tcp", interval=1.0, timeout=0.9, jitter_percent=0)
    return plan(
        desired(
            [vip(f"v{i}", str(FIRST + i), port, pool=f"p{i}") for i in pools],
            [
                backend(f"b{i}", str(IPv4Address("10.0.0.1") + i), pool=f"p{i // IN_POOL}")
                for i in range(backends)
            ],
            health=Health(check=check),
        ),
        NOTHING,
        1000,
    )


def measure(wanted: Generation, seconds: float) -> int:
    """Probes for this long, after the interval in which everything is begun; prints the figures."""
    checker = Checker(lambda: None)
    checker.start()
    checker.follow(wanted)
    time.sleep(2.0)
    engine = checker.engine
    probes, before, began = engine.started, used(), time.monotonic()
    time.sleep(seconds)
    cpu, wall, probes = used() - before, time.monotonic() - began, engine.started - probes
    lateness = np.array(engine.lateness()) * 1e3
    states = Counter(f"{found.state} ({found.code})" for found in checker.standings().values())
    ended, counts = checker.stop(), checker.counts
    p50, p99, worst = np.percentile(lateness, [50, 99, 100])
    print(
        f"{len(wanted.backends)} backends, 1 s interval, {seconds:g} s, one core of "
        f"{os.cpu_count()}, kernel {os.uname().release}, load {os.getloadavg()[0]:.2f}"
    )
    print(
        f"probes {probes}, failed {counts.failed}, skipped {engine.skipped}, missed "
        f"{engine.missed}; backends {dict(states)}"
    )
    print(f"lateness ms: p50 {p50:.2f}, p99 {p99:.2f}, max {worst:.2f} (last {len(lateness)})")
    print(
        f"CPU {1e6 * cpu / probes:.0f} µs a probe, {100 * cpu / wall:.0f} % of the core; "
        f"resident {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB at most, "
        f"{threading.active_count()} threads left"
    )
    return 1 if p99 >= 100 or counts.failed or not ended else 0


def used() -> float:
    """CPU seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.exit(
        main(
            int(sys.argv[1]) if len(sys.argv) > 1 else 5000,
            float(sys.argv[2]) if len(sys.argv) > 2 else 20.0,
        )
    )
