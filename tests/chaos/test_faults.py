# SPDX-License-Identifier: Apache-2.0
"""What may happen to a store and an agent while clients are being served, one fault after another.

One lab serves them all, with downloads that are open from before the first fault. What has to hold
after each is in `ClusterLab.settle`.
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

from support.clock.wall_clock import WallClock
from support.lab.cluster_lab import HOST, MEMBERS, ClusterLab, backup, is_in_force
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
def cluster_lab() -> Iterator[ClusterLab]:
    spec = LabSpec(name=f"c{secrets.token_hex(4)}", backends=BACKENDS, etcd_members=len(MEMBERS))
    with Lab(spec) as lab:
        config = config_path(spec, HOST)
        text = config.read_text()
        config.write_text(text.replace("[etcd]", f"[etcd]\nstatus_ttl = {LEASE}"))
        cluster_lab = ClusterLab(lab)
        revision = cluster_lab.roster.write_first().revision
        lab.start_agent(HOST)
        cluster_lab.wait(
            "a first generation", lambda s: bool(s and s["generation_revision"] >= revision), 40
        )
        targets = list(cluster_lab.roster.targets.values())
        with Traffic(lab, targets, rate=40, dwell=0.7, downloads=DOWNLOADS, seconds=900) as traffic:
            wanted = 2 * len(targets) * DOWNLOADS
            traffic.wait(lambda t: t.downloads >= wanted, 20, f"{wanted} open downloads")
            cluster_lab.watch_clients(traffic)
            yield cluster_lab


@contextmanager
def agent_cut_off(cluster_lab: ClusterLab) -> Iterator[None]:
    """Have the router swallow every packet from the agent to etcd, which looks like silence."""
    rule = ["iif", cluster_lab.lab.station(HOST).uplink, "to", "10.77.0.0/21", "blackhole"]
    with netns.entered(cluster_lab.lab.node(ROUTER).namespace):
        subprocess.run(["ip", "rule", "add", *rule], check=True)
    try:
        yield
    finally:
        with netns.entered(cluster_lab.lab.node(ROUTER).namespace):
            subprocess.run(["ip", "rule", "del", *rule], check=True)


def test_a_calm_sea(cluster_lab: ClusterLab) -> None:
    """Without any fault a roster that never rests ends as a fresh agent has it."""
    with cluster_lab.churn() as churn:
        churn.wait_for_more(20)
    cluster_lab.settle()


def test_members_of_etcd_die_and_return(cluster_lab: ClusterLab) -> None:
    """SIGKILL for the leader, and then for another: changes go on while each is away."""
    first = cluster_lab.leader()
    with cluster_lab.churn() as churn:
        cluster_lab.kill_etcd(first)
        churn.wait_for_more()
        cluster_lab.start_etcd(first)
        second = next(name for name in MEMBERS if name != first)
        cluster_lab.kill_etcd(second)
        churn.wait_for_more()
        cluster_lab.start_etcd(second)
    cluster_lab.settle()


def test_the_leader_freezes(cluster_lab: ClusterLab) -> None:
    """SIGSTOP: its connections stay open, nobody answers, and another leads meanwhile."""
    leader = cluster_lab.lab.etcds[cluster_lab.leader()]
    os.kill(leader.pid, signal.SIGSTOP)
    try:
        with cluster_lab.churn() as churn:
            churn.wait_for_more()
        mark = cluster_lab.roster.change(POOL4, "b1", weight=55).revision
        cluster_lab.wait("changes", lambda s: bool(s and is_in_force(s, mark)))
    finally:
        os.kill(leader.pid, signal.SIGCONT)
    cluster_lab.settle()


def test_the_leader_is_cut_off(cluster_lab: ClusterLab) -> None:
    """A member without a quorum is left for one that has it."""
    leader = MEMBERS[1]  # the control system is on the first one's node
    cluster_lab.lead(leader)
    with cluster_lab.churn() as churn:
        cluster_lab.lab.set_link(leader, up=False)
        try:
            churn.wait_for_more()
        finally:
            cluster_lab.lab.set_link(leader, up=True)
        churn.wait_for_more()
    cluster_lab.settle()


def test_the_agent_is_cut_off(cluster_lab: ClusterLab) -> None:
    """It forwards on what it has; its status goes with its lease, and returns with the network."""
    with cluster_lab.churn() as churn:
        with agent_cut_off(cluster_lab):
            churn.wait_for_more()
            cluster_lab.wait("nothing", lambda status: status is None)
            cluster_lab.ask_clients()
        churn.wait_for_more()
    cluster_lab.settle()


def test_history_is_compacted_while_the_agent_is_cut_off(cluster_lab: ClusterLab) -> None:
    """A deletion that no stream can tell any more takes its backend out of the tables."""
    spare = cluster_lab.roster.change(
        POOL4, SPARE, address=cluster_lab.roster.address(SPARE, 4), weight=100
    )
    cluster_lab.wait("a spare", lambda s: bool(s and is_in_force(s, spare.revision)))
    with agent_cut_off(cluster_lab):
        cluster_lab.roster.control.delete(f"pools/{POOL4}/backends/{SPARE}")
        del cluster_lab.roster.documents[POOL4, SPARE]
        with cluster_lab.churn() as churn:
            churn.wait_for_more()
        mark = cluster_lab.roster.change(POOL4, "b1", weight=77)
        cluster_lab.lab.etcdctl("compact", str(mark.revision))
        cluster_lab.wait("nothing", lambda status: status is None)
    cluster_lab.settle()


def test_the_store_is_restored_from_an_old_snapshot(
    cluster_lab: ClusterLab, tmp_path: Path
) -> None:
    """The revision goes back: the agent goes on, reads everything anew, and says so in its log."""
    documents = {key: dict(document) for key, document in cluster_lab.roster.documents.items()}
    backup(cluster_lab, tmp_path / "backup.db")
    with cluster_lab.churn() as churn:
        churn.wait_for_more(15)
    mark = cluster_lab.roster.change(POOL4, "b1", weight=66).revision
    end = cluster_lab.wait("the end of it", lambda s: bool(s and is_in_force(s, mark)))
    cluster_lab.kill_etcd(*MEMBERS)
    restore(cluster_lab, tmp_path / "backup.db")
    cluster_lab.roster.documents = documents
    cluster_lab.wait(
        "an older revision, later",  # the status in the backup is older, but not later
        lambda s: bool(
            s and s["generation_revision"] < mark and s["applied_at"] > end["applied_at"]
        ),
    )
    cluster_lab.settle()
    assert "etcd_history_changed " in cluster_lab.agent.log.read_text()


def restore(cluster_lab: ClusterLab, snapshot: Path) -> None:
    """Make a new cluster of a snapshot, on the members' old places."""
    members = [cluster_lab.lab.station(name) for name in MEMBERS]
    for member in members:
        data = cluster_lab.lab.folder(member.name) / "etcd"
        shutil.rmtree(data)
        cluster_lab.lab.node(member.name).run(
            [
                "etcdctl",
                "snapshot",
                "restore",
                str(snapshot),
                "--name",
                member.name,
                "--initial-cluster",
                services.etcd_peers(members),
                "--data-dir",
                str(data),
                "--initial-advertise-peer-urls",
                services.etcd_peers([member]).split("=")[1],
                "--initial-cluster-token",
                "restored",
            ]
        )
    cluster_lab.start_etcd(*MEMBERS)


