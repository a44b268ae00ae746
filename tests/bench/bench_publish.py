# SPDX-License-Identifier: Apache-2.0
"""What publishing and the audit cost, with 200 VIPs, 2,000 backends and 40 pools.

Each figure is the median of several runs, in ms; planning is not in it. The machine is noisy, so
compare figures of one run only.
"""

import secrets
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from support.documents.roster import backend, desired, vip
from tidegate.dataplane.kernel import maps
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.model.values import Desired
from tidegate.planner import plan

VIPS, POOLS, BACKENDS, RUNS = 200, 40, 50, 15
SMALL = maps.Capacity(flows=1024, syns=1024, fragments=1024)


def roster() -> Desired:
    """Return VIPs that use the pools in turn."""
    vips = [vip(f"v{i}", f"192.0.2.{i}", pool=f"p{i % POOLS}") for i in range(VIPS)]
    servers = [
        backend(f"b{i}", f"10.{pool}.0.{i + 1}", pool=f"p{pool}")
        for pool in range(POOLS)
        for i in range(BACKENDS)
    ]
    return desired(vips, servers, window=0)


def with_weights(wanted: Desired, pools: int, weight: int) -> Desired:
    """Another weight for the first backend of so many pools."""
    keys = [key for key in wanted.backends if key.name == "b0"][:pools]
    changed = {key: replace(wanted.backends[key], weight=weight) for key in keys}
    return replace(wanted, backends=wanted.backends | changed)


def with_address(wanted: Desired, number: int) -> Desired:
    """Another address for one backend; no table changes."""
    key = min(wanted.backends)
    moved = replace(wanted.backends[key], address=ip_address(f"10.200.0.{number}"))
    return replace(wanted, backends=wanted.backends | {key: moved})


def median(work: Callable[[int], float]) -> float:
    """Of several runs, ms."""
    return statistics.median(work(i) for i in range(RUNS)) * 1e3


def main() -> None:
    """Print a table."""
    pins = Path(f"/sys/fs/bpf/tgbench-{secrets.token_hex(4)}")
    make_plane_folder(pins)
    fds, _ = maps.create_or_adopt(pins, SMALL)
    publisher, wanted = Publisher(fds, pins, grace=0), roster()
    clock = 1000

    def publish(step: Desired) -> float:
        nonlocal clock
        clock += 1
        generation = plan(step, publisher.in_force, clock)
        started = time.perf_counter()
        publisher.publish(generation, 0.0)
        seconds = time.perf_counter() - started
        publisher.reap(1.0)
        return seconds

    def audit(*, deep: bool) -> float:
        started = time.perf_counter()
        publisher.audit(deep=deep)
        return time.perf_counter() - started

    print(f"{VIPS} VIPs, {POOLS * BACKENDS} backends, {POOLS} pools; ms, median of {RUNS} runs")
    print(f"{'first generation':26} {publish(wanted) * 1e3:8.1f}")
    for name, work in (
        ("one address", lambda i: publish(with_address(wanted, i + 1))),
        ("one weight", lambda i: publish(with_weights(wanted, 1, 50 + i))),
        ("a weight in every pool", lambda i: publish(with_weights(wanted, POOLS, 50 + i))),
    ):
        print(f"{name:26} {median(work):8.1f}")
    print(f"{'audit after a push':26} {median(lambda _: audit(deep=False)):8.1f}")
    print(f"{'audit of everything':26} {median(lambda _: audit(deep=True)):8.1f}")
    publisher.close()
    fds.close()
    shutil.rmtree(pins)


if __name__ == "__main__":
    main()
