# SPDX-License-Identifier: Apache-2.0
"""Tracks, releases and freezes on a real agent: which generations come into force, and when."""

import json
import os
import re
import signal
import time
from collections.abc import Mapping

import pytest

from support.etcd.in_lab import etcd_pid
from tidegate.keyspace.status.document import rfc3339
from tidegate.lab.agents import AgentProcess
from tidegate.lab.control import StatusWatch
from tidegate.lab.plan import CONTROL
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=3)]

FLEET = "/tidegate/default/"
STABLE, CANARY, HOST = "tracks/stable", "tracks/canary", "hosts/lb1"
WINDOW = 3


@pytest.fixture
def agent(bare_lab: Lab, status: StatusWatch) -> AgentProcess:
    """Give an agent that has release `live` in force."""
    put(bare_lab, *release(bare_lab, "live", 100))
    started = bare_lab.start_agent("lb1")
    status.wait("synced", lambda s: s["state"] == "synced" and s["generation"] == 1, timeout=20)
    return started


def put(lab: Lab, *pairs: tuple[str, object]) -> int:
    """Put documents, or texts as they are, in one transaction; return its revision."""
    operations = []
    for key, document in pairs:
        text = document if isinstance(document, str) else json.dumps(document)
        operations.append(f"put {FLEET}{key} {json.dumps(text)}\n")
    command = ["etcdctl", "-w", "json", "txn"]
    answer = lab.node(CONTROL).run(command, text=f"\n{''.join(operations)}\n\n")
    return int(json.loads(answer.stdout)["header"]["revision"])


def release(lab: Lab, name: str, weight: int) -> list[tuple[str, Mapping[str, object]]]:
    """Return three backends, of which one has this weight, and two VIPs."""
    documents: dict[str, Mapping[str, object]] = {
        "pools/web": {"transition_window": WINDOW, "deregistration_delay": 3}
    }
    for backend in ("b1", "b2", "b3"):
        documents[f"pools/web/backends/{backend}"] = {
            "address": str(lab.address(backend)),
            "weight": weight if backend == "b1" else 100,
        }
    for port in (80, 81):
        vip = {"address": str(lab.vip4()), "port": port, "protocol": "tcp", "pool": "web"}
        documents[f"vips/web{port}"] = vip
    return [(f"config/{name}/{key}", document) for key, document in documents.items()]


def answers(lab: Lab) -> bool:
    """Return whether the VIP serves a client."""
    command = ["curl", "--silent", "--show-error", "--max-time", "3", f"http://{lab.vip4()}/"]
    return bool(lab.client(1).run(command).stdout.strip())


def generations(agent: AgentProcess) -> list[tuple[int, str, str]]:
    """Number, release and digest of every generation that came into force, by the agent's log."""
    found = re.findall(
        r"generation number=(\d+) release=(\S+) revision=\d+ digest=(\S+) ", agent.log.read_text()
    )
    return [(int(number), name, digest) for number, name, digest in found]


def without_repetitions(found: list[tuple[int, str, str]]) -> list[tuple[str, str]]:
    """Releases and digests; a window that closed makes a generation of the same content."""
    kept: list[tuple[str, str]] = []
    for _, name, digest in found:
        if kept[-1:] != [(name, digest)]:
            kept.append((name, digest))
    return kept


def test_a_flip_is_one_generation_and_so_is_the_flip_back(
    bare_lab: Lab, agent: AgentProcess, status: StatusWatch
) -> None:
    """Not one generation has a part of a release; the same release gives the same digest."""
    for pair in release(bare_lab, "r2", 10):
        put(bare_lab, pair)
    for name, change in (
        ("r2", [(STABLE, {"release": "r2"})]),
        ("live", [(STABLE, {"release": "live"})]),
        ("r3", [*release(bare_lab, "r3", 1000), (STABLE, {"release": "r3"})]),
    ):
        revision = put(bare_lab, *change)
        seen = status.wait_applied(revision).status
        assert (seen["release"], seen["generation_release"]) == (name, name)
        assert (seen["track"], seen["state"]) == ("stable", "synced")
        assert answers(bare_lab)
    (live, r2, again, r3) = without_repetitions(generations(agent))
    assert [name for name, _ in (live, r2, again, r3)] == ["live", "r2", "live", "r3"]
    assert live == again
    assert len({live, r2, r3}) == 3


