# SPDX-License-Identifier: Apache-2.0
"""A dead backend stays out whatever becomes of etcd, of clocks, and of what others write.

Two load balancers, whose verdicts count with those of hosts of which there are the verdicts alone.
New flows are begun all the while, a hundred a second, and counted by who answers. Only b1's check
fails; what answers these flows on b1 runs on, so one answer of b1 is one moment in which it is in.
"""

import json
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.clock.wall_clock import WallClock
from support.lab.checked_lab import VERDICTS, CheckedLab, Status, build_lab, web
from support.lab.long_flows import Newcomers
from tidegate.keyspace.status.document import rfc3339
from tidegate.lab import services
from tidegate.lab.plan import CONTROL

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

ALL = ("b1", "b2", "b3", "b4")
CHECK = {"type": "http", "interval": 0.3, "timeout": 0.25, "rise": 2, "fall": 2}
HEALTH = {"check": CHECK, "hold_down": 0, "panic_percent": 30}
QUICK = """\
idle_probe = 0.5
silence_limit = 1
stale_after = 1.5
call_timeout = 1
backoff_max = 0.5
status_ttl = 3
"""
OWN = "lb1/web/b1"


@pytest.fixture(scope="module")
def checked_lab() -> Iterator[CheckedLab]:
    size = {"backends": len(ALL), "lbs": 2}
    with build_lab(size, {"web": {"health": HEALTH}}, web, {}, QUICK) as found:
        found.wait_for_states({"healthy": 8})
        yield found


@contextmanager
def b1_dead(checked_lab: CheckedLab) -> Iterator[Newcomers]:
    """Have b1's check fail, and both hosts take it out; in the end it is back."""
    with Newcomers(checked_lab.lab) as newcomers:
        checked_lab.lab.stop_http("b1")
        try:
            checked_lab.unhealthy(1)
            newcomers.gone("b1")
            yield newcomers
        finally:
            checked_lab.lab.start_http("b1")
        checked_lab.unhealthy(0)
        checked_lab.wait_for_states({"healthy": 8})
        checked_lab.synced()


def assert_stays_out(newcomers: Newcomers, since: float) -> None:
    """No flow that began since then was answered by b1, nor any of the next few hundred."""
    newcomers.wait_for_more(400)
    assert newcomers.since(since).keys() == {"b2", "b3", "b4"}, newcomers.since(since)


def save(checked_lab: CheckedLab, snapshot: Path) -> None:
    """Make a backup of the store."""
    command = ["etcdctl", "--endpoints=127.0.0.1:2379", "snapshot", "save", str(snapshot)]
    checked_lab.lab.node(CONTROL).run(command)


def kill_etcd(checked_lab: CheckedLab) -> None:
    checked_lab.lab.etcds[CONTROL].kill()
    checked_lab.lab.etcds[CONTROL].wait(10)


def start_etcd(checked_lab: CheckedLab) -> None:
    checked_lab.lab.start_etcd()
    checked_lab.lab.wait_for_etcd()


def restore(checked_lab: CheckedLab, snapshot: Path) -> None:
    """Make a new store of a backup, in place of the one that was killed."""
    lab = checked_lab.lab
    data = lab.folder(CONTROL) / "etcd"
    shutil.rmtree(data)
    peers = services.etcd_peers([lab.station(CONTROL)])
    name, _, peer = peers.partition("=")
    command = ["etcdctl", "snapshot", "restore", str(snapshot), "--data-dir", str(data)]
    command += ["--name", name, "--initial-cluster", peers, "--initial-advertise-peer-urls", peer]
    lab.node(CONTROL).run([*command, "--initial-cluster-token", secrets.token_hex(4)])
    start_etcd(checked_lab)


@pytest.mark.parametrize("flows_away", [0, 400], ids=["briefly", "for a while"])
def test_a_restored_store_brings_no_dead_backend_back(
    checked_lab: CheckedLab, tmp_path: Path, flows_away: int
) -> None:
    """Its verdicts are from when b1 was alive; b1 gets nothing until its own check passes."""
    save(checked_lab, tmp_path / "old.db")
    with b1_dead(checked_lab) as newcomers:
        out = time.monotonic()
        kill_etcd(checked_lab)
        newcomers.wait_for_more(max(flows_away, 1))  # longer than until a host is alone, or not
        restore(checked_lab, tmp_path / "old.db")
        checked_lab.wait_for_states({"healthy": 6, "unhealthy": 2})
        assert_stays_out(newcomers, out)


def test_an_emptied_store_brings_nobody_back(checked_lab: CheckedLab, tmp_path: Path) -> None:
    """Neither while there is nothing at all in it, nor when the backup is found at last."""
    save(checked_lab, tmp_path / "old.db")
    with b1_dead(checked_lab) as newcomers:
        out = time.monotonic()
        kill_etcd(checked_lab)
        shutil.rmtree(checked_lab.lab.folder(CONTROL) / "etcd")
        start_etcd(checked_lab)
        checked_lab.wait_for_states({"healthy": 6, "unhealthy": 2})
        assert_stays_out(newcomers, out)
        kill_etcd(checked_lab)
        restore(checked_lab, tmp_path / "old.db")
        checked_lab.wait_for_states({"healthy": 6, "unhealthy": 2})
        assert_stays_out(newcomers, out)


