# SPDX-License-Identifier: Apache-2.0
"""A real agent's metrics: what packets counted, read over its socket and by a real Prometheus."""

import json
import re
import runpy
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.collector.metered_lab import LIMIT, PORT, MeteredLab, Samples, at, total
from support.collector.otlp_receiver import Receiver
from tidegate.lab import netns
from tidegate.lab.control import StatusWatch
from tidegate.lab.plan import CONTROL
from tidegate.lab.rack import Lab
from tidegate.telemetry.metrics.exposition import metric_name
from tidegate.telemetry.names import metrics as names

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=2, lbs=2)]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SENT_ONLY = "Telemetry not sent"
"""A panel that is empty where nothing is sent over OTLP, as from this agent."""


@pytest.fixture(scope="module")
def metered_lab(shared_lab: Lab) -> MeteredLab:
    """Give the file's lab with an agent that serves metrics."""
    return MeteredLab(shared_lab)


def received(metered_lab: MeteredLab) -> int:
    """Connections that the backends' own kernels have accepted."""
    return sum(metered_lab.lab.tcp_counter(name, "PassiveOpens") for name in ("b1", "b2"))


def test_numbers_are_those_of_the_packets(metered_lab: MeteredLab) -> None:
    """A client's connections are new flows, and all their packets went to a backend."""
    before, opened = metered_lab.samples(), received(metered_lab)
    metered_lab.visit(80, 20)
    metered_lab.visit(81, 1)
    drops = "tidegate_vip_drops_total"
    after = metered_lab.wait("drops", lambda s: at(s, drops, vip="shut", drop_reason="denied") > 0)
    grown = {key: value - before.get(key, 0) for key, value in after.items()}
    # Health checks go to backends past the VIP, so every new flow of it is a client's.
    assert at(grown, "tidegate_vip_flows_new_total", vip="web") == 20
    assert received(metered_lab) - opened >= 20
    packets = at(grown, "tidegate_vip_packets_total", vip="web")
    assert packets >= 20 * 4
    assert total(grown, "tidegate_backend_packets_total") == packets
    assert total(grown, "tidegate_backend_io_bytes_total") == at(
        grown, "tidegate_vip_io_bytes_total", vip="web"
    )
    decided = [v for (n, _), v in grown.items() if n == "tidegate_vip_decisions_total"]
    assert sum(decided) == packets
    assert at(grown, "tidegate_vip_packets_total", vip="shut") == 0
    assert total(grown, drops) == at(grown, drops, vip="shut", drop_reason="denied")
    sent = [
        v
        for (n, k), v in grown.items()
        if n == "tidegate_program_packets_total" and ("verdict", "tx") in k
    ]
    assert sum(sent) == packets


def test_the_rest_of_the_host_is_measured(metered_lab: MeteredLab) -> None:
    """Generation, state, etcd, maps, ids, probes, program time and the flows that are tracked."""
    metered_lab.visit(80, 5)
    found = metered_lab.wait(
        "count of entries, running time and passed probes",
        lambda s: (
            ("tidegate_map_entries", (("map", "flows"),)) in s
            and total(s, "tidegate_program_runs_total") > 0
            and s.get(
                ("tidegate_health_probes_total", (("pool", "web"), ("probe_outcome", "passed"))), 0
            )
            > 2
        ),
    )
    status = json.loads(metered_lab.socket("/status"))
    assert at(found, "tidegate_generation") == status["generation"]
    [info] = [dict(labels) for name, labels in found if name == "tidegate_generation_info"]
    assert (info["digest"], info["track"]) == (status["digest"], "stable")
    assert at(found, "tidegate_state", host_state="synced") == 1
    assert total(found, "tidegate_state") == 1
    assert at(found, "tidegate_ready") == 1
    assert 0 <= at(found, "tidegate_etcd_contact_age_seconds") < LIMIT
    assert at(found, "tidegate_map_limit", map="flows") == 1 << 20
    assert at(found, "tidegate_ids_used", id_kind="backends") == 2
    assert at(found, "tidegate_ids_resting", id_kind="backends") == 0
    assert at(found, "tidegate_pool_backends", pool="web", health_state="healthy") == 2
    assert at(found, "tidegate_backend_healthy", pool="web", backend="b1") == 1
    count = at(found, "tidegate_health_probe_duration_seconds_count", pool="web")
    assert count == total(found, "tidegate_health_probes_total")
    assert at(found, "tidegate_change_duration_seconds_count", stage="swap") >= 1
    per_run = total(found, "tidegate_program_time_seconds_total") / total(
        found, "tidegate_program_runs_total"
    )
    assert 1e-8 < per_run < 1e-3
    live = total(found, "tidegate_vip_flows_live")
    assert total(found, "tidegate_backend_flows_live") == live
    assert live <= at(found, "tidegate_map_entries", map="flows")