def test_all_members_die_at_once(cluster_lab: ClusterLab) -> None:
    """The agent forwards without a store, and follows it when it is back."""
    cluster_lab.kill_etcd(*MEMBERS)
    cluster_lab.ask_clients()
    cluster_lab.start_etcd(*MEMBERS)
    with cluster_lab.churn() as churn:
        churn.wait_for_more()
    cluster_lab.settle()


def test_the_agent_is_killed_again_and_again(cluster_lab: ClusterLab) -> None:
    """SIGKILL at moments that no step of a publication is safe from; each start goes on."""
    with cluster_lab.churn() as churn:
        for delay in (0.0, 0.3, 0.0, 0.6, 0.1):
            cluster_lab.agent.kill()
            starts = cluster_lab.agent.log.read_text().count("event=start ")
            cluster_lab.agent.restart()
            wait_for_log(cluster_lab, "event=start ", starts + 1)
            churn.wait_for_more(2)
            time.sleep(delay)  # somewhere in the work of following the roster
    cluster_lab.settle()


def wait_for_log(cluster_lab: ClusterLab, text: str, count: int = 1) -> None:
    """Wait until the agent has logged a text this often: all that it says without a status."""
    deadline = time.monotonic() + 30
    while cluster_lab.agent.log.read_text().count(text) < count:
        assert time.monotonic() < deadline, cluster_lab.agent.tail(20)
        time.sleep(0.02)


def test_a_lease_runs_out(cluster_lab: ClusterLab) -> None:
    """A frozen agent's status vanishes; when it goes on, the status is there again."""
    os.kill(cluster_lab.agent.process.pid, signal.SIGSTOP)
    try:
        cluster_lab.wait("nothing", lambda status: status is None)
        cluster_lab.ask_clients()
        with cluster_lab.churn() as churn:
            churn.wait_for_more()
    finally:
        os.kill(cluster_lab.agent.process.pid, signal.SIGCONT)
    cluster_lab.settle()


def test_the_clock_jumps(cluster_lab: ClusterLab, tmp_path: Path) -> None:
    """An hour forward, an hour back: changes are followed, and draining backends keep their flows.

    Only this one process has another wall clock; its monotonic clock is the machine's, as when NTP
    steps the time.
    """
    clock = WallClock(tmp_path)
    agent = cluster_lab.agent
    agent.terminate()
    command = [sys.executable, "-m", "tidegate.cli.main", "agent", "run", "-c", str(agent.config)]
    agent.process = agent.node.daemon(command, agent.log, clock.environment)
    spare = cluster_lab.roster.change(
        POOL4, SPARE, address=cluster_lab.roster.address(SPARE, 4), weight=300
    )
    cluster_lab.wait("a spare", lambda s: bool(s and is_in_force(s, spare.revision)), 30)
    for seconds, step in ((3600, "clock_stepped seconds=3600"), (0, "clock_stepped seconds=-3600")):
        with cluster_lab.churn() as churn:
            churn.wait_for_more()
            clock.set_ahead(seconds)
            wait_for_log(cluster_lab, step)
            churn.wait_for_more()
        status = cluster_lab.settle()
        applied = datetime.fromisoformat(status["applied_at"])
        assert abs((applied - datetime.now(UTC)).total_seconds() - seconds) < 60
