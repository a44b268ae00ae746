# SPDX-License-Identifier: Apache-2.0
"""A real agent's metrics: what packets counted, read over its socket and by a real Prometheus."""

import json
import re
import runpy
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.collector.metric_site import LIMIT, PORT, Samples, Site, at, total
from support.collector.otlp_receiver import Receiver
from tidegate.lab import netns
from tidegate.lab.control import StatusWatch
from tidegate.lab.plan import CONTROL, LabSpec
from tidegate.lab.rack import Lab
from tidegate.telemetry.metrics.exposition import metric_name
from tidegate.telemetry.names import metrics as names

pytestmark = pytest.mark.root

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SENT_ONLY = "Telemetry not sent"
"""A panel that is empty where nothing is sent over OTLP, as from this agent."""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab(LabSpec(name=f"t{secrets.token_hex(4)}", backends=2, lbs=2)) as built:
        yield Site(built)


def received(site: Site) -> int:
    """Connections that the backends' own kernels have accepted."""
    return sum(site.lab.tcp_counter(name, "PassiveOpens") for name in ("b1", "b2"))


def test_numbers_are_those_of_the_packets(site: Site) -> None:
    """A client's connections are new flows, and all their packets went to a backend."""
    before, opened = site.samples(), received(site)
    site.visit(80, 20)
    site.visit(81, 1)
    drops = "tidegate_vip_drops_total"
    after = site.wait("drops", lambda s: at(s, drops, vip="shut", drop_reason="denied") > 0)
    grown = {key: value - before.get(key, 0) for key, value in after.items()}
    # Health checks go to backends past the VIP, so every new flow of it is a client's.
    assert at(grown, "tidegate_vip_flows_new_total", vip="web") == 20
    assert received(site) - opened >= 20
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


