# SPDX-License-Identifier: Apache-2.0
"""Rollback, freeze, thaw and history on a real agent, with etcd there and with etcd away."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support.etcd.in_lab import etcd_pid
from tidegate.cli.agent_socket import ask
from tidegate.errors import AgentError
from tidegate.lab.agents import AgentProcess, config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=3)]


@pytest.fixture
def control(bare_lab: Lab) -> Control:
    """Give a control system that has written a pool with one backend, and its VIP."""
    control = Control(bare_lab)
    control.put("pools/web", {"transition_window": 300, "deregistration_delay": 300})
    add(bare_lab, control, "b1")
    document = {"address": str(bare_lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    control.put("vips/www", document)
    return control


@pytest.fixture
def agent(bare_lab: Lab, control: Control, status: StatusWatch) -> AgentProcess:
    """Give an agent that has a second generation in force, with three backends."""
    started = bare_lab.start_agent("lb1")
    status.wait("synced", lambda s: s["state"] == "synced" and s["generation"] == 1, timeout=20)
    add(bare_lab, control, "b2")
    status.wait_applied(add(bare_lab, control, "b3"))
    return started


def add(lab: Lab, control: Control, name: str) -> int:
    address = {"address": str(lab.address(name))}
    return control.put(f"pools/web/backends/{name}", address).revision


def tidegate(lab: Lab, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run an operator's command on the load-balancer host, with the agent's file."""
    command = [sys.executable, "-m", "tidegate.cli.main", *words]
    return lab.node("lb1").run([*command, "-c", str(config_path(lab.spec, "lb1"))], check=False)


def of_agent(lab: Lab, where: str = "/status") -> dict[str, Any]:
    """Return what the agent says on its socket."""
    return ask(config_path(lab.spec, "lb1").parent / "agent.sock", "GET", where)


def backends(lab: Lab, count: int = 12) -> set[str]:
    command = ["curl", "--silent", "--show-error", "--max-time", "3", f"http://{lab.vip4()}/"]
    return {lab.client(1).run(command).stdout.strip() for _ in range(count)}


def test_rollback_with_etcd_away(
    bare_lab: Lab, agent: AgentProcess, control: Control, status: StatusWatch
) -> None:
    """It takes two of three backends at once, past the guard; nothing undoes it but a thaw."""
    first, last = of_agent(bare_lab, "/states")["states"][0]["digest"], of_agent(bare_lab)["digest"]
    etcd = etcd_pid(bare_lab)
    os.kill(etcd, signal.SIGSTOP)
    try:
        done = tidegate(bare_lab, "rollback", "--to", "1", "--reason", "incident 4711")
        assert done.returncode == 0, done.stderr
        assert "with the documents of generation 1" in done.stdout
        assert of_agent(bare_lab)["digest"] == first
        assert backends(bare_lab) == {"b1"}
    finally:
        os.kill(etcd, signal.SIGCONT)
    written = control.put(
        "pools/web/backends/b1", {"address": str(bare_lab.address("b1")), "weight": 7}
    )
    seen = status.wait(
        "frozen", lambda s: s["state"] == "frozen" and s["revision"] >= written.revision, 30
    )
    assert "rolled back to generation 1 by root at 20" in seen.status["freeze"]
    assert seen.status["freeze"].endswith(": incident 4711")
    assert seen.status["digest"] == first
    agent.kill()
    agent.restart()
    started = seen.status["started_at"]
    seen = status.wait(
        "frozen again", lambda s: s["started_at"] != started and s["state"] == "frozen", 30
    )
    assert (seen.status["digest"], backends(bare_lab)) == (first, {"b1"})
    thawed = tidegate(bare_lab, "thaw")
    assert (thawed.returncode, thawed.stdout) == (0, "thawed\n")
    assert of_agent(bare_lab)["state"] == "synced"
    assert of_agent(bare_lab)["digest"] not in (first, last)
    assert backends(bare_lab) & {"b2", "b3"}


def test_going_back_and_forth_over_a_restart(bare_lab: Lab, agent: AgentProcess) -> None:
    """What can be gone back to comes from the journal; a second rollback undoes the first."""
    number, digest = (of_agent(bare_lab)[key] for key in ("generation", "digest"))
    agent.kill()
    agent.restart()
    states = wait_for_states(bare_lab)
    assert [state["last"] for state in states][-1] == number
    unknown = tidegate(bare_lab, "rollback", "--to", "4711")
    assert unknown.returncode == 1
    assert "no generation number 4711 is known; known are: " in unknown.stderr
    assert f"{states[-2]['digest'][:8]}" in unknown.stderr
    assert tidegate(bare_lab, "rollback").returncode == 0
    assert of_agent(bare_lab)["digest"] == states[-2]["digest"] != digest
    assert tidegate(bare_lab, "rollback").returncode == 0
    assert (of_agent(bare_lab)["digest"], of_agent(bare_lab)["generation"]) == (digest, number + 2)


