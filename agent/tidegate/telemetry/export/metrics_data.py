# SPDX-License-Identifier: Apache-2.0
"""Points as the SDK's values, which its OTLP exporters send.

Sums are cumulative. Then every series has to be in every export, also one that has not changed:
a receiver takes one that is missing as ended. What may be left out is a counter that has never
counted: its series begins with its first packet. Most drops and decisions of most VIPs never
happen, so that is most of the points.

Exports are parted, as a receiver takes 4 MiB in one message by gRPC's default.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, Final

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    DataPointT,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from tidegate.telemetry.metrics.points import Family, Points, Series, Spread, Word

MOST_POINTS: Final = 4000
"""Of one export: some 120 bytes each."""

_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE
_NO_EXTREMES: Final[tuple[Any, Any]] = (None, None)
"""Least and largest value: not sent, as they are not known."""


def exports(
    families: Iterable[Family], resource: Resource, scope: InstrumentationScope, now: int
) -> Iterator[MetricsData]:
    """Return what is to be exported, in parts of at most `MOST_POINTS` points.

    Args:
        families: all points of a moment.
        resource: who sends them.
        scope: what made them.
        now: that moment, ns since 1970.
    """
    waiting: list[Metric] = []
    room = MOST_POINTS
    for family in families:
        points = _points(family, now)
        while points:
            taken, points = points[:room], points[room:]
            waiting.append(_metric(family, taken))
            room -= len(taken)
            if not room:
                yield _bundle(waiting, resource, scope)
                waiting, room = [], MOST_POINTS
    if waiting:
        yield _bundle(waiting, resource, scope)


def size(families: Iterable[Family]) -> int:
    """Return the number of points in all these parts, without making them."""
    return sum(
        sum(1 for value in family.values if value)
        if isinstance(family, Points) and family.instrument.kind == "counter"
        else len(family.series.rows)
        for family in families
    )


def _bundle(
    metrics: Sequence[Metric], resource: Resource, scope: InstrumentationScope
) -> MetricsData:
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(scope, metrics, "")], "")])


def _metric(family: Family, points: Sequence[DataPointT]) -> Metric:
    what = family.instrument
    if isinstance(family, Spread):
        data: Sum | Gauge | Histogram = Histogram(points, _CUMULATIVE)  # type: ignore[arg-type]
    elif what.kind == "gauge":
        data = Gauge(points)  # type: ignore[arg-type]
    else:
        data = Sum(points, _CUMULATIVE, is_monotonic=what.kind == "counter")  # type: ignore[arg-type]
    return Metric(what.name, what.description, what.unit, data)


def _points(family: Family, now: int) -> Sequence[DataPointT]:
    series = family.series
    began = repeat(series.began) if isinstance(series.began, int) else series.began
    named = zip(_attributes(series), began, strict=False)
    if isinstance(family, Points):
        is_counter = family.instrument.kind == "counter"
        return [
            NumberDataPoint(each, since, now, value)
            for (each, since), value in zip(named, family.values, strict=False)
            if value or not is_counter
        ]
    return [
        HistogramDataPoint(
            each, since, now, sum(counts), total, counts, family.bounds, *_NO_EXTREMES
        )
        for (each, since), counts, total in zip(named, family.counts, family.sums, strict=False)
    ]


def _attributes(series: Series) -> list[dict[str, Word]]:
    if len(series.attributes) != len(series.rows):
        keys = [key.key for key in series.keys]
        series.attributes[:] = [dict(zip(keys, row, strict=True)) for row in series.rows]
    return series.attributes
