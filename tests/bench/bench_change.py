# SPDX-License-Identifier: Apache-2.0
"""What one change costs an agent, from the snapshot to the kernel's maps: CPU time by step.

200 VIPs and 2,000 backends, in real maps; one backend gets another weight, so one table is built
anew. Beside it the same without a cache: every document is read again, and since none is the object
that it was, everything is compared by its content. And the same with a trace: `publish` then notes
moments, and `trace` is what making the spans of a change takes, all of it after the change. The
median of several runs; compare figures of one run only.
"""

import json
import secrets
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tidegate.agent.outcome import Applied, Outcome
from tidegate.agent.stages import StageRecorder
from tidegate.agent.traces.changes import Begun, ChangeTraces
from tidegate.dataplane.kernel import maps
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.dataplane.publish.steps import unwatched
from tidegate.keyspace.documents.parse_cache import ParseCache
from tidegate.keyspace.documents.validate import validate
from tidegate.model.features import features
from tidegate.model.received_writes import KeyWrite, collect
from tidegate.model.values import EMPTY, Desired, Document, Snapshot, Steering, View
from tidegate.planner import guards, plan
from tidegate.planner.diff import difference
from tidegate.telemetry.span import Span

_T = TypeVar("_T")

VIPS, BACKENDS, RUNS = 200, 2000, 20
CHANGED = "pools/p3/backends/b203"
CONTEXT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ARRIVED = collect([KeyWrite(CHANGED, 9000, CONTEXT)], 1)


def release(backends: int) -> dict[str, Document]:
    """Return documents of 200 VIPs with a pool each, and their backends."""
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
    """Return the same with one backend of another weight."""
    value = json.dumps({"address": "10.9.9.9", "weight": 50 + run % 2}).encode()
    return Snapshot(9000 + run, {**documents, CHANGED: Document(value, 9000 + run, 5)})


class Steps:
    """CPU milliseconds by step, of several runs."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}
        self.mark: Callable[[str], None] = lambda _: None

    def __call__(self, name: str, step: Callable[[], _T]) -> _T:
        """Do one step."""
        start = time.thread_time()
        result = step()
        self.mark(name)
        self._times.setdefault(name, []).append(1e3 * (time.thread_time() - start))
        return result

    def medians(self) -> dict[str, float]:
        """Return the median of each step, and of all together."""
        found = {name: statistics.median(times) for name, times in self._times.items()}
        return {**found, "all": sum(found.values())}


class Nowhere:
    """A sink that counts spans, and sends them nowhere."""

    def __init__(self) -> None:
        self.count = 0

    def emit(self, _: Span) -> None:
        """Count it."""
        self.count += 1


class Traces:
    """What a traced change costs besides the change: recorded stages, and a trace at its end."""

    def __init__(self, sink: Nowhere) -> None:
        self.stages = StageRecorder()
        self._traces = ChangeTraces(self.stages, sink)

    def begin(self, view: View) -> Begun:
        """Start on a change of a view."""
        self._traces.received(view)
        return self._traces.begin()

    def end(self, begun: Begun, applied: Applied) -> None:
        """Make the trace of a change that is over, with nothing more to wait for."""
        generation = applied.generation
        outcome = Outcome(generation.revision, applied=(applied,))
        self._traces.end(begun, outcome, None, generation, "keys", has_samples=False)
        self._traces.close()


def change(
    steps: Steps,
    snapshot: Snapshot,
    last: Desired,
    cache: ParseCache | None,
    publisher: Publisher,
    now: int,
    traces: Traces | None,
) -> Desired:
    """Do what an agent does for one snapshot."""
    before = publisher.in_force
    begun = None
    if traces is not None:
        begun = traces.begin(View(Steering(now, "stable", "live"), snapshot, ARRIVED))
        steps.mark = traces.stages.mark
    desired, _ = steps("validate", lambda: validate(snapshot, last, cache))
    steps("guard", lambda: guards.refusals(desired, before, guards.Limits(), (), now))
    after = steps("plan", lambda: plan(desired, before, now))
    diff = steps("difference", lambda: difference(before, after))
    steps("features", lambda: features(before) | features(after))
    steps("publish", lambda: publisher.publish(after, float(now)))
    publisher.reap(float("inf"))
    if traces is not None and begun is not None:
        applied = Applied(
            previous=before,
            generation=after,
            diff=diff,
            desired=desired,
            now=now,
            stepped=0,
            snapshot=snapshot,
            refused=frozenset(),
        )
        steps("trace", lambda: traces.end(begun, applied))
    return desired


def measure(cache: ParseCache | None, traces: Traces | None = None) -> dict[str, float]:
    """Return the figures of a change."""
    documents, steps = release(BACKENDS), Steps()
    pins = Path(f"/sys/fs/bpf/tgbench-{secrets.token_hex(4)}")
    make_plane_folder(pins)
    fds = maps.create(maps.shapes(maps.Capacity(1 << 16, 1 << 13, 1 << 12)))
    reached = unwatched if traces is None else traces.stages.reached
    publisher, last = Publisher(fds, pins, grace=0, reached=reached), EMPTY
    try:
        for run in range(RUNS + 1):
            snapshot = changed(documents, run)
            last = change(steps, snapshot, last, cache, publisher, 1000 + run, traces)
            if run == 0:  # the first one fills everything
                steps = Steps()
    finally:
        publisher.close()
        fds.close()
        shutil.rmtree(pins)
    return steps.medians()


def validation(count: int) -> tuple[float, float]:
    """Return the ms to validate `count` documents, one of them changed: all anew, and cached."""
    documents, cache, steps = release(count - 2 * VIPS), ParseCache(), Steps()
    last = validate(Snapshot(1, documents), EMPTY, cache).desired
    for run in range(RUNS):
        snapshot = changed(documents, run)
        anew = steps("anew", lambda s=snapshot, d=last: validate(s, d))
        again = steps("cache", lambda s=snapshot, d=last: validate(s, d, cache))
        assert anew == again
        last = again.desired
    medians = steps.medians()
    return medians["anew"], medians["cache"]


def main() -> None:
    """Print the columns, and what they are to each other."""
    anew, shared, sink = measure(None), measure(ParseCache()), Nowhere()
    traced = measure(ParseCache(), Traces(sink))
    print(f"{'CPU ms':12s} {'anew':>8s} {'with cache':>10s} {'ratio':>7s} {'traced':>8s}")
    for name, value in traced.items():
        known = ""
        if name in shared:
            known = f"{anew[name]:8.2f} {shared[name]:10.2f} {anew[name] / shared[name]:6.1f}x"
        print(f"{name:12s} {known:27s} {value:8.2f}")
    share, count = traced["trace"] / traced["all"], sink.count / (RUNS + 1)
    print(f"the trace of a change, {count:.0f} spans, takes {share:.1%} of what all of it takes")
    read, again = validation(10_000)
    print(
        f"validation of 10,000 documents, one changed: {read:.1f} ms, with a cache {again:.1f} ms"
    )


if __name__ == "__main__":
    main()
