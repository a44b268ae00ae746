# SPDX-License-Identifier: Apache-2.0
"""Rollouts over three real agents, with clients whose connections must not notice."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

from tidegate.lab.control import StatusWatch
from tidegate.lab.plan import CONTROL
from tidegate.lab.rack import Lab

if TYPE_CHECKING:
    from tidegate.lab.agents import AgentProcess

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=3, lbs=3)]

FLEET = "/tidegate/default/"
HOSTS = ("lb1", "lb2", "lb3")
COMMAND = (sys.executable, "-m", "tidegate.cli.main", "rollout")
START = ("start", "r2", "--waves", "canary,2,100%", "--timeout", "30s", "--bake")


@pytest.fixture
def canary_lab(bare_lab: Lab) -> Lab:
    """Give a lab with three LB hosts, of which lb2 is on the track canary, and a release."""
    release(bare_lab, "live", {"b1": 100, "b2": 100, "b3": 100})
    put(bare_lab, "tracks/canary", {"release": "live"})
    put(bare_lab, "hosts/lb2", {"track": "canary", "reason": "trial host"})
    return bare_lab


@pytest.fixture(autouse=True)
def agents(canary_lab: Lab) -> "dict[str, AgentProcess]":
    """Give an agent on each, in sync."""
    started = {host: canary_lab.start_agent(host) for host in HOSTS}
    for host in HOSTS:
        with StatusWatch(canary_lab, host) as watch:
            watch.wait("synced", lambda s: s["state"] == "synced" and s["generation"] >= 1, 40)
    return started


def await_status(lab: Lab, host: str) -> None:
    """Wait until a host's latest status says that it is back on `live`."""
    deadline = time.monotonic() + 20
    while (s := status(lab, host))["generation_release"] != "live" or s["state"] != "synced":
        assert time.monotonic() < deadline, s
        time.sleep(0.1)


def put(lab: Lab, key: str, document: Mapping[str, object]) -> None:
    lab.etcdctl("put", FLEET + key, json.dumps(document))


def release(lab: Lab, name: str, weights: Mapping[str, int]) -> None:
    """A release with one pool of some backends, and one VIP."""
    put(lab, f"config/{name}/pools/web", {"transition_window": 5, "deregistration_delay": 5})
    for backend, weight in weights.items():
        document = {"address": str(lab.address(backend)), "weight": weight}
        put(lab, f"config/{name}/pools/web/backends/{backend}", document)
    vip = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    put(lab, f"config/{name}/vips/web", vip)


def everything(lab: Lab) -> str:
    """Return all keys of hosts and tracks, as they are."""
    return "".join(
        lab.etcdctl("get", "--prefix", f"{FLEET}{part}/") for part in ("hosts", "tracks")
    )


def status(lab: Lab, host: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        lab.etcdctl("get", "--print-value-only", f"{FLEET}status/{host}")
    )
    return found


def run(lab: Lab, *arguments: str) -> tuple[int, str]:
    done = lab.node(CONTROL).run([*COMMAND, *arguments], check=False)
    return done.returncode, done.stdout + done.stderr


def answered(lab: Lab) -> str:
    command = ["curl", "--silent", "--show-error", "--max-time", "3", f"http://{lab.vip4()}/"]
    return lab.client(1).run(command).stdout.strip()


def test_a_release_reaches_all_hosts_and_a_download_goes_on(canary_lab: Lab) -> None:
    """Every host has it in force with one digest; a connection from before is not broken."""
    release(canary_lab, "r2", {"b1": 10, "b2": 100, "b3": 100})
    url = f"http://{canary_lab.vip4()}/download"
    command = ["curl", "--silent", "--fail", "--max-time", "300", "--output", "/dev/null", url]
    with canary_lab.client(1).popen(command, stdout=subprocess.PIPE, text=True) as download:
        before = everything(canary_lab)
        code, said = run(canary_lab, *START, "2s")
        assert code == 0, said
        assert re.search(r"wave 1 of 3 \(canary\): moved lb2\n", said)
        assert re.search(r"wave 2 of 3 \(2\): moved lb1\n", said)
        assert re.search(r"wave 3 of 3 \(100%\): moved lb3\n", said)
        assert download.poll() is None, "the download ended; it was to take two minutes"
        download.kill()
    after = everything(canary_lab)
    assert after.replace('{"release":"r2"}', '{"release": "live"}').startswith(before)
    statuses = [status(canary_lab, host) for host in HOSTS]
    assert {s["generation_release"] for s in statuses} == {"r2"}
    assert len({s["digest"] for s in statuses}) == 1
    assert answered(canary_lab) in {"b1", "b2", "b3"}


