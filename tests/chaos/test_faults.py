# SPDX-License-Identifier: Apache-2.0
"""What may happen to a store and an agent while clients are being served, one fault after another.

One rack serves them all, with downloads that are open from before the first fault. What has to hold
after each is in `Rig.settle`.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from support.lab.cluster_rack import HOST, MEMBERS, Rig, backup, is_in_force
from tidegate.lab import netns, services
from tidegate.lab.agents import config_path
from tidegate.lab.plan import ROUTER, LabSpec
from tidegate.lab.rack import Lab
from tidegate.lab.roster import BACKENDS, POOL4, SPARE
from tidegate.lab.traffic import Traffic

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

LEASE = 4
"""Seconds for which a dead host's status remains."""
DOWNLOADS = 5
"""Per client and VIP."""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    spec = LabSpec(name=f"c{secrets.token_hex(4)}", backends=BACKENDS, etcd_members=len(MEMBERS))
    with Lab(spec) as lab:
        config = config_path(spec, HOST)
        text = config.read_text()
        config.write_text(text.replace("[etcd]", f"[etcd]\nstatus_ttl = {LEASE}"))
        rig = Rig(lab)
        revision = rig.roster.write_first().revision
        lab.start_agent(HOST)
        rig.wait(
            "a first generation", lambda s: bool(s and s["generation_revision"] >= revision), 40
        )
        targets = list(rig.roster.targets.values())
        with Traffic(lab, targets, rate=40, dwell=0.7, downloads=DOWNLOADS, seconds=900) as traffic:
            wanted = 2 * len(targets) * DOWNLOADS
            traffic.wait(lambda t: t.downloads >= wanted, 20, f"{wanted} open downloads")
            rig.watch_clients(traffic)
            yield rig


@contextmanager
def agent_cut_off(rig: Rig) -> Iterator[None]:
    """The router swallows every packet from the agent to etcd, which looks like silence."""
    rule = ["iif", rig.lab.station(HOST).uplink, "to", "10.77.0.0/21", "blackhole"]
    with netns.entered(rig.lab.node(ROUTER).namespace):
        subprocess.run(["ip", "rule", "add", *rule], check=True)
    try:
        yield
    finally:
        with netns.entered(rig.lab.node(ROUTER).namespace):
            subprocess.run(["ip", "rule", "del", *rule], check=True)


def test_a_calm_sea(rig: Rig) -> None:
    """Without any fault a roster that never rests ends as a fresh agent has it."""
    with rig.churn() as churn:
        churn.wait_for_more(20)
    rig.settle()


def test_members_of_etcd_die_and_return(rig: Rig) -> None:
    """SIGKILL for the leader, and then for another: changes go on while each is away."""
    first = rig.leader()
    with rig.churn() as churn:
        rig.kill_etcd(first)
        churn.wait_for_more()
        rig.start_etcd(first)
        second = next(name for name in MEMBERS if name != first)
        rig.kill_etcd(second)
        churn.wait_for_more()
        rig.start_etcd(second)
    rig.settle()


def test_the_leader_freezes(rig: Rig) -> None:
    """SIGSTOP: its connections stay open, nobody answers, and another leads meanwhile."""
    leader = rig.lab.etcds[rig.leader()]
    os.kill(leader.pid, signal.SIGSTOP)
    try:
        with rig.churn() as churn:
            churn.wait_for_more()
        mark = rig.roster.change(POOL4, "b1", weight=55).revision
        rig.wait("changes", lambda s: bool(s and is_in_force(s, mark)))
    finally:
        os.kill(leader.pid, signal.SIGCONT)
    rig.settle()


def test_the_leader_is_cut_off(rig: Rig) -> None:
    """A member without a quorum is left for one that has it."""
    leader = MEMBERS[1]  # the control system is on the first one's node
    rig.lead(leader)
    with rig.churn() as churn:
        rig.lab.set_link(leader, up=False)
        try:
            churn.wait_for_more()
        finally:
            rig.lab.set_link(leader, up=True)
        churn.wait_for_more()
    rig.settle()


def test_the_agent_is_cut_off(rig: Rig) -> None:
    """It forwards on what it has; its status goes with its lease, and returns with the network."""
    with rig.churn() as churn:
        with agent_cut_off(rig):
            churn.wait_for_more()
            rig.wait("nothing", lambda status: status is None)
            rig.ask_clients()
        churn.wait_for_more()
    rig.settle()


def test_history_is_compacted_while_the_agent_is_cut_off(rig: Rig) -> None:
    """A deletion that no stream can tell any more takes its backend out of the tables."""
    spare = rig.roster.change(POOL4, SPARE, address=rig.roster.address(SPARE, 4), weight=100)
    rig.wait("a spare", lambda s: bool(s and is_in_force(s, spare.revision)))
    with agent_cut_off(rig):
        rig.roster.control.delete(f"pools/{POOL4}/backends/{SPARE}")
        del rig.roster.documents[POOL4, SPARE]
        with rig.churn() as churn:
            churn.wait_for_more()
        mark = rig.roster.change(POOL4, "b1", weight=77)
        rig.lab.etcdctl("compact", str(mark.revision))
        rig.wait("nothing", lambda status: status is None)
    rig.settle()