def test_a_frozen_host_looks_on_while_time_goes_on(
    bare_lab: Lab, agent: AgentProcess, status: StatusWatch
) -> None:
    """Changes are seen and refused by name, not published; windows close; the thaw publishes."""
    put(bare_lab, *release(bare_lab, "r2", 10), (CANARY, {"release": "r2"}))
    moved = status.wait_applied(put(bare_lab, (HOST, {"track": "canary"}))).status
    assert (moved["track"], moved["generation_release"]) == ("canary", "r2")
    frozen = {"track": "canary", "freeze": True, "reason": "look"}
    put(bare_lab, (HOST, frozen))
    seen = status.wait("frozen", lambda s: s["state"] == "frozen").status
    assert seen["freeze"] == seen["reason"] == "hosts/lb1 freezes this host: look"
    # The window that the move opened closes, which is a generation that no document asked for.
    status.wait("a closed window", lambda s: s["generation"] > moved["generation"])
    changed = put(bare_lab, *release(bare_lab, "r2", 500), ("config/r2/vips/bad", {"port": 1}))
    seen = status.wait("the change", lambda s: s["revision"] >= changed).status
    assert seen["state"] == "frozen"
    assert "vips/bad" in {refusal["key"] for refusal in seen["refusals"]}
    assert (seen["digest"], seen["generation_revision"]) == (
        moved["digest"],
        moved["generation_revision"],
    )
    put(bare_lab, ("fleet", {"freeze": True}))
    status.wait("both", lambda s: "; fleet freezes all" in s["freeze"])
    put(bare_lab, (HOST, {"track": "canary"}))
    status.wait("one", lambda s: s["freeze"] == "fleet freezes all" and s["state"] == "frozen")
    put(bare_lab, ("fleet", {}))
    seen = status.wait("the thaw", lambda s: s["generation_revision"] >= changed).status
    assert (seen["freeze"], seen["state"]) == ("", "degraded")
    assert seen["digest"] != moved["digest"]


def test_a_new_host_in_a_frozen_fleet_takes_what_there_is_once(
    bare_lab: Lab, status: StatusWatch
) -> None:
    """A host that was rebooted during a freeze serves its share, and then keeps what it has."""
    put(bare_lab, *release(bare_lab, "live", 100), ("fleet", {"freeze": True}))
    bare_lab.start_agent("lb1")
    first = status.wait("frozen", lambda s: s["state"] == "frozen", timeout=20).status
    assert first["generation"] == 1
    assert answers(bare_lab)
    changed = put(bare_lab, *release(bare_lab, "live", 500))
    seen = status.wait("the change", lambda s: s["revision"] >= changed).status
    assert (seen["generation"], seen["digest"]) == (1, first["digest"])


def test_a_refusal_says_the_key_that_lifts_it(
    bare_lab: Lab, agent: AgentProcess, status: StatusWatch
) -> None:
    """With a time to come it lets the change in at once; with one that is over it does not."""
    before = status.current()["generation"]
    drain = {
        f"config/live/pools/web/backends/{name}": {
            "address": str(bare_lab.address(name)),
            "state": "drain",
        }
        for name in ("b1", "b2")
    }
    revision = put(bare_lab, *drain.items())
    seen = status.wait("the guard", lambda s: any(r["stage"] == "guard" for r in s["refusals"]))
    (reason,) = (r["reason"] for r in seen.status["refusals"])
    key, document = re.findall(r"put (overrides/\S+) with (\{.*\})", reason)[0]
    old = json.loads(document) | {"expires_at": rfc3339(time.time() - 1)}
    put(bare_lab, (key, old))
    late = put(bare_lab, ("fleet", {"reason": "nothing but a later revision"}))
    seen = status.wait("the next look", lambda s: s["revision"] >= late)
    assert seen.status["generation"] == before
    put(bare_lab, (key, old | {"expires_at": rfc3339(time.time() + 60)}))
    seen = status.wait("the change", lambda s: s["generation_revision"] >= revision)
    assert (seen.status["generation"], seen.status["refusals"]) == (before + 1, [])
    assert answers(bare_lab)


