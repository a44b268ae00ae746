# SPDX-License-Identifier: Apache-2.0
"""Points as text and as OTLP: both say what the SDK's own exporters would say."""

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter, ObservableGauge
from opentelemetry.sdk.metrics.export import Histogram, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tidegate.errors import ConfigError
from tidegate.telemetry.export import metrics_data
from tidegate.telemetry.metrics.endpoint import Place, PrometheusSettings, place
from tidegate.telemetry.metrics.exposition import rendered
from tidegate.telemetry.metrics.points import ALONE, Family, Points, Series, Spread
from tidegate.telemetry.metrics.recorder import Recorder
from tidegate.telemetry.names import health_metrics as health_names
from tidegate.telemetry.names import metric_attributes as attributes
from tidegate.telemetry.names import metrics as names

NUMBERS = [each for each in names.INSTRUMENTS if each.kind in ("counter", "gauge")]
WORDS = st.text(max_size=8) | st.sampled_from(['a"b', "a\\nb", "a\nb", "50%", "%d%s", "ä"])
VALUES = st.integers(0, 2**53) | st.floats(0, 1e300)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    """Return every sample of a text by name and labels, read by Prometheus' own client library."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def heads(text: str) -> list[str]:
    """Return what a text says of its metrics."""
    return sorted(line for line in text.splitlines() if line.startswith("#"))


def register(meter: Meter, points: Points) -> None:
    """Register the same points as an observable instrument of the SDK."""
    what, series = points.instrument, points.series

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        keys = [key.key for key in series.keys]
        for row, value in zip(series.rows, points.values, strict=True):
            yield Observation(value, dict(zip(keys, row, strict=True)))

    counter, gauge = meter.create_observable_counter, meter.create_observable_gauge
    make = counter if what.kind == "counter" else gauge
    make(what.name, [observe], what.unit, what.description)


def by_the_exporter(families: Iterable[Family]) -> str:
    """Return the text of opentelemetry-exporter-prometheus for the same points."""
    registry = CollectorRegistry()
    limits = {ObservableCounter: 100_000, ObservableGauge: 100_000}
    reader = PrometheusMetricReader(
        disable_target_info=True,
        prefix="",
        scope_info_enabled=False,
        registry=registry,
        cardinality_limits=limits,
    )
    provider = MeterProvider([reader], Resource({}), shutdown_on_exit=False)
    for each in families:
        assert isinstance(each, Points)
        register(provider.get_meter("test"), each)
    text = generate_latest(registry).decode()
    provider.shutdown()
    return text


@pytest.mark.parametrize("what", NUMBERS, ids=lambda each: each.name)
def test_a_metric_is_named_as_the_exporter_names_it(what: names.Instrument) -> None:
    """Name, unit, type, help and labels of each metric are those of the SDK's exporter."""
    row = tuple(f"v{number}" for number in range(len(what.attributes)))
    points = [Points(what, Series(what.attributes, [row]), [7])]
    ours, theirs = rendered(points), by_the_exporter(points)
    assert heads(ours) == heads(theirs)
    assert samples(ours) == samples(theirs)


@given(rows=st.dictionaries(st.tuples(WORDS, WORDS), VALUES, min_size=1, max_size=5))
def test_any_name_and_value_comes_through(rows: dict[tuple[str, str], float]) -> None:
    """Quotes, line ends and percent signs in names, and large values, read back as they were."""
    points = Points(
        names.VIP_DROPS, Series((attributes.VIP, attributes.DROP_REASON), [*rows]), [*rows.values()]
    )
    keys = ("tidegate_vip", "tidegate_drop_reason")
    expected = {tuple(zip(keys, row, strict=True)): value for row, value in rows.items()}
    found = samples(rendered([points]))
    assert {tuple(sorted(labels, reverse=True)): v for (_, labels), v in found.items()} == expected
    assert found == samples(by_the_exporter([points]))


def test_names_are_written_once_and_values_each_time() -> None:
    """A text is made of the same series again with other values."""
    series = Series((attributes.VIP,), [("a",), ("b",)])
    first = rendered([Points(names.VIP_PACKETS, series, [1, 2])])
    second = rendered([Points(names.VIP_PACKETS, series, [3, 2**64 - 1])])
    assert samples(first) != samples(second)
    assert second.splitlines()[2:] == [
        'tidegate_vip_packets_total{tidegate_vip="a"} 3',
        'tidegate_vip_packets_total{tidegate_vip="b"} 18446744073709551615',
    ]


def test_a_histogram_has_running_counts() -> None:
    """Each class has all below it too, as Prometheus wants it; sum and count are of all."""
    series = Series((attributes.POOL,), [("web",)])
    spread = Spread(health_names.PROBE_DURATION, series, (0.5, 1), [(3, 0, 2)], [4.25])
    found = samples(rendered([spread]))
    name, pool = "tidegate_health_probe_duration_seconds", ("tidegate_pool", "web")
    assert found == {
        (f"{name}_bucket", (("le", "0.5"), pool)): 3,
        (f"{name}_bucket", (("le", "1.0"), pool)): 3,
        (f"{name}_bucket", (("le", "+Inf"), pool)): 5,
        (f"{name}_count", (pool,)): 5,
        (f"{name}_sum", (pool,)): 4.25,
    }


def exported(families: list[Family]) -> list[MetricsData]:
    scope = InstrumentationScope("test")
    return list(metrics_data.exports(families, Resource({"a": "b"}), scope, 99))


