# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - a script on its own, in no package
"""Writes the dashboards beside it: `python deploy/grafana/dashboards.py`.

The JSON is what Grafana imports. A test holds it equal to this, and its names to the registry.
"""

import json
from pathlib import Path
from typing import Any, Final, NamedTuple


class Panel(NamedTuple):
    """A graph: its title, unit as Grafana calls it, query, and legend."""

    title: str
    unit: str
    query: str
    legend: str


_HOST: Final = 'fleet="$fleet"'
_VIP: Final = f'{_HOST}, tidegate_vip="$vip"'
_QUANTILE: Final = "histogram_quantile(0.99, sum by (le, {by}) (rate({of}_bucket{{{where}}}[5m])))"

DASHBOARDS: Final = {
    "fleet": (
        Panel("Ready", "short", f"tidegate_ready{{{_HOST}}}", "{{instance}}"),
        Panel("State", "short", f"tidegate_state{{{_HOST}}} == 1", "{{tidegate_host_state}}"),
        Panel(
            "Different tables of a track",
            "short",
            "count by (tidegate_track) (count by (tidegate_track, tidegate_digest) "
            f"(tidegate_generation_info{{{_HOST}}}))",
            "{{tidegate_track}}",
        ),
        Panel(
            "Silence of etcd", "s", f"tidegate_etcd_contact_age_seconds{{{_HOST}}}", "{{instance}}"
        ),
        Panel(
            "Packets",
            "pps",
            f"sum by (instance) (rate(tidegate_program_packets_total{{{_HOST}}}[5m]))",
            "{{instance}}",
        ),
        Panel(
            "Packets by CPU",
            "pps",
            "sum by (instance, cpu_logical_number) "
            f"(rate(tidegate_program_packets_total{{{_HOST}}}[5m]))",
            "{{instance}} {{cpu_logical_number}}",
        ),
        Panel(
            "Drops at addresses, for no VIP",
            "pps",
            "sum by (tidegate_address, tidegate_drop_reason) "
            f"(rate(tidegate_address_drops_total{{{_HOST}}}[5m]))",
            "{{tidegate_address}} {{tidegate_drop_reason}}",
        ),
        Panel(
            "Fill of maps",
            "percentunit",
            # Of the table of flows live ones count: what has ended keeps its place until needed.
            f'tidegate_map_entries{{{_HOST}, tidegate_map!~"flows|syns|fragments|syn_limits"}}'
            f" / tidegate_map_limit{{{_HOST}}}"
            f" or sum by (fleet, instance) (tidegate_vip_flows_live{{{_HOST}}})"
            " / on (fleet, instance) group_right ()"
            f' tidegate_map_limit{{{_HOST}, tidegate_map="flows"}}',
            "{{instance}} {{tidegate_map}}",
        ),
        Panel(
            "Healthy backends",
            "short",
            f'tidegate_pool_backends{{{_HOST}, tidegate_health_state="healthy"}}',
            "{{instance}} {{tidegate_pool}}",
        ),
    ),
    "vip": (
        Panel("Packets", "pps", f"rate(tidegate_vip_packets_total{{{_VIP}}}[5m])", "{{instance}}"),
        Panel("Bytes", "Bps", f"rate(tidegate_vip_io_bytes_total{{{_VIP}}}[5m])", "{{instance}}"),
        Panel(
            "New flows", "cps", f"rate(tidegate_vip_flows_new_total{{{_VIP}}}[5m])", "{{instance}}"
        ),
        Panel("Tracked flows", "short", f"tidegate_vip_flows_live{{{_VIP}}}", "{{instance}}"),
        Panel(
            "Drops",
            "pps",
            f"sum by (tidegate_drop_reason) (rate(tidegate_vip_drops_total{{{_VIP}}}[5m]))",
            "{{tidegate_drop_reason}}",
        ),
        Panel(
            "Decisions",
            "pps",
            f"sum by (tidegate_decision) (rate(tidegate_vip_decisions_total{{{_VIP}}}[5m]))",
            "{{tidegate_decision}}",
        ),
    ),
    "change": (
        Panel("Generation", "short", f"tidegate_generation{{{_HOST}}}", "{{instance}}"),
        Panel(
            "Refused now",
            "short",
            f"sum by (instance, tidegate_refusal_stage) (tidegate_refusals{{{_HOST}}})",
            "{{instance}} {{tidegate_refusal_stage}}",
        ),
        Panel(
            "Slowest hundredth, by stage",
            "s",
            _QUANTILE.format(
                by="tidegate_stage", of="tidegate_change_duration_seconds", where=_HOST
            ),
            "{{tidegate_stage}}",
        ),
        Panel(
            "Repairs of the audit",
            "short",
            f"increase(tidegate_audit_repairs_total{{{_HOST}}}[15m])",
            "{{instance}}",
        ),
    ),
    "flow": (
        Panel(
            "Events of sampled flows",
            "eps",
            "sum by (instance, tidegate_event_outcome) "
            f"(rate(tidegate_events_total{{{_HOST}}}[5m]))",
            "{{instance}} {{tidegate_event_outcome}}",
        ),
        Panel(
            "Telemetry not sent",
            "eps",
            "sum by (tidegate_telemetry_signal, tidegate_telemetry_reason) "
            f"(rate(tidegate_telemetry_dropped_total{{{_HOST}}}[5m]))",
            "{{tidegate_telemetry_signal}} {{tidegate_telemetry_reason}}",
        ),
        Panel(
            "Owners that could not be used",
            "pps",
            f"sum by (tidegate_rehash_cause) (rate(tidegate_vip_rehashes_total{{{_HOST}}}[5m]))",
            "{{tidegate_rehash_cause}}",
        ),
    ),
}
_TRACES: Final = {"change": '{name="tidegate.change"}', "flow": '{name="tidegate.flow"}'}
"""TraceQL, so for Tempo."""


