# SPDX-License-Identifier: Apache-2.0
"""Dashboards and the collector's file in deploy/ fit together, and name what there is."""

import json
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tidegate.telemetry.metrics.exposition import label_name, metric_name
from tidegate.telemetry.names import changes, flows
from tidegate.telemetry.names.metrics import INSTRUMENTS

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
GRAFANA = DEPLOY / "grafana"
MADE: Final[dict[str, Any]] = runpy.run_path(str(GRAFANA / "dashboards.py"))


@pytest.mark.parametrize("name", MADE["DASHBOARDS"])
def test_a_dashboard_is_what_the_description_makes(name: str) -> None:
    """The JSON was written again after the last change."""
    assert (GRAFANA / f"{name}.json").read_text("utf-8") == MADE["text"](name)


@pytest.mark.parametrize("path", sorted(GRAFANA.glob("*.json")), ids=lambda path: str(path.stem))
def test_a_dashboard_names_what_there_is(path: Path) -> None:
    """Each query has a metric of the registry, and no label that this metric lacks."""
    metrics = {
        metric_name(each) + end: {label_name(key) for key in each.attributes}
        for each in INSTRUMENTS
        for end in (("_bucket",) if each.kind == "histogram" else ("",))
    }
    for panel in json.loads(path.read_text("utf-8"))["panels"]:
        [target] = panel["targets"]
        if panel["type"] == "table":
            assert re.findall(r'"(.+)"', target["query"])[0] in {
                changes.CHANGE.name,
                flows.FLOW.name,
            }
            continue
        words = set(re.findall(r"\b(?:tidegate|cpu)_\w+", target["expr"]))
        words |= set(re.findall(r"{{(\w+)}}", target["legendFormat"])) - {"instance"}
        used = words & set(metrics)
        assert used
        assert words - used <= set().union(*(metrics[each] for each in used)), target["expr"]


def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    """Each panel's query is an expression for promtool."""
    queries = [panel.query for each in MADE["DASHBOARDS"].values() for panel in each]
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(queries)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}), "utf-8")
    command = ["promtool", "check", "rules", str(path)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_collectors_pipelines_have_their_parts() -> None:
    """Each part is defined; memory is limited first; what is received comes from loopback."""
    found = yaml.safe_load((DEPLOY / "otel" / "collector.yaml").read_text("utf-8"))
    for pipeline in found["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= set(found[kind])
        assert pipeline["processors"][0] == "memory_limiter"
        assert pipeline["processors"][-1] == "batch"
    protocols = found["receivers"]["otlp"]["protocols"]
    assert all(each["endpoint"].startswith("127.0.0.1:") for each in protocols.values())
    assert found["exporters"]["otlp"]["tls"].keys() == {"ca_file"}


def test_the_collector_deletes_what_spans_have() -> None:
    """Attributes that are redacted or sampled by are ones that spans have."""
    found = yaml.safe_load((DEPLOY / "otel" / "collector.yaml").read_text("utf-8"))["processors"]
    keys = {each["key"] for each in found["attributes/redact"]["actions"]}
    assert keys <= {each.key for each in flows.FLOW.attributes}
    policies = found["tail_sampling"]["policies"]
    [by] = [each["string_attribute"] for each in policies if "string_attribute" in each]
    assert by["key"] in {each.key for each in changes.CHANGE.attributes}
