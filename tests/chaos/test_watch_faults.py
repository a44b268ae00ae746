# SPDX-License-Identifier: Apache-2.0
"""A watch on a cluster of three, with a writer that never rests, while the cluster is ill-treated.

Each transaction writes one number to two keys, so that a snapshot with two numbers would be half a
revision. After each fault the watch has to hold what the cluster holds within LIMIT seconds.
"""

import base64
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.etcd.cluster import DEBIAN, EtcdCluster, later_release
from support.etcd.server import Received, free_port
from support.lab.repeated import RepeatedAction
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.watch import Watch, WatchState

if TYPE_CHECKING:
    from tidegate.model.values import Snapshot

PREFIX = "/tidegate/f/config/live/"
LIMIT = 15.0
"""Seconds from the end of a fault to the same state on both sides."""


class Writer(RepeatedAction):
    """Writes pairs through any member that answers, from `with` to its end."""

    def __init__(self, cluster: EtcdCluster) -> None:
        super().__init__(0.03)
        self._cluster = cluster

    def once(self, number: int) -> bool:
        """Write one pair."""
        return put_pair(self._cluster, str(number))


def put_pair(cluster: EtcdCluster, text: str) -> bool:
    """Write one text to two keys in one transaction; say whether that was confirmed."""
    puts = f'\nput {PREFIX}a "{text}"\nput {PREFIX}b "{text}"\n\n\n'
    return cluster.ctl("txn", stdin=puts.encode()).returncode == 0


class Follower:
    """A watch on a cluster, and what it handed over."""

    def __init__(self, cluster: EtcdCluster) -> None:
        self.cluster = cluster
        self.snapshots: Received[Snapshot] = Received()
        self.states: Received[WatchState] = Received()
        settings = EtcdSettings(endpoints=cluster.endpoints)
        self.watch = Watch(settings, PREFIX, self.snapshots, self.states)

    def converge(self, text: str) -> None:
        """Write an end mark, and require of the watch to hold what the cluster holds, in time."""
        begun = time.monotonic()
        while not put_pair(self.cluster, text):
            assert time.monotonic() < begun + LIMIT, "the cluster does not take writes"
        there = contents(self.cluster)
        left = begun + LIMIT - time.monotonic()
        self.snapshots.wait(
            lambda snapshot: {k: d[:2] for k, d in snapshot.documents.items()} == there, left
        )
        for snapshot in self.snapshots.items:
            values = {snapshot.documents[k].value for k in "ab" if k in snapshot.documents}
            assert len(values) <= 1, "half a revision was handed over"
        assert self.watch.state.phase == "connected"


def contents(cluster: EtcdCluster) -> dict[str, tuple[bytes, int]]:
    """Return every value below the prefix with its revision, as etcdctl lists them."""
    listed = cluster.ctl("-w", "json", "get", "--prefix", PREFIX)
    assert listed.returncode == 0, listed.stderr
    return {
        base64.b64decode(kv["key"]).decode().removeprefix(PREFIX): (
            base64.b64decode(kv["value"]),
            kv["mod_revision"],
        )
        for kv in json.loads(listed.stdout)["kvs"]
    }


@pytest.fixture(scope="module", params=["debian", "3.5"])
def cluster(request: pytest.FixtureRequest) -> Iterator[EtcdCluster]:
    """Give one cluster of each release; every test leaves it whole."""
    with EtcdCluster(DEBIAN if request.param == "debian" else later_release()) as running:
        yield running


@pytest.fixture
def follower(cluster: EtcdCluster) -> Iterator[Follower]:
    made = Follower(cluster)
    made.watch.start()
    made.converge("start")
    yield made
    assert made.watch.stop()


def test_a_killed_member_comes_back(follower: Follower, cluster: EtcdCluster) -> None:
    """SIGKILL of a follower, then of the leader: nothing is missed while it is away, nor after."""
    for victim in (cluster.follower(), cluster.leader()):
        with Writer(cluster) as writer:
            writer.wait_for_more()
            victim.kill()
            writer.wait_for_more()
            victim.launch()
            victim.wait_until_healthy(20)
            writer.wait_for_more()
        follower.converge(f"after {victim.name}")


def test_a_frozen_leader_is_left_for_another_member(
    follower: Follower, cluster: EtcdCluster
) -> None:
    """SIGSTOP keeps every connection open and silent: the watch goes to a member that lives."""
    leader = cluster.lead("m1")  # a new watch is on the first endpoint
    with Writer(cluster) as writer:
        writer.wait_for_more()
        leader.stop()
        try:
            writer.wait_for_more()
            written = contents(cluster)["a"][1]
            follower.snapshots.wait(lambda snapshot: snapshot.revision >= written, LIMIT)
        finally:
            leader.cont()
        writer.wait_for_more()
    follower.converge("thawed")


def test_a_restart_of_all_members_is_survived(follower: Follower, cluster: EtcdCluster) -> None:
    """All members die at once and come back with their data."""
    with Writer(cluster) as writer:
        writer.wait_for_more()
        cluster.kill()
        follower.states.wait(lambda state: state.phase == "reconnecting")
        cluster.start()
        writer.wait_for_more()
    follower.converge("restarted")


def test_what_was_compacted_during_a_break_is_listed(
    follower: Follower, cluster: EtcdCluster
) -> None:
    """A deletion that no stream can tell any more is found by the list."""
    assert cluster.ctl("put", f"{PREFIX}gone", "1").returncode == 0
    follower.snapshots.wait(lambda snapshot: "gone" in snapshot.documents)
    cluster.kill()
    follower.states.wait(lambda state: state.phase == "reconnecting")
    ours = cluster.endpoints
    for member in cluster.members.values():
        member.endpoint = f"127.0.0.1:{free_port()}"  # where the watch does not look
    cluster.start()
    assert cluster.ctl("del", f"{PREFIX}gone").returncode == 0
    assert put_pair(cluster, "compacted")
    there = json.loads(cluster.ctl("-w", "json", "get", f"{PREFIX}a").stdout)
    assert cluster.ctl("compact", str(there["header"]["revision"])).returncode == 0
    cluster.kill()
    for member, endpoint in zip(cluster.members.values(), ours, strict=True):
        member.endpoint = endpoint
    cluster.start()
    follower.converge("after the compaction")
    assert "gone" not in follower.snapshots.items[-1].documents


def test_a_restore_from_an_old_snapshot_is_listed_and_reported(
    follower: Follower, cluster: EtcdCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was handed over is held until the older state has been read; the log says why."""
    caplog.set_level(logging.WARNING)
    backup = tmp_path / "backup.db"
    cluster.leader().ctl("snapshot", "save", str(backup))
    with Writer(cluster) as writer:
        writer.wait_for_more(10)
    follower.converge("lost by the restore")
    newest = follower.snapshots.items[-1].revision
    follower.snapshots.items.clear()
    cluster.kill()
    cluster.restore(backup)
    follower.snapshots.wait(lambda s: s.revision < newest and s.documents["a"].value == b"start")
    follower.converge("restored")
    assert "etcd_history_changed " in caplog.text
