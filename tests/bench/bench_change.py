# SPDX-License-Identifier: Apache-2.0
"""What one change costs an agent, from the snapshot to the kernel's maps: CPU time by step.

200 VIPs and 2,000 backends, in real maps; one backend gets another weight, so one table is built
anew. Beside it the same without a memo: every document is read again, and since none is the object
that it was, everything is compared by its content. The median of several runs; compare figures of
one run only.
"""

import json
import secrets
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tidegate.dataplane import host, maps
from tidegate.dataplane.publish import Publisher
from tidegate.keyspace.readings import Memo
from tidegate.keyspace.validate import validate
from tidegate.model.features import features
from tidegate.model.values import EMPTY, Desired, Document, Snapshot
from tidegate.planner import guards, plan
from tidegate.planner.diff import difference

_T = TypeVar("_T")

VIPS, BACKENDS, RUNS = 200, 2000, 20
CHANGED = "pools/p3/backends/b203"


def release(backends: int) -> dict[str, Document]:
    """Documents of 200 VIPs with a pool each, and their backends."""
    found: dict[str, object] = {f"pools/p{i}": {} for i in range(VIPS)}
    found |= {
        f"vips/v{i}": {"address": f"192.0.2.{i}", "port": 80, "protocol": "tcp", "pool": f"p{i}"}
        for i in range(VIPS)
    }
    found |= {
        f"pools/p{i % VIPS}/backends/b{i}": {"address": f"10.0.{i // 250}.{i % 250 + 1}"}
        for i in range(backends)
    }
    return {
        key: Document(json.dumps(value).encode(), number, number)
        for number, (key, value) in enumerate(sorted(found.items()), 2)
    }


def changed(documents: dict[str, Document], run: int) -> Snapshot:
    """The same with one backend of another weight."""
    value = json.dumps({"address": "10.9.9.9", "weight": 50 + run % 2}).encode()
    return Snapshot(9000 + run, {**documents, CHANGED: Document(value, 9000 + run, 5)})


class Steps:
    """CPU milliseconds by step, of several runs."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}

    def __call__(self, name: str, step: Callable[[], _T]) -> _T:
        """Does one step."""
        start = time.thread_time()
        result = step()
        self._times.setdefault(name, []).append(1e3 * (time.thread_time() - start))
        return result

    def medians(self) -> dict[str, float]:
        """The median of each step, and of all together."""
        found = {name: statistics.median(times) for name, times in self._times.items()}
        return {**found, "all": sum(found.values())}


def change(
    steps: Steps,
    snapshot: Snapshot,
    last: Desired,
    memo: Memo | None,
    publisher: Publisher,
    now: int,
) -> Desired:
    """What an agent does for one snapshot."""
    before = publisher.in_force
    desired, _ = steps("validate", lambda: validate(snapshot, last, memo))
    steps("guards", lambda: guards.refusals(desired, before, guards.Limits(), (), now))
    after = steps("plan", lambda: plan(desired, before, now))
    steps("difference", lambda: difference(before, after))
    steps("features", lambda: features(before) | features(after))
    steps("publish", lambda: publisher.publish(after, float(now)))
    publisher.reap(float("inf"))
    return desired


def measure(memo: Memo | None) -> dict[str, float]:
    """Figures of a change."""
    documents, steps = release(BACKENDS), Steps()
    pins = Path(f"/sys/fs/bpf/tgbench-{secrets.token_hex(4)}")
    host.make_folder(pins)
    fds = maps.create(maps.shapes(maps.Capacity(1 << 16, 1 << 13, 1 << 12)))
    publisher, last = Publisher(fds, pins, grace=0), EMPTY
    try:
        for run in range(RUNS + 1):
            last = change(steps, changed(documents, run), last, memo, publisher, 1000 + run)
            if run == 0:  # the first one fills everything
                steps = Steps()
    finally:
        publisher.close()
        fds.close()
        shutil.rmtree(pins)
    return steps.medians()


def validation(count: int) -> tuple[float, float]:
    """Milliseconds to validate `count` documents of which one changed: all anew, and with memo."""
    documents, memo, steps = release(count - 2 * VIPS), Memo(), Steps()
    last = validate(Snapshot(1, documents), EMPTY, memo).desired
    for run in range(RUNS):
        snapshot = changed(documents, run)
        anew = steps("anew", lambda s=snapshot, d=last: validate(s, d))
        again = steps("memo", lambda s=snapshot, d=last: validate(s, d, memo))
        assert anew == again
        last = again.desired
    medians = steps.medians()
    return medians["anew"], medians["memo"]


def main() -> None:
    """Prints both columns and their ratio."""
    anew, shared = measure(None), measure(Memo())
    print(f"{'CPU ms':12s} {'anew':>8s} {'with memo':>10s} {'ratio':>7s}")
    for name, value in shared.items():
        print(f"{name:12s} {anew[name]:8.2f} {value:10.2f} {anew[name] / value:6.1f}x")
    read, again = validation(10_000)
    print(f"validation of 10,000 documents, one changed: {read:.1f} ms, with a memo {again:.1f} ms")


if __name__ == "__main__":
    main()