def test_both_endpoints_serve_the_same_kind(metered_lab: MeteredLab) -> None:
    """The content type is Prometheus' on the socket and on loopback; other paths are not there."""
    for ask in (
        lambda path: metered_lab.socket(path, "--include"),
        lambda path: metered_lab.curl("--include", f"http://127.0.0.1:{PORT}{path}"),
    ):
        answer = ask("/metrics")
        assert answer.startswith("HTTP/1.1 200 OK")
        assert "Content-Type: text/plain; version=0.0.4; charset=utf-8" in answer
        assert "tidegate_generation " in answer
        assert ask("/nothing").startswith("HTTP/1.1 404 ")


def test_promtool_finds_nothing_to_mend(metered_lab: MeteredLab) -> None:
    """`promtool check metrics` reads the text and has no complaint about names or help."""
    text = metered_lab.socket("/metrics")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def query(metered_lab: MeteredLab, expression: str) -> list[dict[str, Any]]:
    """Return what Prometheus on the LB host answers."""
    url = "http://127.0.0.1:9090/api/v1/query"
    answer = metered_lab.lab.node("lb1").run(
        ["curl", "--silent", "--fail", "--get", url, "--data-urlencode", f"query={expression}"],
        check=False,
    )
    found: list[dict[str, Any]] = (
        json.loads(answer.stdout)["data"]["result"] if answer.returncode == 0 else []
    )
    return found


def test_a_real_prometheus_scrapes_it(metered_lab: MeteredLab, tmp_path: Path) -> None:
    """It finds the target up, and answers a query with the number that the agent has."""
    metered_lab.visit(80, 1)
    config = tmp_path / "prometheus.yml"
    job = {"job_name": "tidegate", "static_configs": [{"targets": [f"127.0.0.1:{PORT}"]}]}
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}))
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    command += ["--web.listen-address=127.0.0.1:9090", "--log.level=warn"]
    log = tmp_path / "prometheus.log"
    process = metered_lab.lab.node("lb1").daemon(command, log)
    try:
        deadline = time.monotonic() + LIMIT
        new = 'tidegate_vip_flows_new_total{tidegate_vip="web"}'
        rates = "sum(rate(tidegate_program_packets_total[30s])) by (cpu_logical_number)"
        while not all(query(metered_lab, each) for each in ("up == 1", new, rates)):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        [found] = query(metered_lab, new)
        ours = at(metered_lab.samples(), "tidegate_vip_flows_new_total", vip="web")
        assert float(found["value"][1]) == ours > 0
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def shipped_prometheus(
    metered_lab: MeteredLab, folder: Path
) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """Run a real Prometheus with deploy/'s files; yield a query that waits for an answer."""
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8")
    rules = str(DEPLOY / "prometheus" / "alerts.yml")
    text = text.replace("alerts.yml", rules).replace(": 15s", ": 1s")
    config = folder / "prometheus.yml"
    config.write_text(text, "utf-8")
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += ["--web.listen-address=127.0.0.1:9090", "--log.level=warn"]
    log = folder / "prometheus.log"
    process = metered_lab.lab.node("lb1").daemon(command, log)
    deadline = time.monotonic() + LIMIT

    def answer(expression: str) -> list[dict[str, Any]]:
        while not (found := query(metered_lab, expression)):
            assert time.monotonic() < deadline, f"nothing for {expression}: {log.read_text()}"
            time.sleep(0.2)
        return found

    try:
        yield answer
    finally:
        process.terminate()
        process.wait(10)


def test_a_refused_document_raises_its_alert(metered_lab: MeteredLab, tmp_path: Path) -> None:
    """A real Prometheus with the rules of deploy/ has the alert pending, and only that one."""
    alerts = 'ALERTS{fleet="default"}'
    with shipped_prometheus(metered_lab, tmp_path) as answer:
        answer('tidegate_refusals{fleet="default"}')
        assert [each["metric"]["alertname"] for each in query(metered_lab, alerts)] == []
        metered_lab.control.put("vips/bad", {"address": "no address"})
        try:
            assert {each["metric"]["alertname"] for each in answer(alerts)} == {"TidegateRefused"}
        finally:
            metered_lab.control.delete("vips/bad")


def test_every_panel_has_data(metered_lab: MeteredLab, tmp_path: Path) -> None:
    """A real Prometheus answers the query of each panel of deploy/'s dashboards; -s shows how."""
    boards = runpy.run_path(str(DEPLOY / "grafana" / "dashboards.py"))["DASHBOARDS"]
    with shipped_prometheus(metered_lab, tmp_path) as answer:
        answer("up == 1")
        metered_lab.visit(80, 50)
        metered_lab.visit(81, 2)
        metered_lab.control.put("pools/other", {})
        answer('rate(tidegate_vip_packets_total{tidegate_vip="web"}[5m]) > 0')
        answer('rate(tidegate_change_duration_seconds_count{tidegate_stage="acknowledge"}[5m]) > 0')
        for board, panels in boards.items():
            for panel in panels:
                if panel.title == SENT_ONLY:
                    continue
                text = panel.query.replace("$fleet", "default").replace("$vip", "web")
                rows = [shown(panel.legend, each) for each in answer(text)]
                print(f"| {board} | {panel.title} | {panel.unit} | {'; '.join(rows)} |")  # noqa: T201
        metered_lab.control.delete("pools/other")


