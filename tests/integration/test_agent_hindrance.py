# SPDX-License-Identifier: Apache-2.0
"""What a real agent says of checks that its host cannot make, and what it does about backends."""

import resource
import time
from typing import Any

import pytest

from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=2)]

CHECK = {"type": "http", "path": "/", "status": ["100-599"], "interval": 0.4, "timeout": 0.35}


def put(lab: Lab, **check: Any) -> None:
    """Have two backends behind a VIP, with a check of this kind."""
    control = Control(lab)
    control.put("pools/web", {"health": {"check": {**CHECK, **check}, "hold_down": 0}})
    for name in ("b1", "b2"):
        control.put(f"pools/web/backends/{name}", {"address": str(lab.address(name))})
    vip = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    control.put("vips/web", vip)


def is_clear(status: dict[str, Any]) -> bool:
    return status["health"]["hindrance"] == "" and status["backends"]["serving"] == 2


def test_a_lack_of_the_host_is_named_in_its_status(bare_lab: Lab) -> None:
    """A source that is not the host's takes no backend out; status and log say what to do."""
    put(bare_lab, source4="203.0.113.77")
    with StatusWatch(bare_lab, "lb1") as status:
        agent = bare_lab.start_agent("lb1")
        seen = status.wait(
            "both", lambda s: "web/b1, web/b2" in s["health"]["hindrance"], 40
        ).status
        assert "the check's source address must be one of this host" in seen["health"]["hindrance"]
        assert (seen["state"], seen["backends"]["serving"]) == ("degraded", 2)
        assert seen["reason"] == seen["health"]["hindrance"]
        assert "event=probes_hindered" in agent.log.read_text()
        put(bare_lab)
        status.wait("clear", is_clear, 40)
        assert agent.terminate() == 0


def test_an_agent_without_descriptors_ejects_nobody(bare_lab: Lab) -> None:
    """While it has none the status names the limit; both backends serve, then and after."""
    put(bare_lab)
    with StatusWatch(bare_lab, "lb1") as status:
        agent = bare_lab.start_agent("lb1")
        status.wait("synced", lambda s: s["state"] == "synced" and is_clear(s), 40)
        soft, hard = resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (3, hard))
        seen = status.wait("hindered", lambda s: s["health"]["hindrance"], 40).status
        assert "LimitNOFILE" in seen["health"]["hindrance"]
        assert seen["backends"]["serving"] == 2
        time.sleep(3)  # longer than it takes to find a backend dead
        assert status.current()["backends"]["serving"] == 2
        resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        status.wait("clear", is_clear, 40)
        assert "state=unhealthy" not in agent.log.read_text()
        assert agent.terminate() == 0
