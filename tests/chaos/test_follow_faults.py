# SPDX-License-Identifier: Apache-2.0
"""A host's steering on a cluster of three that is ill-treated while releases flip.

Each transaction writes a number to two keys of one of two releases, and points the track to it. So
a view with two numbers would be half a transaction, and one with the other release's numbers a
mixture.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.etcd.cluster import EtcdCluster
from support.etcd.server import Received
from support.lab.repeated import RepeatedAction
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.follower import Follower, WatchState
from tidegate.keyspace.steering import Accepted, LocalHost

if TYPE_CHECKING:
    from tidegate.model.values import View

FLEET = "/tidegate/f/"
LIMIT = 15.0
"""Seconds from the end of a fault to the release that the cluster points to."""


class Flips(RepeatedAction):
    """Writes numbers and flips the pointer, through any member that answers."""

    def __init__(self, cluster: EtcdCluster) -> None:
        super().__init__(0.05)
        self._cluster = cluster

    def once(self, number: int) -> bool:
        """Return whether a transaction was confirmed; one that was not may have happened."""
        name = f"r{number % 2}"
        puts = "".join(f'put {FLEET}config/{name}/{key} "{number}"\n' for key in ("a", "b"))
        pointer = json.dumps(json.dumps({"release": name}))
        script = f"\n{puts}put {FLEET}tracks/stable {pointer}\n\n\n"
        return self._cluster.ctl("txn", stdin=script.encode()).returncode == 0

    def write(self, number: int) -> bool:
        """Do the same outside of `with`."""
        is_confirmed = self.once(number)
        if is_confirmed:
            self.note(number)
        return is_confirmed


class Host:
    """A follower on the cluster, and its views."""

    def __init__(self, cluster: EtcdCluster) -> None:
        self.views: Received[View] = Received()
        self.states: Received[WatchState] = Received()
        settings = EtcdSettings(endpoints=cluster.endpoints)
        me = LocalHost("lb1", None, "live")
        self.follower = Follower(settings, "f", me, Accepted(), self.views, self.states)
        self.follower.start()

    def converge(self, flips: Flips) -> None:
        """Write an end mark, and require a view with it in time; and that no view was a mixture."""
        begun = time.monotonic()
        number = flips.number + 1000 + flips.number % 2
        while not flips.write(number):
            assert time.monotonic() < begun + LIMIT, "the cluster does not take writes"
        left = begun + LIMIT - time.monotonic()
        self.views.wait(lambda view: numbers(view) == {number}, left)
        for view in self.views.items:
            if view.steering.pointer:
                (found,) = numbers(view)
                assert view.steering.release == f"r{found % 2}"
        self.states.wait(lambda _: self.follower.state.phase == "connected")


def numbers(view: "View") -> set[int]:
    return {int(document.value) for document in view.snapshot.documents.values()}


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    """Give a cluster that every test leaves whole."""
    with EtcdCluster() as running:
        yield running


@pytest.fixture
def host(cluster: EtcdCluster) -> Iterator[Host]:
    made = Host(cluster)
    yield made
    assert made.follower.stop()


def test_leaders_die_and_freeze_while_releases_flip(cluster: EtcdCluster, host: Host) -> None:
    """Whichever member answers, a release is in use only whole, and only after its flip."""
    flips = Flips(cluster)
    assert flips.write(1)
    for hurt, heal in (("kill", "start"), ("stop", "cont")):
        leader = cluster.leader()
        with flips:
            flips.wait_for_more()
            getattr(leader, hurt)()
            flips.wait_for_more()
            getattr(leader, heal)()
            flips.wait_for_more()
        host.converge(flips)


def test_a_restored_snapshot_takes_steering_and_release_back(
    cluster: EtcdCluster, host: Host, tmp_path: Path
) -> None:
    """The pointer of then is followed, at a lower revision, and so is what is written after it."""
    flips = Flips(cluster)
    while not flips.write(1_000_001):
        time.sleep(0.1)  # until the cluster has a leader again
    backup = tmp_path / "backup.db"
    cluster.leader().ctl("snapshot", "save", str(backup))
    with flips:
        flips.wait_for_more(10)
    host.converge(flips)
    before = host.views.items[-1].steering.revision
    cluster.kill()
    cluster.restore(backup)
    host.views.wait(
        lambda view: view.steering.revision < before and numbers(view) == {1_000_001}, LIMIT
    )
    host.converge(flips)