def test_the_rest_of_the_host_is_told(site: Site) -> None:
    """Generation, state, etcd, maps, ids, probes, program time and the flows that are tracked."""
    site.visit(80, 5)
    found = site.wait(
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
    status = json.loads(site.socket("/status"))
    assert at(found, "tidegate_generation") == status["generation"]
    [info] = [dict(labels) for name, labels in found if name == "tidegate_generation_info"]
    assert (info["digest"], info["track"]) == (status["digest"], "stable")
    assert at(found, "tidegate_state", host_state="synced") == 1
    assert total(found, "tidegate_state") == 1
    assert at(found, "tidegate_ready") == 1
    assert 0 <= at(found, "tidegate_etcd_contact_age_seconds") < LIMIT
    assert at(found, "tidegate_map_limit", map="flows") == 1 << 20
    assert at(found, "tidegate_ids_used", id_kind="backends") == 2
    assert at(found, "tidegate_pool_backends", pool="web", health_state="healthy") == 2
    assert at(found, "tidegate_backend_healthy", pool="web", backend="b1") == 1
    count = at(found, "tidegate_health_probe_duration_seconds_count", pool="web")
    assert count == total(found, "tidegate_health_probes_total")
    assert at(found, "tidegate_change_duration_seconds_count", stage="swap") >= 1
    per_run = total(found, "tidegate_program_time_seconds_total") / total(
        found, "tidegate_program_runs_total"
    )
    assert 1e-8 < per_run < 1e-3
    assert total(found, "tidegate_vip_flows_live") <= at(found, "tidegate_map_entries", map="flows")


def test_both_doors_serve_the_same_kind(site: Site) -> None:
    """The content type is Prometheus' on the socket and on loopback; other paths are not there."""
    for ask in (
        lambda path: site.socket(path, "--include"),
        lambda path: site.curl("--include", f"http://127.0.0.1:{PORT}{path}"),
    ):
        answer = ask("/metrics")
        assert answer.startswith("HTTP/1.1 200 OK")
        assert "Content-Type: text/plain; version=0.0.4; charset=utf-8" in answer
        assert "tidegate_generation " in answer
        assert ask("/nothing").startswith("HTTP/1.1 404 ")


def test_promtool_finds_nothing_to_mend(site: Site) -> None:
    """`promtool check metrics` reads the text and has no complaint about names or help."""
    text = site.socket("/metrics")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def query(site: Site, expression: str) -> list[dict[str, Any]]:
    """What Prometheus on the LB host answers."""
    url = "http://127.0.0.1:9090/api/v1/query"
    answer = site.lab.node("lb1").run(
        ["curl", "--silent", "--fail", "--get", url, "--data-urlencode", f"query={expression}"],
        check=False,
    )
    found: list[dict[str, Any]] = (
        json.loads(answer.stdout)["data"]["result"] if answer.returncode == 0 else []
    )
    return found


def test_a_real_prometheus_scrapes_it(site: Site, tmp_path: Path) -> None:
    """It finds the target up, and answers a query with the number that the agent has."""
    site.visit(80, 1)
    config = tmp_path / "prometheus.yml"
    job = {"job_name": "tidegate", "static_configs": [{"targets": [f"127.0.0.1:{PORT}"]}]}
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}))
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    command += ["--web.listen-address=127.0.0.1:9090", "--log.level=warn"]
    log = tmp_path / "prometheus.log"
    process = site.lab.node("lb1").daemon(command, log)
    try:
        deadline = time.monotonic() + LIMIT
        new = 'tidegate_vip_flows_new_total{tidegate_vip="web"}'
        rates = "sum(rate(tidegate_program_packets_total[30s])) by (cpu_logical_number)"
        while not all(query(site, each) for each in ("up == 1", new, rates)):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        [found] = query(site, new)
        ours = at(site.samples(), "tidegate_vip_flows_new_total", vip="web")
        assert float(found["value"][1]) == ours > 0
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def shipped_prometheus(site: Site, folder: Path) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """A real Prometheus with what deploy/ has for it; yields a query that waits for an answer."""
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8")
    rules = str(DEPLOY / "prometheus" / "alerts.yml")
    text = text.replace("alerts.yml", rules).replace(": 15s", ": 1s")
    config = folder / "prometheus.yml"
    config.write_text(text, "utf-8")
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += ["--web.listen-address=127.0.0.1:9090", "--log.level=warn"]
    log = folder / "prometheus.log"
    process = site.lab.node("lb1").daemon(command, log)
    deadline = time.monotonic() + LIMIT

    def answer(expression: str) -> list[dict[str, Any]]:
        while not (found := query(site, expression)):
            assert time.monotonic() < deadline, f"nothing for {expression}: {log.read_text()}"
            time.sleep(0.2)
        return found

    try:
        yield answer
    finally:
        process.terminate()
        process.wait(10)


def test_a_refused_document_raises_its_alert(site: Site, tmp_path: Path) -> None:
    """A real Prometheus with the rules of deploy/ has the alert pending, and only that one."""
    alerts = 'ALERTS{fleet="default"}'
    with shipped_prometheus(site, tmp_path) as answer:
        answer('tidegate_refusals{fleet="default"}')
        assert [each["metric"]["alertname"] for each in query(site, alerts)] == []
        site.control.put("vips/bad", {"address": "no address"})
        try:
            assert {each["metric"]["alertname"] for each in answer(alerts)} == {"TidegateRefused"}
        finally:
            site.control.delete("vips/bad")


def test_every_panel_has_data(site: Site, tmp_path: Path) -> None:
    """A real Prometheus answers the query of each panel of deploy/'s dashboards; -s shows how."""
    boards = runpy.run_path(str(DEPLOY / "grafana" / "dashboards.py"))["DASHBOARDS"]
    with shipped_prometheus(site, tmp_path) as answer:
        answer("up == 1")
        site.visit(80, 50)
        site.visit(81, 2)
        site.control.put("pools/other", {})
        answer('rate(tidegate_vip_packets_total{tidegate_vip="web"}[5m]) > 0')
        answer('rate(tidegate_change_duration_seconds_count{tidegate_stage="acknowledge"}[5m]) > 0')
        for board, panels in boards.items():
            for panel in panels:
                if panel.title == SENT_ONLY:
                    continue
                text = panel.query.replace("$fleet", "default").replace("$vip", "web")
                rows = [shown(panel.legend, each) for each in answer(text)]
                print(f"| {board} | {panel.title} | {panel.unit} | {'; '.join(rows)} |")  # noqa: T201
        site.control.delete("pools/other")


