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


def service(lab: Lab, control: Control) -> int:
    """Write a VIP with one backend; return the revision."""
    control.put("pools/web", {})
    control.put("pools/web/backends/b1", {"address": str(lab.address("b1"))})
    vip = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    return int(control.put("vips/web", vip).revision)


def test_a_new_fleet_hashes_with_a_secret(bare_lab: Lab, status: StatusWatch) -> None:
    """The first generation has it; a put changes it in one change, and a restart keeps it."""
    control, pins = Control(bare_lab), bare_lab.spec.pin_dir("lb1")
    written = service(bare_lab, control)
    agent = bare_lab.start_agent("lb1")
    seen = status.wait_applied(written)
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


def test_an_upgraded_fleet_keeps_its_seed(bare_lab: Lab, status: StatusWatch) -> None:
    """It was the fleet's name: that is written, warned of, and stays in force."""
    etcdctl(bare_lab, "put", KEY, "default")  # as an agent hashes that knows of no such key
    control, pins = Control(bare_lab), bare_lab.spec.pin_dir("lb1")
    written = service(bare_lab, control)
    agent = bare_lab.start_agent("lb1")
    before = status.wait_applied(written)
    assert agent.terminate() == 0
    etcdctl(bare_lab, "del", KEY)
    bare_lab.start_agent("lb1")
    revision = control.put("pools/web", {"transition_window": 60}).revision
    status.wait_applied(revision)
    assert etcdctl(bare_lab, "get", "--print-value-only", KEY) == "default"
    assert seed_in_force(pins) is None
    assert any("hash is the fleet's name" in each for each in before.status["warnings"])
    assert before.status["state"] == "synced"
