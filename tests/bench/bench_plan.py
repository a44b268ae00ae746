# SPDX-License-Identifier: Apache-2.0
"""How long `tidegate plan` takes with a full connection table, and how much memory.

A million flows to 200 VIPs and 2,000 backends, in a real map; one backend is quarantined.
"""

import resource
import secrets
import shutil
import statistics
import time
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import numpy as np

from support.documents.roster import backend, desired, vip
from tidegate.dataplane.inspect.flow_impact import flow_impact
from tidegate.dataplane.inspect.pinned import PinnedDataPlane
from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import BackendKey, Desired
from tidegate.planner import plan

VIPS, BACKENDS, FLOWS, RUNS = 200, 2000, 1_000_000, 5


def wanted() -> Desired:
    """Return ten backends for each VIP."""
    first = int(ip_address("10.1.0.0"))
    return desired(
        [vip(f"v{i}", f"192.0.2.{i}", pool=f"p{i}") for i in range(VIPS)],
        [
            backend(f"b{i}", str(ip_address(first + i)), pool=f"p{i % VIPS}")
            for i in range(BACKENDS)
        ],
    )


def fill(fd: int, generation: Generation) -> None:
    """Write flows in batches; each is of a VIP and a backend of its pool."""
    rng = np.random.default_rng(1)
    ids = np.array(
        [
            (generation.vips[f"v{key.pool[1:]}"].identity.id, placed.identity.id)
            for key, placed in generation.backends.items()
        ],
        np.uint32,
    )
    for start in range(0, FLOWS, 1 << 16):
        count = min(1 << 16, FLOWS - start)
        keys, values = np.zeros(count, layout.FLOW_KEY), np.zeros(count, layout.FLOW)
        sources = rng.integers(0, 256, (count, 16), np.uint8)
        keys["source"] = np.frombuffer(sources.tobytes(), "V16")
        keys["vip"], values["backend"] = ids[rng.integers(0, len(ids), count)].T
        values["backend_incarnation"] = values["vip_incarnation"] = 1
        bpf.map_update_batch(fd, keys.tobytes(), values.tobytes(), count)


def main() -> None:
    """Print milliseconds of each part, median of several runs."""
    pins = Path(f"/sys/fs/bpf/tgbench-{secrets.token_hex(4)}")
    make_plane_folder(pins)
    fds, _ = maps.create_or_adopt(pins, maps.Capacity(flows=2 * FLOWS))
    publisher = Publisher(fds, pins, grace=0)
    try:
        start = wanted()
        publisher.publish(plan(start, NOTHING, 0), 0.0)
        fill(fds["flows"], publisher.in_force)
        key = BackendKey("p3", "b3")
        failed = replace(start.backends[key], state="quarantine")
        after = replace(start, backends=start.backends | {key: failed})
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times: dict[str, list[float]] = {"generation": [], "plan": [], "flows": []}
        for _ in range(RUNS):
            with PinnedDataPlane(pins) as pinned:
                at = [time.perf_counter()]
                generation = pinned.generation()
                at.append(time.perf_counter())
                planned = plan(after, generation, 1)
                at.append(time.perf_counter())
                found = flow_impact(pinned.flows(), generation, planned, time.monotonic_ns())
                at.append(time.perf_counter())
            for name, begin, end in zip(times, at, at[1:], strict=False):
                times[name].append(1e3 * (end - begin))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        assert found.lost == sum(found.lost_backend.values()) > 0
        for name, runs in times.items():
            print(f"{name:12s} {statistics.median(runs):8.0f} ms")
        print(
            f"{found.tracked:,} flows, {found.lost:,} lost; peak memory grew {grown / 1024:.0f} MiB"
        )
    finally:
        publisher.close()
        fds.close()
        shutil.rmtree(pins)


if __name__ == "__main__":
    main()