def test_etcd_that_is_away_for_a_moment_brings_nobody_back(checked_lab: CheckedLab) -> None:
    """Killed and started on its data, again and again."""
    with b1_dead(checked_lab) as newcomers:
        out = time.monotonic()
        for _ in range(3):
            kill_etcd(checked_lab)
            newcomers.wait_for_more(50)
            start_etcd(checked_lab)
        checked_lab.wait_for_states({"healthy": 6, "unhealthy": 2})
        assert_stays_out(newcomers, out)


def verdict(checked_lab: CheckedLab, host: str, state: str, ahead: int) -> None:
    """Write a host's verdict on b1, as one does whose clock is so many seconds ahead."""
    words = {"state": state, "code": "external", "since": rfc3339(int(time.time()) + ahead)}
    checked_lab.lab.etcdctl("put", f"{VERDICTS}{host}/web/b1", json.dumps(words))


@pytest.mark.parametrize("ahead", [3600, -3600], ids=["ahead", "behind"])
def test_foreign_clocks_keep_no_dead_backend_in(checked_lab: CheckedLab, ahead: int) -> None:
    """Two of four hosts have clocks that are wrong by an hour: b1 is out, and stays out."""
    lab = checked_lab.lab
    try:
        for host in ("lb8", "lb9"):
            verdict(checked_lab, host, "unhealthy", ahead)
        with b1_dead(checked_lab) as newcomers:
            out = time.monotonic()
            for host in ("lb8", "lb9"):
                verdict(checked_lab, host, "unhealthy", ahead)
            assert_stays_out(newcomers, out)
            for host in ("lb8", "lb9"):
                lab.etcdctl("del", f"{VERDICTS}{host}/web/b1")
    finally:
        lab.etcdctl("del", "--prefix", f"{VERDICTS}lb8/")
        lab.etcdctl("del", "--prefix", f"{VERDICTS}lb9/")


def test_a_step_of_the_own_clock_brings_nobody_back(
    checked_lab: CheckedLab, tmp_path: Path
) -> None:
    """An hour back and an hour ahead on one host, while b1 is dead."""
    clock = WallClock(tmp_path)
    agent, (watched, _) = checked_lab.lab.agents["lb1"], checked_lab.statuses
    before = watched.current()["started_at"]
    agent.terminate()
    command = [sys.executable, "-m", "tidegate.cli.main", "agent", "run", "-c", str(agent.config)]
    agent.process = agent.node.daemon(command, agent.log, clock.environment)
    watched.wait(
        "another agent", lambda s: s["started_at"] != before and s["state"] == "synced", timeout=60
    )
    checked_lab.wait_for_states({"healthy": 8})
    with b1_dead(checked_lab) as newcomers:
        out = time.monotonic()
        for seconds in (-3600, 3600, 0):
            clock.set_ahead(seconds)
            newcomers.wait_for_more(600)  # longer than a third of a lease, in which turns come
        assert_stays_out(newcomers, out)


def own(checked_lab: CheckedLab) -> str:
    """Return what lb1's verdict on b1 says."""
    return str(checked_lab.verdicts().get(OWN, {}).get("state", "none"))


OVERWRITE: dict[str, Callable[[CheckedLab], object]] = {
    "overwritten": lambda lab: verdict(lab, "lb1", "healthy", 0),
    "deleted": lambda lab: lab.lab.etcdctl("del", f"{VERDICTS}{OWN}"),
    "junk": lambda lab: lab.lab.etcdctl("put", f"{VERDICTS}{OWN}", "junk"),
}


@pytest.mark.parametrize("how", OVERWRITE)
def test_an_own_verdict_of_somebody_else_is_put_right(checked_lab: CheckedLab, how: str) -> None:
    """The host goes by its own probes, writes the key anew, and says what was done to it."""
    watched = checked_lab.statuses[0]
    with b1_dead(checked_lab) as newcomers:
        out = time.monotonic()
        before = watched.current()["health"]["overwritten"]
        OVERWRITE[how](checked_lab)

        def is_said(status: Status) -> bool:
            named = any("this host's verdicts" in each for each in status["warnings"])
            return bool(named and status["health"]["overwritten"] > before)

        watched.wait("the warning", is_said, timeout=60)
        deadline = time.monotonic() + 60
        while own(checked_lab) != "unhealthy":
            assert time.monotonic() < deadline
            time.sleep(0.1)  # etcd is asked, as a person would
        newcomers.wait_for_more(400)
        # The other host believes what it reads, so for a moment the vote is one to one there.
        assert newcomers.since(out).total() >= 400
        newcomers.gone("b1")


def test_unreadable_verdicts_are_named(checked_lab: CheckedLab) -> None:
    """By their keys in every host's status, which stays synced; those of others count."""
    lab = checked_lab.lab
    keys = {"lb9/web/b2": "{", "lb9/web/b3": '{"code": 5}', "lb9/@confirmed": "[]"}
    try:
        for key, value in keys.items():
            lab.etcdctl("put", f"{VERDICTS}{key}", value)
        named = {f"health/{key}" for key in keys}
        checked_lab.wait("names", lambda s: {each["key"] for each in s["refusals"]} == named)
        assert checked_lab.statuses[0].current()["health"]["unreadable"] == len(keys)
        checked_lab.synced()
        with b1_dead(checked_lab):
            pass
    finally:
        lab.etcdctl("del", "--prefix", f"{VERDICTS}lb9/")
    checked_lab.wait("no names", lambda s: not s["refusals"])
