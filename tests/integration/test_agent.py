# SPDX-License-Identifier: Apache-2.0
"""The agent on a real rack: keys in etcd steer real packets, and nothing breaks when it is away."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from support.etcd.in_lab import etcd_pid
from tidegate.lab import netns
from tidegate.lab.agents import AgentProcess, config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import ROUTER
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=3)]

BACKENDS = ("b1", "b2", "b3")


@pytest.fixture
def control(bare_lab: Lab) -> Control:
    """Give a control system that has written one pool and its VIPs."""
    control = Control(bare_lab)
    control.put("pools/web", {"transition_window": 5, "deregistration_delay": 5})
    for name in BACKENDS:
        control.put(f"pools/web/backends/{name}", {"address": str(bare_lab.address(name))})
    control.put("vips/web4", vip(bare_lab.vip4()))
    control.put("vips/web6", vip(bare_lab.vip6()))
    control.put("vips/echo4", vip(bare_lab.vip4(), port=7, protocol="udp"))
    return control


@pytest.fixture
def agent(bare_lab: Lab, control: Control, status: StatusWatch) -> AgentProcess:
    """Give an agent that has everything in force."""
    started = bare_lab.start_agent("lb1")
    ready(started, status)
    return started


def ready(agent: AgentProcess, status: StatusWatch, generation: int = 1) -> None:
    try:
        status.wait(
            "synced", lambda s: s["state"] == "synced" and s["generation"] >= generation, timeout=20
        )
    except Exception as error:
        error.add_note(agent.tail(20))
        raise


def vip(
    address: object, port: int = 80, protocol: str = "tcp", pool: str = "web"
) -> dict[str, object]:
    return {"address": str(address), "port": port, "protocol": protocol, "pool": pool}


def backend_of(lab: Lab, address: object) -> str:
    """Return the backend that answers an HTTP request from a client."""
    host = f"[{address}]" if ":" in str(address) else str(address)
    command = ["curl", "--silent", "--show-error", "--max-time", "3", f"http://{host}/"]
    return lab.client(1).run(command).stdout.strip()


def test_keys_steer_tcp_and_udp_over_both_families(bare_lab: Lab, agent: AgentProcess) -> None:
    """A VIP answers from its pool's backends; replies come straight from them (DSR)."""
    for address in (bare_lab.vip4(), bare_lab.vip6()):
        seen = Counter(backend_of(bare_lab, address) for _ in range(24))
        assert set(seen) == set(BACKENDS)
    echo = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); "
        f"s.connect(('{bare_lab.vip4()}', 7)); s.send(b'hi'); print(s.recv(99).decode())"
    )
    assert bare_lab.client(2).run([sys.executable, "-c", echo]).stdout.split()[0] in BACKENDS


def test_a_change_of_the_roster_moves_new_connections(
    bare_lab: Lab, agent: AgentProcess, control: Control, status: StatusWatch
) -> None:
    """Weight, drain, disable and delete each take a backend out of the way of new connections."""
    gone = [
        lambda: control.put("pools/web/backends/b1", backend(bare_lab, "b1", weight=0)),
        lambda: control.put("pools/web/backends/b2", backend(bare_lab, "b2", state="drain")),
    ]
    for change in gone:
        status.wait_applied(change().revision)
    assert {backend_of(bare_lab, bare_lab.vip4()) for _ in range(12)} == {"b3"}
    control.put("pools/web/backends/b1", backend(bare_lab, "b1"))
    status.wait_applied(control.delete("pools/web/backends/b3").revision)
    assert {backend_of(bare_lab, bare_lab.vip6()) for _ in range(12)} == {"b1"}


def backend(lab: Lab, name: str, **fields: object) -> dict[str, object]:
    return {"address": str(lab.address(name)), **fields}


def test_a_pool_can_change_to_gue_and_back(
    bare_lab: Lab, agent: AgentProcess, control: Control, status: StatusWatch
) -> None:
    """The outer UDP header with its checksum is accepted by the backends, in both families."""
    times = {"transition_window": 5, "deregistration_delay": 5}
    for options in ({"encapsulation": "gue"}, {}):
        status.wait_applied(control.put("pools/web", {**times, **options}).revision)
        for address in (bare_lab.vip4(), bare_lab.vip6()):
            assert {backend_of(bare_lab, address) for _ in range(8)} <= set(BACKENDS)


