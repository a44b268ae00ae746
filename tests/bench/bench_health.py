# SPDX-License-Identifier: Apache-2.0
"""Probes of many backends, each at its own moments: how late they begin, and what that costs.

Run it with `./dev bench health [BACKENDS [SECONDS]]`. Each backend is an address of
127.0.0.0/8 with a real listener behind it in another process. Each is probed once a second, by
a TCP handshake.
"""

import os
import resource
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from ipaddress import IPv4Address

import numpy as np

from tidegate.health.engine import Engine, Target
from tidegate.health.result import Result
from tidegate.health.tcp import Destination, connect

FIRST = IPv4Address("127.1.0.1")

LISTENER = """
import socket, sys
with socket.create_server(("0.0.0.0", 0), backlog=4096) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        server.accept()[0].close()
"""


def main(backends: int, seconds: float) -> int:
    """Runs it; 1 if probes were late or failed."""
    os.sched_setaffinity(0, {0})  # one core, as the figure says
    listener = subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE)
    os.sched_setaffinity(listener.pid, set(range(1, os.cpu_count() or 1)) or {0})
    try:
        assert listener.stdout is not None
        port = int(listener.stdout.readline())
        return measure(backends, seconds, port)
    finally:
        listener.kill()
        listener.wait()


def measure(backends: int, seconds: float, port: int) -> int:
    """Probes for this long and prints the figures."""
    codes: Counter[str] = Counter()
    slowest = 0.0

    def report(_key: int, result: Result) -> None:
        nonlocal slowest
        codes[result.code] += 1
        slowest = max(slowest, result.seconds)

    engine: Engine[int] = Engine(report)
    engine.probe(
        {
            number: Target(partial(connect, Destination(str(FIRST + number), port), 0.9), 1.0)
            for number in range(backends)
        }
    )
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    engine.start()
    time.sleep(seconds)
    lateness = np.array(engine.lateness()) * 1e3
    ended = engine.stop()
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    p50, p99, worst = np.percentile(lateness, [50, 99, 100])
    print(
        f"{backends} backends, 1 s interval, {seconds:g} s, one core, kernel {os.uname().release}"
    )
    print(f"probes {engine.started}, skipped {engine.skipped}, results {dict(codes)}")
    print(f"lateness ms: p50 {p50:.2f}, p99 {p99:.2f}, max {worst:.2f} (last {len(lateness)})")
    print(f"slowest answer {slowest * 1e3:.1f} ms; CPU {100 * cpu / wall:.0f} % of one core")
    late = p99 >= 100 or set(codes) != {"passed"} or not ended
    return 1 if late else 0


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.exit(
        main(
            int(sys.argv[1]) if len(sys.argv) > 1 else 5000,
            float(sys.argv[2]) if len(sys.argv) > 2 else 20.0,
        )
    )
