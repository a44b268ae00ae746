# SPDX-License-Identifier: Apache-2.0
"""The agent's own instruments, which are written one value at a time: OpenTelemetry's SDK.

There are few of them and they have few points, so the SDK's price of some 20 µs a point does not
matter here. What comes by the thousand does not go this way (`exposition`, `metrics_data`).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, generate_latest

from tidegate.telemetry.names import metric_attributes as attributes
from tidegate.telemetry.names import metrics as names
from tidegate.telemetry.sdk import SCOPE

STAGE_BOUNDS: Final = (
    0.0001,
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    30.0,
)
"""Upper bounds of the classes of a stage's duration, s: 100 µs for a swap to 30 s for etcd."""

Drops: TypeAlias = Callable[[], Mapping[tuple[str, str], int]]
"""What telemetry lost since the start, by signal and reason."""


class Recorder:
    """From its creation to `close`; all methods are for any thread.

    Args:
        resource: who sends it.
        drops: called at each scrape.
    """

    def __init__(self, resource: Resource, drops: Drops = dict) -> None:
        self._drops = drops
        self._registry = CollectorRegistry(auto_describe=False)
        self._prometheus = PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)
        self._pull = InMemoryMetricReader()
        self._provider = MeterProvider(
            (self._prometheus, self._pull), resource, shutdown_on_exit=False
        )
        meter = self._provider.get_meter(SCOPE.name, SCOPE.version)
        duration, lost = names.STAGE_DURATION, names.TELEMETRY_DROPS
        self._durations = meter.create_histogram(
            duration.name,
            duration.unit,
            duration.description,
            explicit_bucket_boundaries_advisory=STAGE_BOUNDS,
        )
        meter.create_observable_counter(lost.name, [self._lost], lost.unit, lost.description)

    def observe(self, stage: str, seconds: float) -> None:
        """Record how long a stage of a change took."""
        self._durations.record(max(0.0, seconds), {attributes.STAGE.key: stage})

    def text(self) -> str:
        """Return all values as Prometheus' text."""
        return generate_latest(self._registry).decode()

    def collect(self) -> MetricsData | None:
        """Return all values as the SDK has them, cumulative; None if there are none."""
        return self._pull.get_metrics_data()

    def close(self) -> None:
        """Close it."""
        self._provider.shutdown()

    def _lost(self, _: CallbackOptions) -> Iterable[Observation]:
        for (signal, reason), count in self._drops().items():
            yield Observation(count, {attributes.SIGNAL.key: signal, attributes.LOSS.key: reason})
