# SPDX-License-Identifier: Apache-2.0
"""A real agent's metrics: what packets counted, read over its socket and by a real Prometheus."""

import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tidegate.lab.agents import config_path, write_config
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import LabSpec
from tidegate.lab.rack import Lab

pytestmark = pytest.mark.root

PORT = 9470
LIMIT = 30.0
"""Seconds that anything may take on a loaded machine."""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Site:
    """A lab with an agent that serves metrics, and two backends behind one VIP."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.control = Control(lab)
        self._open()

    def _open(self) -> None:
        lab, control = self.lab, self.control
        control.put(
            "pools/web", {"health": {"check": {"type": "tcp", "interval": 0.3, "timeout": 0.25}}}
        )
        for name in ("b1", "b2"):
            control.put(f"pools/web/backends/{name}", {"address": str(lab.address(name))})
        vip = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
        control.put("vips/web", vip)
        control.put("pools/shut", {})
        control.put("vips/shut", {**vip, "port": 81, "pool": "shut", "deny": ["0.0.0.0/0"]})
        path = write_config(lab.spec, "lb1")
        extra = f'[telemetry.prometheus]\nlisten = "127.0.0.1:{PORT}"\n'
        path.write_text(f"{path.read_text()}\n{extra}\n[telemetry.metrics]\nprogram_stats = true\n")
        with StatusWatch(lab, "lb1") as status:
            lab.start_agent("lb1", path)
            status.wait("synced", lambda s: s["state"] == "synced", LIMIT)

    def curl(self, *arguments: str) -> str:
        """Standard output of a curl on the LB host."""
        return self.lab.node("lb1").run(["curl", "--silent", "--show-error", *arguments]).stdout

    def socket(self, path: str, *arguments: str) -> str:
        """An answer of the control socket."""
        door = str(config_path(self.lab.spec, "lb1").parent / "agent.sock")
        return self.curl("--unix-socket", door, *arguments, f"http://localhost{path}")

    def samples(self) -> Samples:
        """What the control socket serves now."""
        return parsed(self.socket("/metrics"))

    def wait(self, what: str, accept: Callable[[Samples], bool]) -> Samples:
        """Samples that are accepted."""
        deadline = time.monotonic() + LIMIT
        while not accept(found := self.samples()):
            assert time.monotonic() < deadline, f"no {what}: {found}"
            time.sleep(1.05)  # what is asked for within a second is told again
        return found

    def visit(self, port: int, times: int) -> None:
        """Requests by a client, each over a connection of its own."""
        url = f"http://{self.lab.vip4()}:{port}/[1-{times}]"
        command = ["curl", "--silent", "--max-time", "1", "--no-keepalive", "--output", "/dev/null"]
        self.lab.client(1).run([*command, "-H", "Connection: close", url], check=False)


def parsed(text: str) -> Samples:
    """Samples by name and labels without the prefix of our own names."""
    return {
        (
            s.name,
            tuple(sorted((k.removeprefix("tidegate_"), v) for k, v in s.labels.items())),
        ): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def at(found: Samples, name: str, **labels: str) -> float:
    """One sample."""
    return found[name, tuple(sorted((k.replace("__", "_"), v) for k, v in labels.items()))]


def total(found: Samples, name: str) -> float:
    """All samples of a metric."""
    return sum(value for (each, _), value in found.items() if each == name)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab(LabSpec(name=f"t{secrets.token_hex(4)}", backends=2)) as built:
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


def test_a_refused_document_raises_its_alert(site: Site, tmp_path: Path) -> None:
    """A real Prometheus with the rules of deploy/ has the alert pending, and only that one."""
    place = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
    text = (place / "prometheus.yml").read_text("utf-8")
    text = text.replace("alerts.yml", str(place / "alerts.yml")).replace(": 15s", ": 1s")
    config = tmp_path / "prometheus.yml"
    config.write_text(text, "utf-8")
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    command += ["--web.listen-address=127.0.0.1:9090", "--log.level=warn"]
    log = tmp_path / "prometheus.log"
    process = site.lab.node("lb1").daemon(command, log)
    alerts = 'ALERTS{fleet="default"}'
    try:
        deadline = time.monotonic() + LIMIT
        while not query(site, 'tidegate_refusals{fleet="default"}'):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        assert [each["metric"]["alertname"] for each in query(site, alerts)] == []
        site.control.put("vips/bad", {"address": "no address"})
        while not (found := query(site, alerts)):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        assert {each["metric"]["alertname"] for each in found} == {"TidegateRefused"}
    finally:
        process.terminate()
        process.wait(10)