def test_a_refusal_in_the_canary_wave_puts_it_back(canary_lab: Lab) -> None:
    """A release that the guards refuse reaches one host, which goes on as before."""
    release(canary_lab, "r2", {})
    before = everything(canary_lab)
    code, said = run(canary_lab, *START, "2s")
    assert code == 5
    assert "failed: lb2 refuses" in said
    assert everything(canary_lab) == before
    for host in HOSTS:
        await_status(canary_lab, host)
    assert answered(canary_lab) in {"b1", "b2", "b3"}


def test_a_killed_driver_and_a_killed_agent(
    canary_lab: Lab, agents: "dict[str, AgentProcess]"
) -> None:
    """Another driver goes on; an agent that is started again within a moment is no failure."""
    release(canary_lab, "r2", {"b1": 10, "b2": 100, "b3": 100})
    first = canary_lab.node(CONTROL).popen(
        [*COMMAND, *START, "2s"], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    for line in first.stdout:
        if "wave 2 of 3 (2): moved" in line:
            break
    first.send_signal(signal.SIGKILL)
    first.communicate()
    agents["lb2"].kill()
    agents["lb2"].restart()
    code, said = run(canary_lab, "resume")
    assert code == 0, said
    assert {status(canary_lab, host)["generation_release"] for host in HOSTS} == {"r2"}


def test_an_abort_in_the_middle(canary_lab: Lab) -> None:
    """Two of three hosts have the release; afterwards none has, and all keys are as they were."""
    release(canary_lab, "r2", {"b1": 10, "b2": 100, "b3": 100})
    before = everything(canary_lab)
    first = canary_lab.node(CONTROL).popen(
        [*COMMAND, *START, "1s"], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    for line in first.stdout:
        if "wave 2 of 3 (2): moved" in line:
            break
    code, said = run(canary_lab, "abort")
    assert code == 0, said
    first.communicate(timeout=30)
    assert first.returncode == 6
    assert everything(canary_lab) == before
    for host in HOSTS:
        with StatusWatch(canary_lab, host) as watch:
            watch.wait(
                "live again", lambda s: s["release"] == "live" and s["state"] == "synced", 20
            )


def test_drops_on_the_canary_put_it_back(canary_lab: Lab) -> None:
    """A release that every agent accepts, and that drops what the other hosts forward."""
    release(canary_lab, "r2", {"b1": 100, "b2": 100, "b3": 100})
    vip = {"address": str(canary_lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    put(canary_lab, "config/r2/vips/web", {**vip, "deny": [f"{canary_lab.address('client1')}/32"]})
    before = everything(canary_lab)
    # Every packet of a flow takes one of the three hosts; new flows all the time reach each.
    fetch = f"curl --silent --max-time 1 --output /dev/null http://{canary_lab.vip4()}/"
    loop = f"while :; do {fetch}; done"
    clients = [
        canary_lab.client(1).popen(["sh", "-c", loop], stdout=subprocess.DEVNULL, text=True)
        for _ in range(6)
    ]
    try:
        code, said = run(canary_lab, *START, "40s", "--abort-on", "nack,drops=5%")
    finally:
        for client in clients:
            client.kill()
            client.wait()
    assert code == 5, said
    assert re.search(r"failed: lb2 has drops of [0-9.]+% of its packets", said)
    assert everything(canary_lab) == before