BAD = {
    "broken JSON": ("vips/bad", '{"address": ', "vips/bad", ""),
    "unknown field": ("pools/web", '{"colour": "red"}', "pools/web", "colour"),
    "bad address": (
        "vips/web4",
        '{"address": "10.99.0.256", "port": 80, "protocol": "tcp", "pool": "web"}',
        "vips/web4",
        "address",
    ),
    "weight -1": (
        "pools/web/backends/b1",
        '{"address": "10.1.1.1", "weight": -1}',
        "pools/web/backends/b1",
        "weight",
    ),
    "port 70000": (
        "vips/bad",
        '{"address": "10.99.0.9", "port": 70000, "protocol": "tcp", "pool": "web"}',
        "vips/bad",
        "port",
    ),
    "no such pool": (
        "vips/bad",
        '{"address": "10.99.0.9", "port": 80, "protocol": "tcp", "pool": "nothing"}',
        "vips/bad",
        "pool",
    ),
    "the same service twice": (
        "vips/bad",
        '{"address": "10.99.0.1", "port": 80, "protocol": "tcp", "pool": "web"}',
        "vips/bad",
        "address",
    ),
}


def test_bad_documents_are_refused_by_key_and_field(
    bare_lab: Lab, agent: AgentProcess, status: StatusWatch
) -> None:
    """The last good generation stays in force, whatever is written; nothing crashes."""
    assert status.latest is not None
    before = status.latest.status
    for name, (key, text, refused_key, field) in BAD.items():
        bare_lab.etcdctl("put", f"/tidegate/default/config/live/{key}", text)
        seen = status.wait(
            f"a refusal of {name}",
            lambda s, k=refused_key, f=field: any(
                r["key"] == k and r["field"] == f and r["reason"] for r in s["refusals"]
            ),
        )
        assert (seen.status["generation"], seen.status["digest"]) == (
            before["generation"],
            before["digest"],
        )
        assert seen.status["state"] == "degraded"
    assert backend_of(bare_lab, bare_lab.vip4()) in BACKENDS
    assert agent.process.poll() is None


def test_a_killed_agent_leaves_packets_flowing_and_is_adopted(
    bare_lab: Lab, agent: AgentProcess, control: Control, status: StatusWatch
) -> None:
    """Ids, generation number and tables are read back from the pins; digest and number go on."""
    assert status.latest is not None
    before = status.latest.status
    agent.kill()
    assert {backend_of(bare_lab, bare_lab.vip4()) for _ in range(12)} <= set(BACKENDS)
    agent.restart()
    again = status.wait("a new start", lambda s: s["started_at"] != before["started_at"])
    again = status.wait("synced", lambda s: s["state"] == "synced")
    assert (again.status["generation"], again.status["digest"]) == (
        before["generation"],
        before["digest"],
    )
    change = control.put("pools/web/backends/b1", backend(bare_lab, "b1", weight=50))
    after = status.wait_applied(change.revision)
    assert after.status["generation"] == before["generation"] + 1


def test_a_restart_on_a_broken_document_keeps_what_was_in_force(
    bare_lab: Lab, agent: AgentProcess, control: Control, status: StatusWatch
) -> None:
    """The last good value survives the agent, since it is in the pins."""
    bare_lab.etcdctl("put", "/tidegate/default/config/live/vips/web4", "{broken")
    status.wait("the refusal", lambda s: bool(s["refusals"]))
    agent.kill()
    agent.restart()
    started = status.latest.status["started_at"] if status.latest else ""
    status.wait("a new start", lambda s: s["started_at"] != started and bool(s["refusals"]))
    assert backend_of(bare_lab, bare_lab.vip4()) in BACKENDS


def test_an_emptied_prefix_empties_nothing(
    bare_lab: Lab, agent: AgentProcess, status: StatusWatch
) -> None:
    """Everything deleted at once is an accident: the generation stays, and the guard says so."""
    bare_lab.etcdctl("del", "--prefix", "/tidegate/default/config/live/")
    seen = status.wait("the guard", lambda s: any(r["stage"] == "guard" for r in s["refusals"]))
    assert seen.status["generation"] == 1
    assert backend_of(bare_lab, bare_lab.vip4()) in BACKENDS


