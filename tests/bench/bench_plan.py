# SPDX-License-Identifier: Apache-2.0
"""How long `tidegate plan` takes with a full connection table, and how much memory.

A million flows to 200 VIPs and 2,000 backends, in a real map; one backend is quarantined. `census`
and `sweep` are what the agent does with the same table.
"""

import resource
import secrets
import shutil
import statistics
import time
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import numpy as np

from support.documents.roster import backend, desired, vip
from tidegate.dataplane.inspect.counter_reader import CounterReader
from tidegate.dataplane.inspect.flow_impact import flow_impact
from tidegate.dataplane.inspect.pinned import PinnedDataPlane
from tidegate.dataplane.kernel import maps
from tidegate.dataplane.kernel.jiffies import Jiffies, clock
from tidegate.dataplane.kernel.lines import MappedLines
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.dataplane.sweep import Sweeper
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import BackendKey, Desired
from tidegate.planner import plan
from tidegate.spec.lines import LINE_ENTRIES, SPOKE

VIPS, BACKENDS, FLOWS, RUNS = 200, 2000, 1_000_000, 5
CAPACITY = maps.Capacity(flows=1 << 20)


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


def fill(fd: int, generation: Generation, tick: int) -> None:
    """Write flows wherever chance puts them; each is of a VIP and a backend of its pool."""
    rng = np.random.default_rng(1)
    ids = np.array(
        [
            (generation.vips[f"v{key.pool[1:]}"].identity.id, placed.identity.id)
            for key, placed in generation.backends.items()
        ],
        np.uint64,
    )
    with MappedLines(fd, CAPACITY.pairs["flows"], writable=True) as table:
        owners = np.zeros(table.lines["owners"].size, np.uint64)
        states = np.zeros(owners.size, np.uint32)
        places = rng.choice(owners.size, FLOWS, replace=False)
        vips, backends = ids[rng.integers(0, len(ids), FLOWS)].T
        fingerprints = rng.integers(1, 1 << 40, FLOWS, np.uint64)
        owners[places] = fingerprints << np.uint64(24) | np.uint64(1 << 16) | backends
        states[places] = np.uint32(tick << 16 | SPOKE) | vips.astype(np.uint32) << np.uint32(4)
        table.lines["states"] = states.reshape(-1, LINE_ENTRIES)
        table.lines["owners"] = owners.reshape(-1, LINE_ENTRIES)


def sweep_cost(fds: maps.Maps, publisher: Publisher) -> float:
    """Return ms of a sweep of the whole table."""
    with closing(Sweeper(fds["flows"], CAPACITY.pairs["flows"], publisher)) as sweeper:
        began = time.perf_counter()
        assert sweeper.sweep() == (0, 0)
        return 1e3 * (time.perf_counter() - began)


def census_cost(fds: maps.Maps, publisher: Publisher, pins: Path) -> float:
    """Return ms of a count of live flows by VIP and backend."""
    with closing(CounterReader(fds, publisher, CAPACITY, pins)) as reader:
        began = time.perf_counter()
        assert reader.census().vips.sum() == FLOWS
        return 1e3 * (time.perf_counter() - began)


def main() -> None:
    """Print milliseconds of each part, median of several runs."""
    pins = Path(f"/sys/fs/bpf/tgbench-{secrets.token_hex(4)}")
    make_plane_folder(pins)
    fds, _ = maps.create_or_adopt(pins, CAPACITY)
    publisher = Publisher(fds, pins, grace=0)
    try:
        start = wanted()
        publisher.publish(plan(start, NOTHING, 0), 0.0)
        with Jiffies() as jiffies:
            tick = clock().tick(jiffies.now())
        fill(fds["flows"], publisher.in_force, tick)
        key = BackendKey("p3", "b3")
        failed = replace(start.backends[key], state="quarantine")
        after = replace(start, backends=start.backends | {key: failed})
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times: dict[str, list[float]] = {
            name: [] for name in ("generation", "plan", "read", "flows", "census", "sweep")
        }
        for _ in range(RUNS):
            times["census"].append(census_cost(fds, publisher, pins))
            times["sweep"].append(sweep_cost(fds, publisher))
            with PinnedDataPlane(pins) as pinned:
                at = [time.perf_counter()]
                generation = pinned.generation()
                at.append(time.perf_counter())
                planned = plan(after, generation, 1)
                at.append(time.perf_counter())
                assert sum(len(part.owner) for part in pinned.flows(tick)) == FLOWS
                at.append(time.perf_counter())
                found = flow_impact(pinned.flows(tick), generation, planned, clock())
                at.append(time.perf_counter())
            for name, begin, end in zip(times, at, at[1:], strict=False):
                times[name].append(1e3 * (end - begin))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        assert found.lost == sum(found.lost_backend.values()) > 0
        for name, runs in times.items():
            print(f"{name:12s} {statistics.median(runs):8.1f} ms")
        print(
            f"{found.tracked:,} flows, {found.lost:,} lost; peak memory grew {grown / 1024:.0f} MiB"
        )
    finally:
        publisher.close()
        fds.close()
        shutil.rmtree(pins)


if __name__ == "__main__":
    main()
