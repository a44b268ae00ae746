# SPDX-License-Identifier: Apache-2.0
"""What a change of one weight costs as pools, backends and VIPs grow: CPU time by step.

Every pool has changed a moment ago, so each has an open window, as it has for five minutes after
any change. Then one backend at a time gets another weight, in real maps. The last column is the
same with all pools changed at once, by pool. Medians of several changes; the machine's noise is in
them, so compare rows of one run.
"""

import argparse
import itertools
import json
import secrets
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple, TypeVar

from tidegate.dataplane.kernel import maps
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.keyspace.documents.parse_cache import ParseCache
from tidegate.keyspace.documents.validate import validate
from tidegate.model.values import EMPTY, Desired, Document, Documents, Snapshot
from tidegate.planner import guards, next_moment, plan
from tidegate.planner.diff import difference

_T = TypeVar("_T")

FIRST, BACKENDS, VIPS = 1_000_000, int(IPv4Address("10.0.0.1")), int(IPv4Address("192.0.0.1"))
CAPACITY = maps.Capacity(1 << 16, 1 << 13, 1 << 12)
STEPS = ("validate", "guard", "plan", "difference", "publish", "moment")


class Fleet(NamedTuple):
    """How large a fleet is."""

    pools: int
    backends: int
    """Of each pool."""
    vips: int


FLEETS = (
    Fleet(1, 100, 1),
    Fleet(50, 10, 50),
    Fleet(500, 10, 500),
    Fleet(1000, 10, 1000),
    Fleet(1, 5000, 500),
    Fleet(1, 10_000, 1),
    Fleet(1000, 60, 1000),
)


class Costs:
    """CPU milliseconds of each step, of several changes."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {name: [] for name in STEPS}

    def __call__(self, name: str, step: Callable[[], _T]) -> _T:
        """Do one step."""
        began = time.thread_time()
        result = step()
        self.times[name].append(1e3 * (time.thread_time() - began))
        return result

    def medians(self) -> list[float]:
        """Return the median of each step, and of a change as a whole."""
        steps = [statistics.median(self.times[name]) for name in STEPS]
        return [*steps, statistics.median(map(sum, zip(*self.times.values(), strict=True)))]


class Bench:
    """A publisher, and documents that change."""

    def __init__(self, fleet: Fleet, pins: Path) -> None:
        make_plane_folder(pins)
        self._fleet = fleet
        self._fds = maps.create(maps.shapes(CAPACITY))
        self._publisher = Publisher(self._fds, pins, grace=0)
        self._cache = ParseCache()
        self._last: Desired = EMPTY
        self._count = itertools.count(FIRST)
        self._documents = Documents(self._all())

    def _all(self) -> dict[str, Document]:
        fleet, found = self._fleet, dict[str, object]()
        for number in range(fleet.pools):
            found[f"pools/p{number}"] = {}
        for number in range(fleet.vips):
            address, pool = IPv4Address(VIPS + number), f"p{number % fleet.pools}"
            found[f"vips/v{number}"] = {
                "address": str(address),
                "port": 80,
                "protocol": "tcp",
                "pool": pool,
            }
        found |= {
            self._key(pool, number): self._backend(pool, number, 100)
            for pool in range(fleet.pools)
            for number in range(fleet.backends)
        }
        return {key: self._document(value) for key, value in found.items()}

    def _key(self, pool: int, number: int) -> str:
        return f"pools/p{pool}/backends/b{number}"

    def _backend(self, pool: int, number: int, weight: int) -> dict[str, object]:
        address = IPv4Address(BACKENDS + pool * self._fleet.backends + number)
        return {"address": str(address), "weight": weight}

    def _document(self, value: object) -> Document:
        revision = next(self._count)
        return Document(json.dumps(value).encode(), revision, revision)

    def reweight(self, pools: Sequence[int], weight: int, costs: Costs) -> None:
        """Give a backend of each of these pools another weight, and put that in force."""
        groups = {}
        for pool in pools:
            name, key = f"pools/p{pool}", self._key(pool, pool % self._fleet.backends)
            document = self._document(self._backend(pool, pool % self._fleet.backends, weight))
            groups[name] = {**self._documents.group(name), key: document}
        self._documents = self._documents.replaced(groups)
        self.change(costs)

    def change(self, costs: Costs) -> None:
        """Do what an agent does for one snapshot."""
        publisher, now = self._publisher, next(self._count)
        before, snapshot = publisher.in_force, Snapshot(now, self._documents)
        wanted, _ = costs("validate", lambda: validate(snapshot, self._last, self._cache))
        costs("guard", lambda: guards.refusals(wanted, before, guards.Limits(), (), FIRST))
        # The clock stands still, so that no window closes.
        after = costs("plan", lambda: plan(wanted, before, FIRST))
        costs("difference", lambda: difference(before, after))
        costs("publish", lambda: publisher.publish(after, 0.0))
        costs("moment", lambda: next_moment(after))
        publisher.reap(float("inf"))
        self._last = wanted

    def close(self) -> None:
        """Free all of it."""
        self._publisher.close()
        self._fds.close()


def measure(fleet: Fleet, changes: int) -> tuple[list[float], float]:
    """Return the steps of one change, and what one of many pools that change at once takes."""
    pins = Path(f"/sys/fs/bpf/tgbench-{secrets.token_hex(4)}")
    bench = Bench(fleet, pins)
    try:
        bench.change(Costs())
        at_once = Costs()
        bench.reweight(range(fleet.pools), 90, at_once)
        single = Costs()
        for run in range(changes):
            bench.reweight([run % fleet.pools], 50 + run, single)
        return single.medians(), at_once.medians()[-1] / fleet.pools
    finally:
        bench.close()
        shutil.rmtree(pins)


def main() -> None:
    """Print a row for each fleet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=9, help="of each row (default 9)")
    options = parser.parse_args()
    print(
        f"{'pools x backends, VIPs':24s}",
        *(f"{name:>10s}" for name in STEPS),
        f"{'all':>8s}",
        f"{'at once':>9s}  CPU ms",
    )
    for fleet in FLEETS:
        steps, of_many = measure(fleet, options.changes)
        name = f"{fleet.pools} x {fleet.backends}, {fleet.vips}"
        *each, total = steps
        figures = " ".join(f"{value:10.2f}" for value in each)
        print(f"{name:24s} {figures} {total:8.2f} {of_many:9.2f}", flush=True)


if __name__ == "__main__":
    main()