def test_an_override_is_reported_until_it_expires(
    bare_lab: Lab, agent: AgentProcess, status: StatusWatch
) -> None:
    """Nobody has to write anything for the guard to hold again, and for the status to say so."""
    expiry = rfc3339(int(time.time()) + 5)
    put(bare_lab, ("overrides/o", {"guard": "removal", "pool": "web", "expires_at": expiry}))
    seen = status.wait("the override", lambda s: bool(s["overrides"])).status
    assert seen["overrides"] == [
        {"name": "o", "guard": "removal", "pool": "web", "expires_at": expiry}
    ]
    gone = status.wait("its end", lambda s: not s["overrides"], timeout=20).status
    assert gone["revision"] == seen["revision"]


def test_a_bad_pointer_changes_nothing_in_force(
    bare_lab: Lab, agent: AgentProcess, status: StatusWatch
) -> None:
    """A broken one, one to nothing and a deleted one are refused by key; all can be mended."""
    applied = status.wait_applied(
        put(bare_lab, *release(bare_lab, "r2", 10), (STABLE, {"release": "r2"}))
    ).status
    put(bare_lab, (STABLE, "{broken"))
    seen = status.wait("the broken one", lambda s: keys(s) == {STABLE}).status
    assert (seen["release"], seen["digest"]) == ("r2", applied["digest"])
    put(bare_lab, (STABLE, {"release": "r2-typo"}))
    seen = status.wait("the typo", lambda s: s["release"] == "r2-typo").status
    assert "guard" in {refusal["stage"] for refusal in seen["refusals"]}
    assert STABLE in keys(seen)
    assert (seen["generation_release"], seen["digest"]) == ("r2", applied["digest"])
    put(bare_lab, (STABLE, {"release": "r2"}))
    status.wait("the mended one", lambda s: s["state"] == "synced")
    bare_lab.etcdctl("del", FLEET + STABLE)
    seen = status.wait("the deleted one", lambda s: keys(s) == {STABLE}).status
    assert (seen["release"], seen["digest"]) == ("r2", applied["digest"])
    assert answers(bare_lab)


def keys(seen: Mapping[str, list[dict[str, str]]]) -> set[str]:
    return {refusal["key"] for refusal in seen["refusals"]}


def test_a_restart_without_etcd_keeps_the_release(
    bare_lab: Lab, agent: AgentProcess, status: StatusWatch
) -> None:
    """The ledger names it; with etcd back and its pointer broken the host is still on it."""
    put(bare_lab, *release(bare_lab, "r2", 10))
    applied = status.wait_applied(put(bare_lab, (STABLE, {"release": "r2"}))).status
    put(bare_lab, (STABLE, "{broken"))
    status.wait("the broken pointer", lambda s: keys(s) == {STABLE})
    etcd = etcd_pid(bare_lab)
    agent.kill()
    os.kill(etcd, signal.SIGSTOP)
    try:
        agent.restart()
        assert answers(bare_lab)
    finally:
        os.kill(etcd, signal.SIGCONT)
    seen = status.wait(
        "a new start",
        lambda s: s["started_at"] != applied["started_at"] and s["state"] == "degraded",
        timeout=30,
    ).status
    assert keys(seen) == {STABLE}
    assert (seen["track"], seen["release"], seen["generation_release"]) == ("stable", "r2", "r2")
    assert seen["digest"] == applied["digest"]
    assert re.findall(r"event=start .* release=(\S+) ", agent.log.read_text()) == ["live", "r2"]
    change = put(bare_lab, ("config/r2/pools/web/backends/b2", backend(bare_lab, "b2")))
    status.wait("a change", lambda s: s["generation_revision"] >= change)


def backend(lab: Lab, name: str) -> dict[str, object]:
    return {"address": str(lab.address(name)), "weight": 7}
