# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told in deploy/: names that there are, and alerts that fire."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tidegate.telemetry.metrics.exposition import label_name, metric_name
from tidegate.telemetry.names.metrics import INSTRUMENTS

ROOT = Path(__file__).resolve().parents[3]
PLACE = ROOT / "deploy" / "prometheus"
TARGET_LABELS = {"fleet", "instance", "job", "le"}


def known() -> dict[str, set[str]]:
    """Return each metric as Prometheus has it, with its labels."""
    found: dict[str, set[str]] = {}
    for each in INSTRUMENTS:
        ends = ("_bucket", "_count", "_sum") if each.kind == "histogram" else ("",)
        labels = {label_name(key) for key in each.attributes}
        found.update({metric_name(each) + end: labels for end in ends})
    return found


def unknown(expression: str) -> set[str]:
    """Words of an expression that no metric and no label of its metrics is called."""
    names = known()
    bare = re.sub(r'"[^"]*"', '""', expression)
    words = set(re.findall(r"\b(?:tidegate|cpu|network)_\w+", bare))
    used = words & set(names)
    labels = set().union(*(names[each] for each in used)) if used else set()
    wrong = words - used - labels
    for metric, selector in re.findall(r"(\w+)\{([^}]*)\}", bare):
        has = names.get(metric, set()) | TARGET_LABELS
        wrong |= {key for key in re.findall(r"(\w+)\s*(?:=|!)", selector) if key not in has}
    return wrong


def alerts() -> list[dict[str, Any]]:
    """Return all alert rules."""
    groups = yaml.safe_load((PLACE / "alerts.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_names_what_there_is(alert: dict[str, Any]) -> None:
    """Metrics and labels are in the registry, and the runbook leads to a heading."""
    assert unknown(alert["expr"]) == set()
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    names = [re.sub(r"[^a-z0-9_ -]", "", h.lower()).replace(" ", "-") for h in headings]
    assert not anchor or anchor in names


def test_a_wrong_name_is_found() -> None:
    """A metric or a label that is not there is told of."""
    assert unknown("rate(tidegate_vip_packet_total[5m])") == {"tidegate_vip_packet_total"}
    assert unknown('tidegate_ready{vip="x"} == 0') == {"vip"}


def test_each_alert_is_rehearsed() -> None:
    """Each has a test by its name in which it has to fire."""
    tests = yaml.safe_load((PLACE / "alerts_test.yml").read_text("utf-8"))["tests"]
    fired = {each["name"] for each in tests if each["promql_expr_test"][0]["exp_samples"]}
    assert fired == {each["alert"] for each in alerts()}


@pytest.mark.parametrize(
    "arguments",
    ["test rules alerts_test.yml", "check rules alerts.yml", "check config prometheus.yml"],
)
def test_promtool_agrees(arguments: str) -> None:
    """Prometheus' own tool reads the files, and every alert fires when it has to, and only then."""
    command = ["promtool", *arguments.split()]
    done = subprocess.run(command, cwd=PLACE, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
