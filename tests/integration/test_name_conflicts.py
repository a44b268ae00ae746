# SPDX-License-Identifier: Apache-2.0
"""What an agent says when etcd does not take its status: another host's name, or no permission."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tidegate.lab.agents import config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=1, lbs=2)]

KEY = "/tidegate/default/status/lb1"


def set_up(lab: Lab, lb: str, **lines: str) -> None:
    """Change lines of a host's file; its leases are short, and outlast a restart of its agent."""
    path = config_path(lab.spec, lb)
    text = path.read_text().replace("[etcd]\n", "[etcd]\nstatus_ttl = 10\nfatal_retry = 1\n")
    for old, new in lines.items():
        text = text.replace(f'{old} = "{lb}"', f'{old} = "{new}"')
    path.write_text(text)


def own_status(lab: Lab, lb: str) -> dict[str, Any]:
    """Return what an agent says on its own host."""
    socket = str(lab.folder(lb) / "agent.sock")
    command = ["curl", "--silent", "--unix-socket", socket, "http://localhost/status"]
    answer = lab.node(lb).run(command, check=False).stdout
    found: dict[str, Any] = json.loads(answer) if answer else {}
    return found


def until(lab: Lab, lb: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait for such a status on the host."""
    deadline = time.monotonic() + 40
    while not (found := own_status(lab, lb)) or not wanted(found):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def test_two_hosts_of_one_name_are_told_apart(bare_lab: Lab, status: StatusWatch) -> None:
    """The second says so and writes nothing; both forward; a restart of the first is no matter."""
    for lb in ("lb1", "lb2"):
        set_up(bare_lab, lb, host="lb1")
    written = Control(bare_lab).put("pools/web", {})
    bare_lab.start_agent("lb1")
    first = status.wait_applied(written.revision, timeout=40).status
    assert first["instance"]
    bare_lab.start_agent("lb2")
    second = until(bare_lab, "lb2", lambda s: "another host" in s["reason"])
    assert second["state"] == "degraded"
    assert first["instance"] in second["reason"]
    assert second["generation_revision"] >= written.revision
    assert second["ready"]
    assert (
        json.loads(bare_lab.etcdctl("get", "--print-value-only", KEY))["instance"]
        == first["instance"]
    )
    bare_lab.agents["lb1"].kill()
    bare_lab.agents["lb1"].restart()
    again = until(bare_lab, "lb1", lambda s: s["state"] == "synced")
    assert again["instance"] == first["instance"]
    assert "status_not_written" not in bare_lab.agents["lb1"].log.read_text()
    assert bare_lab.agents["lb1"].terminate() == 0
    until(bare_lab, "lb2", lambda s: s["state"] == "synced")
    status.wait("the second's", lambda s: s["instance"] == second["instance"])


def test_auth_that_is_switched_on_shows_in_the_status(bare_lab: Lab, status: StatusWatch) -> None:
    """The host says what to set, its old status goes, and all is well when auth is off again."""
    set_up(bare_lab, "lb1")
    written = Control(bare_lab).put("pools/web", {})
    bare_lab.start_agent("lb1")
    status.wait_applied(written.revision, timeout=40)
    for command in ("user add root:r00t", "user grant-role root root", "auth enable"):
        bare_lab.etcdctl(*command.split())
    root = ("--user", "root:r00t")
    found = until(bare_lab, "lb1", lambda s: s["state"] in ("stale", "degraded"))
    assert "etcd.user" in found["reason"]
    deadline = time.monotonic() + 30
    while bare_lab.etcdctl(*root, "get", "--print-value-only", KEY):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    bare_lab.etcdctl(*root, "auth", "disable")
    until(bare_lab, "lb1", lambda s: s["state"] == "synced")
    status.wait("a status again", lambda s: s["state"] == "synced")
