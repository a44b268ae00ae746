# SPDX-License-Identifier: Apache-2.0
"""The seed of the flow hash on a real agent: secret from the start, changed by one put."""

import json
from pathlib import Path

import pytest

from tidegate.dataplane.inspect.pinned import PinnedDataPlane
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import CONTROL
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=1)]

KEY = "/tidegate-secrets/default/hash-seed"


def seed_in_force(pins: Path) -> str | None:
    with PinnedDataPlane(pins) as pinned:
        return pinned.generation().hash_seed


def etcdctl(lab: Lab, *words: str) -> str:
    return str(lab.node(CONTROL).run(["etcdctl", *words]).stdout.strip())


def test_a_new_fleet_hashes_with_a_secret(bare_lab: Lab, status: StatusWatch) -> None:
    """The first generation has it; a put changes it in one change, and a restart keeps it."""
    control, pins = Control(bare_lab), bare_lab.spec.pin_dir("lb1")
    control.put("pools/web", {})
    control.put("pools/web/backends/b1", {"address": str(bare_lab.address("b1"))})
    address = str(bare_lab.vip4())
    vip = {"address": address, "port": 80, "protocol": "tcp", "pool": "web"}
    written = control.put("vips/web", vip)
    agent = bare_lab.start_agent("lb1")
    seen = status.wait_applied(written.revision)
    secret = etcdctl(bare_lab, "get", "--print-value-only", KEY)
    assert (len(secret), seed_in_force(pins)) == (32, secret)
    assert seen.status["warnings"] == []
    assert secret not in json.dumps(seen.status)
    assert secret not in agent.log.read_text("utf-8")

    etcdctl(bare_lab, "put", KEY, "a planned change")
    etcdctl(bare_lab, "put", "/tidegate/default/fleet", "{}")
    status.wait("changed", lambda s: s["generation"] > seen.status["generation"], timeout=20)
    assert seed_in_force(pins) == "a planned change"
    assert agent.terminate() == 0
    etcdctl(bare_lab, "del", KEY)
    bare_lab.start_agent("lb1")
    status.wait_applied(control.put("pools/web", {"mtu": 1400}).revision)
    assert etcdctl(bare_lab, "get", "--print-value-only", KEY) == "a planned change"
    assert seed_in_force(pins) == "a planned change"


def test_a_fleet_on_the_old_seed_is_warned(bare_lab: Lab, status: StatusWatch) -> None:
    """It keeps the fleet's name, says so in its status, and stays synced."""
    etcdctl(bare_lab, "put", KEY, "default")
    written = Control(bare_lab).put("pools/web", {})
    bare_lab.start_agent("lb1")
    seen = status.wait_applied(written.revision)
    assert seed_in_force(bare_lab.spec.pin_dir("lb1")) is None
    assert any("hash is the fleet's name" in each for each in seen.status["warnings"])
    assert seen.status["state"] == "synced"