def test_the_store_is_restored_from_an_old_snapshot(rig: Rig, tmp_path: Path) -> None:
    """The revision goes back: the agent goes on, reads everything anew, and says so in its log."""
    documents = {key: dict(document) for key, document in rig.roster.documents.items()}
    backup(rig, tmp_path / "backup.db")
    with rig.churn() as churn:
        churn.wait_for_more(15)
    mark = rig.roster.change(POOL4, "b1", weight=66).revision
    rig.wait("the end of it", lambda s: bool(s and is_in_force(s, mark)))
    rig.kill_etcd(*MEMBERS)
    restore(rig, tmp_path / "backup.db")
    rig.roster.documents = documents
    rig.wait("an older revision", lambda s: bool(s and s["generation_revision"] < mark))
    rig.settle()
    assert "etcd_history_changed " in rig.agent.log.read_text()


def restore(rig: Rig, snapshot: Path) -> None:
    """Make a new cluster of a snapshot, on the members' old places."""
    members = [rig.lab.station(name) for name in MEMBERS]
    for member in members:
        data = rig.lab.folder(member.name) / "etcd"
        shutil.rmtree(data)
        rig.lab.node(member.name).run(
            [
                *("etcdctl", "snapshot", "restore", str(snapshot), "--name", member.name),
                *("--initial-cluster", services.etcd_peers(members), "--data-dir", str(data)),
                *("--initial-advertise-peer-urls", services.etcd_peers([member]).split("=")[1]),
                *("--initial-cluster-token", "restored"),
            ]
        )
    rig.start_etcd(*MEMBERS)


def test_all_members_die_at_once(rig: Rig) -> None:
    """The agent forwards without a store, and follows it when it is back."""
    rig.kill_etcd(*MEMBERS)
    rig.ask_clients()
    rig.start_etcd(*MEMBERS)
    with rig.churn() as churn:
        churn.wait_for_more()
    rig.settle()


def test_the_agent_is_killed_again_and_again(rig: Rig) -> None:
    """SIGKILL at moments that no step of a publication is safe from; each start goes on."""
    with rig.churn() as churn:
        for delay in (0.0, 0.3, 0.0, 0.6, 0.1):
            rig.agent.kill()
            starts = rig.agent.log.read_text().count("start version")
            rig.agent.restart()
            wait_for_log(rig, "start version", starts + 1)
            churn.wait_for_more(2)
            time.sleep(delay)  # somewhere in the work of following the roster
    rig.settle()


def wait_for_log(rig: Rig, text: str, count: int = 1) -> None:
    """Wait until the agent has logged a text this often: all that it says without a status."""
    deadline = time.monotonic() + 30
    while rig.agent.log.read_text().count(text) < count:
        assert time.monotonic() < deadline, rig.agent.tail(20)
        time.sleep(0.02)


def test_a_lease_runs_out(rig: Rig) -> None:
    """A frozen agent's status vanishes; when it goes on, the status is there again."""
    os.kill(rig.agent.process.pid, signal.SIGSTOP)
    try:
        rig.wait("nothing", lambda status: status is None)
        rig.ask_clients()
        with rig.churn() as churn:
            churn.wait_for_more()
    finally:
        os.kill(rig.agent.process.pid, signal.SIGCONT)
    rig.settle()


def test_the_clock_jumps(rig: Rig, tmp_path: Path) -> None:
    """An hour forward, an hour back: changes are followed, and draining backends keep their flows.

    libfaketime gives this one process another wall clock; its monotonic clock is the machine's, as
    when NTP steps the time.
    """
    offset = tmp_path / "offset"
    set_clock(offset, 0)
    agent = rig.agent
    agent.terminate()
    command = [sys.executable, "-m", "tidegate.cli.main", "agent", "run", "-c", str(agent.config)]
    clock = {
        "LD_PRELOAD": "/usr/$LIB/faketime/libfaketimeMT.so.1",
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_CACHE_DURATION": "1",  # seconds
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    agent.process = agent.node.daemon(command, agent.log, clock)
    spare = rig.roster.change(POOL4, SPARE, address=rig.roster.address(SPARE, 4), weight=300)
    rig.wait("a spare", lambda s: bool(s and is_in_force(s, spare.revision)), 30)
    for seconds, step in ((3600, "stepped=+3600"), (0, "stepped=-3600")):
        with rig.churn() as churn:
            churn.wait_for_more()
            set_clock(offset, seconds)
            wait_for_log(rig, step)
            churn.wait_for_more()
        status = rig.settle()
        applied = datetime.fromisoformat(status["applied_at"])
        assert abs((applied - datetime.now(UTC)).total_seconds() - seconds) < 60


def set_clock(file: Path, seconds: int) -> None:
    """Change the offset in one step: the process looks at the file once a second."""
    fresh = file.with_suffix(".new")
    fresh.write_text(f"{seconds:+d}s\n")
    fresh.rename(file)