def shown(legend: str, row: dict[str, Any]) -> str:
    """A row as the panel has it."""
    name = re.sub(r"{{(\w+)}}", lambda match: row["metric"].get(match[1], ""), legend)
    return f"{name} {float(row['value'][1]):.4g}"


OF_PACKETS = [
    each
    for each in names.INSTRUMENTS
    if each.kind == "counter" and each.name.startswith(("tidegate.vip.", "tidegate.backend."))
]
NEW_FLOWS = "tidegate_vip_flows_new_total", (("vip", "web"),)


def of_packets(found: Samples) -> Samples:
    """What packets of VIPs and backends counted; a counter that has never counted is not sent."""
    called = {metric_name(each) for each in OF_PACKETS}
    return {key: value for key, value in found.items() if key[0] in called and value}


def told(receiver: Receiver) -> Samples:
    """The same of the latest points that a receiver has, by the names of Prometheus."""
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
    """Waits until it does."""
    deadline = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < deadline, f"not {what}"
        time.sleep(0.1)


def drop_key(vip: str, reason: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Of drops."""
    return "tidegate_vip_drops_total", (("drop_reason", reason), ("vip", vip))


def test_a_collector_has_the_numbers_of_the_packets(site: Site) -> None:
    """Over HTTP each counter of packets arrives as it is served, at the agent's end at the latest.

    All points are on the host's resource, and none is of an instrument that is not in the registry.
    """
    with site.telling("http", interval=3600) as (receiver, agent):
        before = site.samples("lb2").get(NEW_FLOWS, 0)
        site.visit(80, 10)
        site.visit(81, 1)
        time.sleep(1.05)  # what is asked for within a second is told again
        served = of_packets(site.samples("lb2"))
        assert receiver.requests == 0
        agent.terminate(LIMIT)
        assert told(receiver) == served
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


def lost(site: Site) -> float:
    """Points of lb2 that did not arrive."""
    why = (("telemetry_reason", "not_exported"), ("telemetry_signal", "metrics"))
    return site.samples("lb2").get(("tidegate_telemetry_dropped_total", why), 0)


def warnings(site: Site) -> str:
    """What is wrong on lb2."""
    return " ".join(json.loads(site.socket("/status", lb="lb2"))["warnings"])


def test_a_collector_that_is_away_costs_points_alone(site: Site) -> None:
    """Over gRPC they arrive at intervals; lost ones are counted and told, and changes go on."""
    with site.telling("grpc", interval=0.4) as (receiver, agent):
        site.visit(80, 10)
        eventually("equal", lambda: told(receiver) == of_packets(site.samples("lb2")))
        assert told(receiver)[NEW_FLOWS] >= 10
        receiver.stop()
        eventually("counted", lambda: lost(site) > 0)
        eventually("told", lambda: "Telemetry (metrics) does not reach" in warnings(site))
        with StatusWatch(site.lab, "lb2") as status:
            written = site.control.put("pools/other", {})
            status.wait_applied(written.revision, timeout=LIMIT)
        log = agent.log.read_text()
        assert log.count(f"event=telemetry_away endpoint={receiver.endpoint}") == 1
        had = len(receiver.received.points)
        with netns.entered(site.lab.node(CONTROL).namespace):
            receiver.start()
        receiver.wait_for(lambda received: len(received.points) > had)
        site.control.delete("pools/other")  # the status is made anew when there is something to do
        eventually("well", lambda: "Telemetry" not in warnings(site))
