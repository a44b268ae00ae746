# SPDX-License-Identifier: Apache-2.0
"""A VIP's last resort on a real agent: clients, status, journal and `tidegate plan`."""

import json
import sys
from typing import Any

import pytest

from tidegate.keyspace.status.document import rfc3339
from tidegate.lab.agents import config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=3)]

FAR = rfc3339(4_000_000_000)


CHECK = {"type": "http", "interval": 0.3, "timeout": 0.25, "rise": 2, "fall": 2}


def documents(lab: Lab, state: str) -> dict[str, dict[str, Any]]:
    """Return two backends in this state, and a third one in the sorry pool."""
    there = {name: {"address": str(lab.address(name))} for name in ("b1", "b2", "b3")}
    vip = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    return {
        "pools/web": {},
        "pools/sorry": {},
        "pools/web/backends/b1": there["b1"] | {"state": state},
        "pools/web/backends/b2": there["b2"] | {"state": state},
        "pools/sorry/backends/b3": there["b3"],
        "vips/www": vip | {"sorry_pool": "sorry"},
    }


def put(lab: Lab, state: str, kind: str = "") -> int:
    """Write these documents, or those of one kind; return the last revision."""
    there = documents(lab, state).items()
    return [Control(lab).put(key, each).revision for key, each in there if key.startswith(kind)][-1]


def servers(lab: Lab) -> set[str]:
    """Return who answers a client, in some connections."""
    command = ["curl", "--silent", "--show-error", "--max-time", "20", "-H", "Connection: close"]
    return {*lab.client(1).run([*command, *[f"http://{lab.vip4()}/"] * 24]).stdout.split()}


def planned(lab: Lab, state: str) -> dict[str, Any]:
    """Return what `tidegate plan` says of these documents on the host."""
    command = [sys.executable, "-m", "tidegate.cli.main", "plan", "-f", "-", "--json"]
    where = ["-c", str(config_path(lab.spec, "lb1"))]
    text = json.dumps(documents(lab, state))
    answer = lab.node("lb1").run([*command, *where], text=text, check=False)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def metrics(lab: Lab) -> list[str]:
    """Return what the host's agent serves on its control socket."""
    socket = str(lab.folder("lb1") / "agent.sock")
    command = ["curl", "--silent", "--fail", "--unix-socket", socket, "http://localhost/metrics"]
    return lab.node("lb1").run(command).stdout.splitlines()


def test_clients_go_to_the_sorry_pool_and_afterwards_to_the_pool(shared_lab: Lab) -> None:
    """All of the pool disabled: b3 answers, the status says so; then b1 and b2 again."""
    put(shared_lab, "active")
    shared_lab.start_agent("lb1")
    with StatusWatch(shared_lab, "lb1") as status:
        seen = status.wait("synced", lambda s: s["state"] == "synced", timeout=20).status
        assert seen["on_sorry_pool"] == []
        assert servers(shared_lab) == {"b1", "b2"}
        plan = planned(shared_lab, "disabled")
        assert plan["on_sorry_pool"] == ["www"]
        assert plan["fields"]["vips/www"] == ["on_sorry_pool"]
        lift = {"guard": "removal", "pool": "web", "expires_at": FAR}
        shared_lab.etcdctl("put", "/tidegate/default/overrides/out", json.dumps(lift))
        out = status.wait_applied(put(shared_lab, "disabled", "pools/web/")).status
        assert (out["on_sorry_pool"], out["state"]) == (["www"], "synced")
        assert servers(shared_lab) == {"b3"}
        assert 'tidegate_vip_on_sorry_pool{tidegate_vip="www"} 1' in metrics(shared_lab)
        shared_lab.agents["lb1"].kill()  # what is pinned says who is on its sorry pool
        assert servers(shared_lab) == {"b3"}
        shared_lab.agents["lb1"].restart()
        again = status.wait("a new start", lambda s: s["started_at"] != out["started_at"]).status
        assert again["on_sorry_pool"] == ["www"]
        assert again["generation"] == out["generation"]
        back = status.wait_applied(put(shared_lab, "active", "pools/web/")).status
        assert (back["on_sorry_pool"], back["digest"]) == ([], seen["digest"])
        assert servers(shared_lab) == {"b1", "b2"}
    log = shared_lab.agents["lb1"].log.read_text()
    assert "event=sorry_pool vips=www" in log
    assert 'event=sorry_pool vips=""' in log


def test_an_outage_that_checks_find_is_one(shared_lab: Lab) -> None:
    """With no panic share, both servers killed: b3 answers; one of them back is enough."""
    if "lb1" not in shared_lab.agents:
        shared_lab.start_agent("lb1")
    put(shared_lab, "active")
    control = Control(shared_lab)
    control.put("pools/sorry", {"health": {"check": {**CHECK, "type": "tcp"}}})
    web = {"check": CHECK, "hold_down": 0, "panic_percent": 0}
    with StatusWatch(shared_lab, "lb1") as status:
        status.wait_applied(control.put("pools/web", {"health": web}).revision, timeout=20)
        assert servers(shared_lab) == {"b1", "b2"}
        for name in ("b1", "b2"):
            shared_lab.stop_http(name)
        out = status.wait("an outage", lambda s: s["on_sorry_pool"] == ["www"], timeout=20).status
        assert (out["backends"]["unhealthy"], out["health"]["panics"]) == (2, [])
        assert servers(shared_lab) == {"b3"}
        shared_lab.start_http("b1")
        status.wait("its end", lambda s: s["on_sorry_pool"] == [], timeout=20)
        assert servers(shared_lab) == {"b1"}
