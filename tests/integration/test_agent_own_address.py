# SPDX-License-Identifier: Apache-2.0
"""VIPs over the host's own address on a real agent: etcd stays in reach, or comes back."""

import os
import signal
import sys
import time
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest

from support.etcd.in_lab import etcd_pid
from tidegate.cli.agent_socket import ask
from tidegate.lab.agents import AgentProcess, config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=1)]

ELSEWHERE = "192.0.2.77"


def service(address: object, port: int = 80) -> dict[str, object]:
    return {"address": str(address), "port": port, "protocol": "tcp", "pool": "web"}


@pytest.fixture
def control(bare_lab: Lab) -> Control:
    """Give a control system that has written a pool and its VIP."""
    control = Control(bare_lab)
    control.put("pools/web", {"deregistration_delay": 5})
    control.put("pools/web/backends/b1", {"address": str(bare_lab.address("b1"))})
    control.put("vips/web4", service(bare_lab.vip4()))
    return control


@pytest.fixture
def agent(bare_lab: Lab, control: Control, status: StatusWatch) -> AgentProcess:
    """Give an agent that has everything in force."""
    started = bare_lab.start_agent("lb1")
    status.wait("synced", lambda s: s["state"] == "synced" and s["generation"] >= 1, timeout=30)
    return started


def of_agent(lab: Lab) -> dict[str, Any]:
    """Return what the agent says on its socket."""
    return ask(config_path(lab.spec, "lb1").parent / "agent.sock", "GET", "/status")


def until(condition: Callable[[], bool], timeout: float = 40) -> None:
    """Look again and again until it holds."""
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.2)


def tidegate(lab: Lab, *words: str) -> str:
    """Run an operator's command on the load-balancer host."""
    command = [sys.executable, "-m", "tidegate.cli.main", *words]
    return lab.node("lb1").run([*command, "-c", str(config_path(lab.spec, "lb1"))]).stdout


@pytest.mark.usefixtures("agent")
def test_a_network_over_the_host_leaves_etcd_in_reach(
    bare_lab: Lab, control: Control, status: StatusWatch
) -> None:
    """The host's answers from etcd pass, so the next changes reach it, too."""
    network = ip_network(f"{bare_lab.address('lb1')}/24", strict=False)
    status.wait_applied(control.put("vips/wide", service(network, port=0)).revision)
    for weight in (7, 8):
        document = {"address": str(bare_lab.address("b1")), "weight": weight}
        status.wait_applied(control.put("pools/web/backends/b1", document).revision)
    status.wait_applied(control.delete("vips/wide").revision)


@pytest.mark.usefixtures("agent")
def test_addresses_that_come_and_go_are_followed(
    bare_lab: Lab, control: Control, status: StatusWatch
) -> None:
    """A VIP of an own address is refused by name, and taken when the address has gone."""
    node = bare_lab.node("lb1")
    node.run(["ip", "address", "add", f"{ELSEWHERE}/32", "dev", "lo"])
    control.put("vips/own", service(ELSEWHERE, port=0))
    seen = status.wait("a refusal", lambda s: bool(s["refusals"]))
    (refusal,) = seen.status["refusals"]
    assert (refusal["key"], refusal["field"]) == ("vips/own", "address")
    assert f"{ELSEWHERE}, an address of this host itself" in refusal["reason"]
    node.run(["ip", "address", "del", f"{ELSEWHERE}/32", "dev", "lo"])
    status.wait("synced", lambda s: s["state"] == "synced" and s["capacity"]["vips"]["used"] == 2)


@pytest.mark.usefixtures("agent")
def test_vips_that_cost_etcd_are_taken_back(
    bare_lab: Lab, control: Control, status: StatusWatch
) -> None:
    """The host goes back and holds; an operator's thaw has it try again."""
    time.sleep(12)  # confirms the first VIP
    etcd = etcd_pid(bare_lab)
    status.wait_applied(control.put("vips/blamed", service(ELSEWHERE)).revision)
    os.kill(etcd, signal.SIGSTOP)
    try:
        until(lambda: of_agent(bare_lab)["capacity"]["vips"]["used"] == 1)
        until(lambda: "was taken back" in of_agent(bare_lab)["freeze"])
    finally:
        os.kill(etcd, signal.SIGCONT)
    seen = status.wait("frozen", lambda s: s["state"] == "frozen", timeout=60)
    assert "held until `tidegate thaw`" in seen.status["reason"]
    assert "as etcd was lost after generation" in tidegate(bare_lab, "history")
    tidegate(bare_lab, "thaw")
    status.wait("synced", lambda s: s["state"] == "synced" and s["capacity"]["vips"]["used"] == 2)