def test_health_checks_go_back_too(
    bare_lab: Lab, agent: AgentProcess, control: Control, status: StatusWatch
) -> None:
    """What is probed is what the generation in force wants, also after a rollback."""
    check = {"type": "tcp", "interval": 0.2, "timeout": 0.2}
    checked = {
        "health": {"check": check},
        "deregistration_delay": 1,
    }  # it is probed while it drains
    status.wait_applied(control.put("pools/web", checked).revision)
    wait_for_verdicts(bare_lab, {"b1", "b2", "b3"})
    status.wait_applied(control.delete("pools/web/backends/b3").revision)
    wait_for_verdicts(bare_lab, {"b1", "b2"})
    assert tidegate(bare_lab, "rollback").returncode == 0
    wait_for_verdicts(bare_lab, {"b1", "b2", "b3"})


def wait_for_verdicts(lab: Lab, names: set[str], timeout: float = 15) -> None:
    """Wait until the host has verdicts on these backends."""
    prefix = "/tidegate/default/health/lb1/web/"
    deadline = time.monotonic() + timeout
    while set(lab.etcdctl("get", "--prefix", "--keys-only", prefix).split()) != {
        prefix + name for name in names
    }:
        assert time.monotonic() < deadline, names
        time.sleep(0.1)  # etcd is asked, as a person would


def wait_for_states(lab: Lab) -> list[dict[str, Any]]:
    """Return the states of an agent that has just been started."""
    for _ in range(200):
        try:
            return list(of_agent(lab, "/states")["states"])
        except AgentError:
            time.sleep(0.1)  # its socket can only be asked again
    raise AssertionError("the agent does not answer")


def test_each_freeze_has_to_be_lifted_by_whoever_set_it(
    bare_lab: Lab, agent: AgentProcess, control: Control, status: StatusWatch
) -> None:
    """The operator of the host, and the control system in etcd."""
    frozen = tidegate(bare_lab, "freeze", "--reason", "replacing its switch")
    assert "frozen by root at 20" in frozen.stdout
    host = '{"freeze": true, "reason": "incident 4712"}'
    bare_lab.etcdctl("put", "/tidegate/default/hosts/lb1", host)
    status.wait("both", lambda s: "4712" in s["freeze"] and "switch" in s["freeze"])
    thawed = tidegate(bare_lab, "thaw")
    assert thawed.returncode == 0
    assert "another freeze is still in force" in thawed.stdout
    assert "incident 4712" in thawed.stdout
    assert "switch" not in of_agent(bare_lab)["freeze"]
    again = tidegate(bare_lab, "thaw")
    assert "was not frozen by an order on this host" in again.stdout


def test_history_says_who_did_what(
    bare_lab: Lab, agent: AgentProcess, control: Control, status: StatusWatch
) -> None:
    """Keys with revisions, refusals once, orders, and who had a flow; no agent needs to run."""
    bad = control.put(
        "vips/bad", {"address": "10.99.0.300", "port": 80, "protocol": "tcp", "pool": "web"}
    )
    status.wait("the refusal", lambda s: bool(s["refusals"]))
    gone = control.delete("pools/web/backends/b3")
    status.wait("its end", lambda s: s["generation_revision"] >= gone.revision)
    assert tidegate(bare_lab, "freeze", "--reason", "looking").returncode == 0
    port = 41234
    curl = [
        "curl",
        "-s",
        "--max-time",
        "3",
        "--local-port",
        str(port),
        f"http://{bare_lab.vip4()}/",
    ]
    served = bare_lab.client(1).run(curl).stdout.strip()
    at = datetime.now(UTC).isoformat()
    agent.terminate()
    text = tidegate(bare_lab, "history", "-n", "0").stdout
    assert "keys: pools/web/backends/b3 (deleted)\n    backends: -web/b3" in text
    assert "pools/web/backends/b2 (revision " in text
    assert (text.count("refused, "), text.count("vips/bad: ")) == (1, 1), text
    assert "freeze by root: looking" in text
    found = tidegate(bare_lab, "history", "--json", "--key", "vips/bad").stdout.splitlines()
    (line,) = (json.loads(each) for each in found)
    assert {refusal["revision"] for refusal in line["refusals"]} == {bad.revision}
    client = bare_lab.station("client1").address4()
    flow = ("tcp", f"{client}:{port}", f"{bare_lab.vip4()}:80")
    said = tidegate(bare_lab, "history", "owner", "--at", at, *flow)
    assert f"owner: web/{served}\n" in said.stdout, said.stderr
    assert "owner of flows from before" in said.stdout or "web/b3" not in said.stdout
    nobody = tidegate(bare_lab, "history", "owner", "--at", at, *flow[:2], f"{bare_lab.vip4()}:81")
    assert (nobody.returncode, "no such VIP" in nobody.stdout) == (1, True)
    for path in journal_files(bare_lab):
        assert path.stat().st_mode & 0o077 == 0


def journal_files(lab: Lab) -> list[Path]:
    found = list((config_path(lab.spec, "lb1").parent / "state" / "journal").iterdir())
    assert found
    return found


def test_a_command_without_an_agent_says_what_to_do(tmp_path: Path) -> None:
    """Exit code 2, the socket's path, and how to name another."""
    missing = tmp_path / "agent.sock"
    command = [sys.executable, "-m", "tidegate.cli.main", "thaw", "--socket", str(missing)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"no agent answers on {missing}" in done.stderr