def test_what_is_in_force_goes_on_in_time_while_a_guard_refuses(
    bare_lab: Lab, agent: AgentProcess, control: Control, status: StatusWatch
) -> None:
    """A ramp that has begun is ended, step by step, though the documents are gone meanwhile."""
    ramp = {"transition_window": 3600, "slow_start": 4, "slow_start_steps": 3}
    status.wait_applied(control.put("pools/web", ramp).revision)
    start = int(time.time()) + 3
    times = {"starts_at": datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    written = control.put("pools/web/backends/b3", backend(bare_lab, "b3", **times))
    before = status.wait_applied(written.revision).status["generation"]
    bare_lab.etcdctl("del", "--prefix", "/tidegate/default/config/live/")
    status.wait("the guard", lambda s: any(r["stage"] == "guard" for r in s["refusals"]))
    seen = status.wait("three steps", lambda s: s["generation"] >= before + 3, timeout=20)
    assert seen.status["generation"] == before + 3
    assert time.time() >= start + 4
    assert any(r["stage"] == "guard" for r in seen.status["refusals"])
    assert set(Counter(backend_of(bare_lab, bare_lab.vip4()) for _ in range(36))) == set(BACKENDS)


def test_etcd_away_at_the_start_and_later(
    bare_lab: Lab, control: Control, status: StatusWatch
) -> None:
    """The agent waits for etcd, forwards without it, and says that it is stale."""
    etcd = etcd_pid(bare_lab)
    os.kill(etcd, signal.SIGSTOP)
    agent = bare_lab.start_agent("lb1")
    wait_for_log(agent, "start version")
    os.kill(etcd, signal.SIGCONT)
    ready(agent, status)
    os.kill(etcd, signal.SIGSTOP)
    try:
        wait_for_log(agent, "event=etcd phase=reconnecting")
        assert backend_of(bare_lab, bare_lab.vip4()) in BACKENDS
    finally:
        os.kill(etcd, signal.SIGCONT)
    status.wait_applied(
        control.put("pools/web/backends/b1", backend(bare_lab, "b1", weight=7)).revision
    )


def wait_for_log(agent: AgentProcess, text: str) -> None:
    """Follow the agent's log until it says something; fail after 20 s."""
    with subprocess.Popen(
        ["tail", "--lines=+1", "--follow", str(agent.log)], stdout=subprocess.PIPE, text=True
    ) as tail:
        assert tail.stdout is not None
        deadline = subprocess.Popen(["sleep", "20"])
        try:
            os.set_blocking(tail.stdout.fileno(), True)
            for line in tail.stdout:
                if text in line:
                    return
                assert deadline.poll() is None, f"no {text!r} in the log: {agent.tail()}"
        finally:
            for child in (tail, deadline):
                child.kill()
            deadline.wait()


def test_a_reload_takes_over_what_may_change(
    bare_lab: Lab, agent: AgentProcess, status: StatusWatch
) -> None:
    """SIGHUP reads the file again: a guard can be opened; a broken file changes nothing."""
    path = config_path(bare_lab.spec, "lb1")
    good = path.read_text()
    path.write_text("interfaces = [")
    agent.reload()
    wait_for_log(agent, "event=reload_refused")
    prefix = "/tidegate/default/config/live/vips/web"
    deleted = bare_lab.etcdctl("-w", "json", "del", "--prefix", prefix)  # two VIPs of three
    status.wait("the guard", lambda s: any(r["stage"] == "guard" for r in s["refusals"]))
    path.write_text(good + "\n[guards]\nmax_vips_removed_percent = 70\n")
    agent.reload()
    wait_for_log(agent, "event=reload changed=guards")
    revision = json.loads(deleted)["header"]["revision"]
    seen = status.wait("the change", lambda s: s["generation_revision"] >= revision)
    assert seen.status["capacity"]["vips"]["used"] == 1


def test_only_one_agent_holds_a_data_plane(bare_lab: Lab, agent: AgentProcess) -> None:
    """A second one says which to stop, and changes nothing."""
    second = run_agent(bare_lab, config_path(bare_lab.spec, "lb1"))
    assert second.returncode == 2
    assert "another agent holds" in second.stderr


def test_a_foreign_program_in_our_place_is_reported(bare_lab: Lab, status: StatusWatch) -> None:
    """The host is not ready and says why; when it goes, ours is back at once."""
    from tidegate.dataplane.kernel.programs import attach_pass  # noqa: PLC0415

    bare_lab.start_agent("lb1")
    written = Control(bare_lab).put("pools/web", {})
    status.wait_applied(written.revision)
    with netns.entered(bare_lab.node("lb1").namespace):
        attach_pass("eth0")
    detached, native = ([{"name": "eth0", "mode": mode}] for mode in ("detached", "native"))
    seen = status.wait("foreign", lambda s: s["interfaces"] == detached, 2)
    assert not seen.status["ready"]
    assert any("not Tidegate's" in warning for warning in seen.status["warnings"])
    bare_lab.node("lb1").run(["ip", "link", "set", "dev", "eth0", "xdp", "off"])
    back = status.wait("ours", lambda s: s["interfaces"] == native, 2)
    assert not any("not Tidegate's" in warning for warning in back.status["warnings"])


def run_agent(lab: Lab, config: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tidegate.cli.main", "agent", "run", "-c", str(config)]
    return lab.node("lb1").run(command, check=False)


def test_somebody_elses_program_is_not_replaced(bare_lab: Lab) -> None:
    """The message says which program is there and how to take it off."""
    from tidegate.dataplane.kernel.programs import attach_pass, attached  # noqa: PLC0415

    with netns.entered(bare_lab.node("lb1").namespace):
        attach_pass("eth0")
        there = attached("eth0")
    refused = run_agent(bare_lab, config_path(bare_lab.spec, "lb1"))
    assert refused.returncode == 2
    assert "not Tidegate's" in refused.stderr
    with netns.entered(bare_lab.node("lb1").namespace):
        assert attached("eth0") == there


def test_generic_mode_works_where_the_file_allows_it(
    bare_lab: Lab, control: Control, status: StatusWatch
) -> None:
    """The status says which mode an interface is in."""
    path = config_path(bare_lab.spec, "lb1")
    path.write_text(path.read_text().replace('"native"', '"generic"'))
    ready(bare_lab.start_agent("lb1"), status)
    assert status.latest is not None
    assert status.latest.status["interfaces"] == [{"name": "eth0", "mode": "generic"}]


def test_a_gateway_that_changes_its_mac_is_followed(
    bare_lab: Lab, agent: AgentProcess, control: Control
) -> None:
    """The neighbour table is the source; its change reaches the program without a restart."""
    uplink = bare_lab.station("lb1").uplink
    with netns.entered(bare_lab.node(ROUTER).namespace):
        subprocess.run(["ip", "link", "set", uplink, "address", "02:00:00:00:77:77"], check=True)
    bare_lab.node("lb1").run(["ip", "neigh", "flush", "dev", "eth0"])
    wait_for_log(agent, "gateway4_mac=02:00:00:00:77:77")
    assert {backend_of(bare_lab, bare_lab.vip4()) for _ in range(6)} <= set(BACKENDS)


def test_the_service_manager_hears_of_ready_and_stop(
    bare_lab: Lab, control: Control, tmp_path: Path
) -> None:
    """READY once the data plane is up, its status, STOPPING on SIGTERM, and exit code 0."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        try:
            agent = bare_lab.start_agent("lb1")
        finally:
            del os.environ["NOTIFY_SOCKET"]
        heard = []
        while b"READY=1" not in heard:
            heard.append(manager.recv(200))
        assert agent.terminate() == 0
        while b"STOPPING=1" not in heard:
            heard.append(manager.recv(200))
    said = {line.partition(b"=")[0] for line in heard} - {b"EXTEND_TIMEOUT_USEC"}
    assert said == {b"STATUS", b"READY", b"STOPPING"}


def test_remove_takes_the_data_plane_down(bare_lab: Lab, agent: AgentProcess) -> None:
    """The opposite of a stop: program off, pins gone."""
    from tidegate.dataplane.kernel.programs import attached  # noqa: PLC0415

    agent.terminate()
    config = config_path(bare_lab.spec, "lb1")
    bare_lab.node("lb1").run(
        [sys.executable, "-m", "tidegate.cli.main", "agent", "remove", "-c", str(config)]
    )
    with netns.entered(bare_lab.node("lb1").namespace):
        assert attached("eth0") is None
    assert not Path(f"/sys/fs/bpf/tidegate-{bare_lab.spec.name}-lb1").exists()
