# SPDX-License-Identifier: Apache-2.0
"""What a scrape costs: 500 VIPs and 5,000 backends, from the kernel's maps to Prometheus' text.

Run it with `./dev bench telemetry`. Each part is CPU time of this thread, the median of several
runs. The kernel's part is read from real maps. Sums over 128 CPUs are taken of made-up values, as
no machine here has as many. The same points by the SDK and its exporter are there to compare.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable

import numpy as np
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter, ObservableGauge
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry, generate_latest

from tidegate.agent.metrics.host_points import CheckPoints
from tidegate.agent.metrics.packet_points import PacketPoints
from tidegate.dataplane.inspect import events
from tidegate.dataplane.inspect.counter_reader import Census, CounterSample
from tidegate.dataplane.kernel import counters, layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.health.standing import unknown
from tidegate.model.constants import MAX_BACKENDS, MAX_VIPS
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Backend, BackendKey, Desired, Pool, Vip
from tidegate.planner import plan
from tidegate.telemetry.export import metrics_data
from tidegate.telemetry.metrics import exposition
from tidegate.telemetry.metrics.points import Points

VIPS, BACKENDS, POOLS = 500, 5_000, 50
LIMIT = 0.050
"""CPU seconds that one scrape may take, all included."""
MANY_CPUS = 128
RUNS = 7


def generation() -> Generation:
    """VIPs and backends over fifty pools."""
    from ipaddress import ip_address, ip_network  # noqa: PLC0415 - of this alone

    pools = {f"pool-{n}": Pool(f"pool-{n}", 300, 300) for n in range(POOLS)}
    vips = {
        f"vip-{n}": Vip(
            f"vip-{n}", ip_network(f"10.99.{n // 250}.{n % 250}"), 80, "tcp", f"pool-{n % POOLS}"
        )
        for n in range(VIPS)
    }
    backends = {
        BackendKey(f"pool-{n % POOLS}", f"backend-{n}"): Backend(
            f"pool-{n % POOLS}",
            f"backend-{n}",
            ip_address(f"10.1.{n // 250}.{n % 250}"),
            100,
            "active",
        )
        for n in range(BACKENDS)
    }
    return plan(Desired(1, vips, pools, backends), NOTHING, 1000)


def cost(work: Callable[[], object]) -> float:
    """CPU seconds of this thread, the median; the first run does not count."""
    work()
    spent = []
    for _ in range(RUNS):
        began = time.thread_time()
        work()
        spent.append(time.thread_time() - began)
    return statistics.median(spent)


def fill(fds: maps.Maps) -> None:
    """Some value for every counter of every id and CPU."""
    random = np.random.default_rng(1)
    for name, dtype, ids in (
        ("vip_counts", layout.VIP_COUNTERS, VIPS + 1),
        ("address_counts", layout.ADDRESS_COUNTERS, VIPS + 1),
        ("backend_counts", layout.BACKEND_COUNTERS, BACKENDS + 1),
    ):
        shape = (ids, maps.cpu_count(), dtype.itemsize // 8)
        words = random.integers(1, 1 << 40, shape, np.uint64)
        bpf.map_update_batch(fds[name], np.arange(ids, dtype="<u4").tobytes(), words.tobytes(), ids)


def by_the_sdk(points: list[Points]) -> float:
    """Return the same points as observable instruments, by opentelemetry-exporter-prometheus."""
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(
        disable_target_info=True,
        scope_info_enabled=False,
        registry=registry,
        cardinality_limits=dict.fromkeys((ObservableCounter, ObservableGauge), 1_000_000),
    )
    provider = MeterProvider([reader], Resource({}), shutdown_on_exit=False)
    meter = provider.get_meter("bench")
    for each in points:
        keys = [key.key for key in each.series.keys]

        def observe(
            _: CallbackOptions, each: Points = each, keys: list[str] = keys
        ) -> Iterable[Observation]:
            for row, value in zip(each.series.rows, each.values, strict=True):
                yield Observation(value, dict(zip(keys, row, strict=True)))

        what = each.instrument
        is_counter = what.kind == "counter"
        make = meter.create_observable_counter if is_counter else meter.create_observable_gauge
        make(what.name, [observe], what.unit, what.description)
    began = time.thread_time()
    generate_latest(registry)
    return time.thread_time() - began


def show(what: str, seconds: float, points: int = 0) -> None:
    """One line."""
    each = f"  {seconds / points * 1e6:7.2f} µs a point" if points else ""
    print(f"  {what:58s} {seconds * 1e3:8.2f} ms{each}")


def scrape(fds: maps.Maps, wanted: Generation) -> tuple[list[Points], float]:
    """Measure one scrape, part by part; return its points and its cost."""
    maker = PacketPoints(0, time.time_ns)

    def counted() -> CounterSample:
        totals = counters.read(fds, wanted)
        return CounterSample(
            wanted, totals, counters.per_cpu_packets(fds), events.counts(fds["event_counts"])
        )

    census = Census({}, np.ones(MAX_VIPS, np.int64), np.ones(MAX_BACKENDS, np.int64), wanted)
    standings = {key: unknown(0.0) for key in wanted.backends}
    checks = CheckPoints(0)

    def made(of: PacketPoints, found: CounterSample, by: CheckPoints) -> list[Points]:
        of_checks = [f for f in by.points(standings, {}, time.time()) if isinstance(f, Points)]
        return [*of.points(found), *of.live(census), *of_checks]

    found = counted()
    points = made(maker, found, checks)
    total = sum(len(each.values) for each in points)
    print(f"one scrape of {total} points, {maps.cpu_count()} CPUs")
    show("read the maps and sum over CPUs", cost(counted))
    show("make points", cost(lambda: made(maker, found, checks)), total)
    show("write text", cost(lambda: exposition.rendered(points).encode()), total)
    whole = cost(lambda: exposition.rendered(made(maker, counted(), checks)).encode())
    show("all of it", whole, total)

    def anew() -> bytes:
        return exposition.rendered(
            made(PacketPoints(0, time.time_ns), counted(), CheckPoints(0))
        ).encode()

    fresh = cost(anew)
    show("all of it, with new names for everything", fresh, total)
    return points, whole


def many_cpus() -> None:
    """Sum over the CPUs of a large machine."""
    random = np.random.default_rng(2)
    print(f"sums over {MANY_CPUS} CPUs, of made-up values (no reading)")
    for what, ids, words in (("VIPs", VIPS, 29), ("backends", BACKENDS, 2)):
        values = random.integers(0, 1 << 40, (ids, MANY_CPUS, words), np.uint64)
        before = values.copy()
        show(f"{what}: sum all", cost(lambda v=values: counters.summed(v)))
        show(
            f"{what}: only look for what has changed",
            cost(lambda v=values, b=before: (v != b).any(axis=(1, 2))),
        )


def export(points: list[Points]) -> None:
    """Measure what an OTLP export of all of it costs, short of the network."""
    resource, scope = Resource({"service.name": "tidegate"}), InstrumentationScope("tidegate")

    def encoded() -> int:
        parts = metrics_data.exports(points, resource, scope, time.time_ns())
        return sum(len(encode_metrics(part).SerializeToString()) for part in parts)

    size, total = encoded(), sum(len(each.values) for each in points)
    print(f"one OTLP export of {total} points, {size / 1e6:.1f} MB")
    seconds = cost(encoded)
    show("make and encode", seconds, total)
    for interval in (15, 60):
        print(f"  every {interval} s: {100 * seconds / interval:.2f} % of one core")


def main() -> int:
    """Run all parts; return 1 if a scrape takes longer than it may."""
    print(f"kernel {os.uname().release}, {os.cpu_count()} CPUs online")
    wanted = generation()
    shapes = maps.few(maps.shapes(maps.Capacity(1024, 1024, 1024)), BACKENDS + 1)
    fds = maps.create(shapes)
    try:
        fill(fds)
        points, seconds = scrape(fds, wanted)
    finally:
        fds.close()
    total = sum(len(each.values) for each in points)
    show("the same by the SDK and its exporter", by_the_sdk(points), total)
    many_cpus()
    export(points)
    print(f"limit of a scrape: {LIMIT * 1e3:g} ms: {'held' if seconds < LIMIT else 'NOT HELD'}")
    return 0 if seconds < LIMIT else 1