def dashboard(name: str) -> dict[str, Any]:
    """Return what Grafana imports."""
    panels = [_graph(number, each) for number, each in enumerate(DASHBOARDS[name])]
    variables = [
        {"name": "prometheus", "type": "datasource", "query": "prometheus"},
        _choice("fleet", "label_values(tidegate_ready, fleet)"),
    ]
    if name == "vip":
        query = 'label_values(tidegate_vip_packets_total{fleet="$fleet"}, tidegate_vip)'
        variables.append(_choice("vip", query))
    if name in _TRACES:
        variables.append({"name": "traces", "type": "datasource", "query": "tempo"})
        panels.append(_traces(len(panels), _TRACES[name]))
    return {
        "uid": f"tidegate-{name}",
        "title": f"Tidegate: {name}",
        "tags": ["tidegate"],
        "schemaVersion": 38,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": variables},
        "panels": panels,
    }


def _choice(name: str, query: str) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${prometheus}"}
    return {"name": name, "type": "query", "datasource": source, "query": query, "refresh": 2}


def _place(number: int, width: int) -> dict[str, int]:
    return {"x": number % 2 * 12, "y": number // 2 * 8, "w": width, "h": 8}


def _graph(number: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${prometheus}"}
    target = {"refId": "A", "expr": panel.query, "legendFormat": panel.legend}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": source,
        "gridPos": _place(number, 12),
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [{**target, "datasource": source}],
    }


def _traces(number: int, query: str) -> dict[str, Any]:
    source = {"type": "tempo", "uid": "${traces}"}
    target = {"refId": "A", "queryType": "traceql", "query": query, "tableType": "traces"}
    return {
        "id": number + 1,
        "type": "table",
        "title": "Traces",
        "datasource": source,
        "gridPos": _place(number + number % 2, 24),
        "targets": [{**target, "datasource": source}],
    }


def text(name: str) -> str:
    """Return the file."""
    return json.dumps(dashboard(name), indent=1) + "\n"


if __name__ == "__main__":
    for each in DASHBOARDS:
        Path(__file__).with_name(f"{each}.json").write_text(text(each), "utf-8")