def shown(legend: str, row: dict[str, Any]) -> str:
    """Return a row as the panel has it."""
    name = re.sub(r"{{(\w+)}}", lambda match: row["metric"].get(match[1], ""), legend)
    return f"{name} {float(row['value'][1]):.4g}"


OF_PACKETS = [
    each
    for each in names.INSTRUMENTS
    if each.kind == "counter" and each.name.startswith(("tidegate.vip.", "tidegate.backend."))
]
NEW_FLOWS = "tidegate_vip_flows_new_total", (("vip", "web"),)


def of_packets(found: Samples) -> Samples:
    """Return what packets counted of VIPs and backends; a counter at 0 is not sent."""
    called = {metric_name(each) for each in OF_PACKETS}
    return {key: value for key, value in found.items() if key[0] in called and value}


def exported(receiver: Receiver) -> Samples:
    """Return the same of the latest points that a receiver has, by the names of Prometheus."""
    called = {each.name: metric_name(each) for each in OF_PACKETS}
    return {
        (
            called[point.name],
            tuple(
                sorted(
                    (key.removeprefix("tidegate.").replace(".", "_"), value)
                    for key, value in point.attributes.items()
                )
            ),
        ): point.value
        for point in list(receiver.received.points)
        if point.name in called
    }


def eventually(what: str, holds: Callable[[], object]) -> None:
    """Wait until it does."""
    deadline = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < deadline, f"not {what}"
        time.sleep(0.1)


def drop_key(vip: str, reason: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Of drops."""
    return "tidegate_vip_drops_total", (("drop_reason", reason), ("vip", vip))


def test_a_collector_has_the_numbers_of_the_packets(metered_lab: MeteredLab) -> None:
    """Over HTTP each counter of packets arrives as it is served, at the agent's end at the latest.

    All points are on the host's resource, and none is of an instrument that is not in the registry.
    """
    with metered_lab.telling("http", interval=3600) as (receiver, agent):
        before = metered_lab.samples("lb2").get(NEW_FLOWS, 0)
        metered_lab.visit(80, 10)
        metered_lab.visit(81, 1)
        time.sleep(1.05)  # what is asked for within a second is served from memory
        served = of_packets(metered_lab.samples("lb2"))
        assert receiver.requests == 0
        agent.terminate(LIMIT)
        assert exported(receiver) == served
        assert served[NEW_FLOWS] == before + 10
        assert drop_key("shut", "denied") in served
        points = receiver.received.points
    [resource] = {tuple(sorted(point.resource.items())) for point in points}
    found = dict(resource)
    assert (found["service.name"], found["host.name"]) == ("tidegate", "lb2")
    assert found["service.instance.id"] == "default/lb2"
    known = {each.name: (each.unit, each.kind) for each in names.INSTRUMENTS}
    kinds = {"sum": "counter", "gauge": "gauge", "histogram": "histogram"}
    assert {(p.name, (p.unit, kinds[p.kind])) for p in points} <= set(known.items())


def lost(metered_lab: MeteredLab) -> float:
    """Points of lb2 that did not arrive."""
    why = (("telemetry_reason", "not_exported"), ("telemetry_signal", "metrics"))
    return metered_lab.samples("lb2").get(("tidegate_telemetry_dropped_total", why), 0)


def warnings(metered_lab: MeteredLab) -> str:
    """Return what is wrong on lb2."""
    return " ".join(json.loads(metered_lab.socket("/status", lb="lb2"))["warnings"])


def test_a_collector_that_is_away_costs_points_alone(metered_lab: MeteredLab) -> None:
    """Over gRPC they arrive at intervals; lost ones are counted and reported, and changes go on."""
    with metered_lab.telling("grpc", interval=0.4) as (receiver, agent):
        metered_lab.visit(80, 10)
        eventually("equal", lambda: exported(receiver) == of_packets(metered_lab.samples("lb2")))
        assert exported(receiver)[NEW_FLOWS] >= 10
        receiver.stop()
        eventually("counted", lambda: lost(metered_lab) > 0)
        eventually(
            "exported", lambda: "Telemetry (metrics) does not reach" in warnings(metered_lab)
        )
        with StatusWatch(metered_lab.lab, "lb2") as status:
            written = metered_lab.control.put("pools/other", {})
            status.wait_applied(written.revision, timeout=LIMIT)
        log = agent.log.read_text()
        assert log.count(f"event=telemetry_away endpoint={receiver.endpoint}") == 1
        had = len(receiver.received.points)
        with netns.entered(metered_lab.lab.node(CONTROL).namespace):
            receiver.start()
        receiver.wait_for(lambda received: len(received.points) > had)
        metered_lab.control.delete(
            "pools/other"
        )  # the status is made anew when there is something to do
        eventually("well", lambda: "Telemetry" not in warnings(metered_lab))