def test_exports_are_parted_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every point is in one export, none has more than it may, and each has its own beginning."""
    monkeypatch.setattr(metrics_data, "MOST_POINTS", 3)
    rows = [(f"v{n}",) for n in range(7)]
    series = Series((attributes.VIP,), rows, began=list(range(7)))
    families: list[Family] = [
        Points(names.VIP_PACKETS, series, list(range(1, 8))),
        Points(names.VIP_LIVE_FLOWS, series, [0] * 7),
    ]
    found = []
    for part in exported(families):
        [scope] = part.resource_metrics[0].scope_metrics
        points = [(m.name, p) for m in scope.metrics for p in m.data.data_points]
        assert len(points) <= 3
        found += points
    found_points = [
        (name, p.attributes["tidegate.vip"], p.start_time_unix_nano) for name, p in found
    ]
    assert found_points == [
        (name, f"v{n}", n)
        for name in ("tidegate.vip.packets", "tidegate.vip.flows.live")
        for n in range(7)
    ]


def test_only_what_never_counted_is_left_out_of_an_export() -> None:
    """A counter's series begins with its first packet; a gauge of 0 is a value."""
    series = Series((attributes.VIP,), [("a",), ("b",)])
    [part] = exported(
        [Points(names.VIP_PACKETS, series, [0, 5]), Points(names.VIP_LIVE_FLOWS, series, [0, 5])]
    )
    packets, live = part.resource_metrics[0].scope_metrics[0].metrics
    assert [p.attributes for p in packets.data.data_points] == [{"tidegate.vip": "b"}]
    assert [p.value for p in live.data.data_points] == [0, 5]


def test_a_histogram_is_exported_with_its_classes() -> None:
    """Each class has its own count; what is not known of it is left out."""
    series = Series((attributes.POOL,), [("web",)], began=5)
    [part] = exported([Spread(health_names.PROBE_DURATION, series, (0.5, 1), [(3, 0, 2)], [4.25])])
    [metric] = part.resource_metrics[0].scope_metrics[0].metrics
    assert isinstance(metric.data, Histogram)
    [point] = metric.data.data_points
    assert (point.count, point.sum, tuple(point.bucket_counts)) == (5, 4.25, (3, 0, 2))
    assert (point.start_time_unix_nano, point.min) == (5, None)


def test_nothing_is_written_of_no_points() -> None:
    """A metric without a series is not written at all; one without attributes has one point."""
    assert rendered([Points(names.VIP_PACKETS, Series((attributes.VIP,), []), [])]) == ""
    text = rendered([Points(names.ETCD_AGE, Series((), ALONE), [0.25])])
    assert math.isclose(samples(text)["tidegate_etcd_contact_age_seconds", ()], 0.25)


def test_an_instrument_has_few_attributes_and_a_unit() -> None:
    """Names are unique, and points differ by two attributes at most."""
    assert len({each.name for each in names.INSTRUMENTS}) == len(names.INSTRUMENTS)
    for each in names.INSTRUMENTS:
        assert each.unit in ("s", "By") or each.unit.startswith("{")
        assert len(each.attributes) <= 2 or each is names.GENERATION_INFO


@pytest.mark.parametrize(
    ("listen", "found"),
    [
        ("", None),
        ("127.0.0.1:9470", Place("127.0.0.1", 9470)),
        ("127.9.9.9:0", Place("127.9.9.9", 0)),
        ("[::1]:9470", Place("::1", 9470)),
    ],
)
def test_loopback_may_listen(listen: str, found: Place | None) -> None:
    """Addresses of both families are read; empty is nowhere."""
    assert place(PrometheusSettings(listen=listen)) == found


@pytest.mark.parametrize(
    "listen",
    ["9470", ":9470", "localhost:9470", "127.0.0.1:", "127.0.0.1:x", "::1:9470", "1.2:65536"],
)
def test_what_is_no_address_is_refused(listen: str) -> None:
    """The sentence has the key, an example and what was given."""
    with pytest.raises(ConfigError, match=r"telemetry\.prometheus\.listen: .*127\.0\.0\.1:9470.*"):
        place(PrometheusSettings(listen=listen))


def test_another_address_has_to_be_allowed() -> None:
    """An address that other hosts may reach is refused until that is allowed."""
    for listen in ("0.0.0.0:9470", "[::]:9470", "192.0.2.1:9470"):
        with pytest.raises(ConfigError, match="allow_remote"):
            place(PrometheusSettings(listen=listen))
        assert place(PrometheusSettings(listen=listen, allow_remote=True)) is not None


def test_what_is_recorded_and_lost_is_served() -> None:
    """A stage's duration is in its histogram, and telemetry's own losses are counted by reason."""
    recorder = Recorder(Resource({}), lambda: {("traces", "queue_full"): 7})
    recorder.observe("swap", 0.003)
    found = samples(recorder.text())
    recorder.close()
    stage = ("tidegate_stage", "swap")
    name = "tidegate_change_duration_seconds"
    assert found[f"{name}_count", (stage,)] == 1
    below = {
        dict(labels)["le"]: v for (each, labels), v in found.items() if each == f"{name}_bucket"
    }
    assert (below["0.002"], below["0.005"]) == (0, 1)
    lost = (("tidegate_telemetry_reason", "queue_full"), ("tidegate_telemetry_signal", "traces"))
    assert found["tidegate_telemetry_dropped_total", lost] == 7
