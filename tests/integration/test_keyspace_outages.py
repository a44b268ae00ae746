# SPDX-License-Identifier: Apache-2.0
"""A watch whose etcd is killed, frozen, compacted, wiped or away: it ends in the right state."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from support.etcd.server import EtcdServer, Received
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.watch import Watch, WatchState
from tidegate.model.values import Snapshot

PREFIX = "/tidegate/f/config/live/"


class Follower:
    """A watch, and what it handed over."""

    def __init__(self, *endpoints: str, **settings: float) -> None:
        self.snapshots: Received[Snapshot] = Received()
        self.states: Received[WatchState] = Received()
        chosen = {"backoff_max": 0.3} | settings
        self.watch = Watch(
            EtcdSettings(endpoints=endpoints, **chosen),  # type: ignore[arg-type]
            PREFIX,
            self.snapshots,
            self.states,
        )

    def value(self, key: str, value: str, timeout: float = 10.0) -> Snapshot:
        """Wait for a snapshot with this value at `key`."""
        return self.snapshots.wait(
            lambda snapshot: (
                key in snapshot.documents and snapshot.documents[key].value == value.encode()
            ),
            timeout,
        )

    def phase(self, phase: str, timeout: float = 10.0) -> WatchState:
        """Wait for a state."""
        return self.states.wait(lambda state: state.phase == phase, timeout)


@contextmanager
def following(*endpoints: str, **settings: float) -> Iterator[Follower]:
    follower = Follower(*endpoints, **settings)
    follower.watch.start()
    try:
        yield follower
    finally:
        assert follower.watch.stop()


def test_a_killed_etcd_is_found_again_without_a_gap(etcd: EtcdServer) -> None:
    """After SIGKILL and restart, what was written before and after is there, each once."""
    with following(etcd.endpoint) as follower:
        etcd.ctl("put", PREFIX + "a", "1")
        follower.value("a", "1")
        etcd.kill()
        assert follower.phase("reconnecting").reason
        etcd.start()
        etcd.ctl("put", PREFIX + "a", "2")
        etcd.ctl("put", PREFIX + "b", "1")
        assert follower.value("b", "1").documents["a"].value == b"2"
        revisions = [snapshot.revision for snapshot in follower.snapshots.items]
        assert revisions == sorted(set(revisions))
        assert follower.watch.state.phase == "connected"


def test_an_etcd_that_comes_late_is_found(etcd: EtcdServer) -> None:
    """An agent may start before etcd does; it says so, and begins when it can."""
    etcd.kill()
    began = time.monotonic()
    with following(etcd.endpoint, stale_after=0.5) as follower:
        follower.phase("reconnecting")
        stale = follower.phase("stale")
        assert "could not read the keyspace" in stale.reason
        assert began <= stale.since <= time.monotonic() - 0.5, "by a clock that nobody steps"
        etcd.start()
        etcd.ctl("put", PREFIX + "a", "1")
        follower.value("a", "1")
        follower.phase("connected")


def test_a_frozen_etcd_is_noticed_within_ten_seconds(etcd: EtcdServer) -> None:
    """SIGSTOP leaves the connection open and silent; writes after SIGCONT arrive."""
    with following(etcd.endpoint) as follower:
        etcd.ctl("put", PREFIX + "a", "1")
        follower.value("a", "1")
        follower.phase("connected")
        etcd.stop()
        try:
            frozen = time.monotonic()
            follower.phase("reconnecting", timeout=10.0)
            assert time.monotonic() - frozen < 10.0
        finally:
            etcd.cont()
        etcd.ctl("put", PREFIX + "a", "2")
        follower.value("a", "2")


def test_silence_on_a_live_connection_is_noticed(etcd: EtcdServer) -> None:
    """The watch's own silence limit works without gRPC's keepalive, which is slower here."""
    with following(etcd.endpoint, idle_probe=0.2, silence_limit=0.6) as follower:
        follower.phase("connected")
        etcd.stop()
        try:
            assert "silent for" in follower.phase("reconnecting", timeout=2.5).reason
        finally:
            etcd.cont()
        etcd.ctl("put", PREFIX + "a", "1")
        follower.value("a", "1")


def test_a_stop_during_an_outage_is_quick(etcd: EtcdServer) -> None:
    """Neither a frozen server nor a pause between tries holds up the agent's exit."""
    with following(etcd.endpoint, idle_probe=0.2, silence_limit=0.4) as follower:
        follower.phase("connected")
        etcd.stop()
        try:
            follower.phase("reconnecting")
            begun = time.monotonic()
            assert follower.watch.stop()
            assert time.monotonic() - begun < 1.5
        finally:
            etcd.cont()


def test_a_history_compacted_during_an_outage_is_listed(etcd: EtcdServer) -> None:
    """Deletes and writes that no stream can tell any more are in the next snapshot."""
    etcd.ctl("put", PREFIX + "gone", "1")
    etcd.ctl("put", PREFIX + "kept", "1")
    with following(etcd.endpoint, idle_probe=0.2, silence_limit=0.5) as follower:
        follower.value("kept", "1")
        follower.phase("connected")
        etcd.kill()
        follower.phase("reconnecting")
        with EtcdServerElsewhere(etcd):
            etcd.ctl("del", PREFIX + "gone")
            etcd.ctl("put", PREFIX + "kept", "2")
            etcd.ctl("put", PREFIX + "kept", "3")
            etcd.ctl("compact", "5")
        etcd.start()
        assert set(follower.value("kept", "3").documents) == {"kept"}


class EtcdServerElsewhere:
    """Runs an etcd's data on another port for a while, where its watch cannot see it."""

    def __init__(self, etcd: EtcdServer) -> None:
        self._etcd = etcd
        self._endpoint = etcd.endpoint

    def __enter__(self) -> None:
        with EtcdServer() as lender:
            self._etcd.endpoint = lender.endpoint
        self._etcd.start()

    def __exit__(self, *_: object) -> None:
        self._etcd.kill()
        self._etcd.endpoint = self._endpoint


def test_a_wiped_etcd_is_listed_although_its_revision_went_back(etcd: EtcdServer) -> None:
    """The same cluster id with an empty history is another history."""
    for value in ("1", "2", "3"):
        etcd.ctl("put", PREFIX + "a", value)
    with following(etcd.endpoint) as follower:
        assert follower.value("a", "3").revision == 4
        etcd.kill()
        etcd.wipe()
        etcd.start()
        follower.snapshots.wait(
            lambda snapshot: (snapshot.revision, len(snapshot.documents)) == (1, 0)
        )
        etcd.ctl("put", PREFIX + "b", "new")
        assert set(follower.value("b", "new").documents) == {"b"}


def test_a_wiped_etcd_that_overtook_our_revision_is_listed(etcd: EtcdServer) -> None:
    """Cluster id, term and revision can all look right; the newest document does not."""
    etcd.ctl("put", PREFIX + "a", "1")
    with following(etcd.endpoint) as follower:
        follower.value("a", "1")
        etcd.kill()
        follower.phase("reconnecting")
        etcd.wipe()
        with EtcdServerElsewhere(etcd):
            for value in ("1", "2", "3", "4"):
                etcd.ctl("put", PREFIX + "b", value)
        etcd.start()
        assert set(follower.value("b", "4").documents) == {"b"}


def test_the_other_endpoint_is_used_when_one_dies() -> None:
    """With hostnames there is no list target, so the client takes turns; with addresses gRPC does.

    The two servers are one member's data, moved from the first port to the second.
    """
    for name in ("127.0.0.1", "localhost"):
        with EtcdServer() as etcd:
            with EtcdServer() as lender:
                second = lender.endpoint
            first = etcd.endpoint
            ends = [end.replace("127.0.0.1", name) for end in (first, second)]
            with following(*ends) as follower:
                etcd.ctl("put", PREFIX + "a", "1")
                follower.value("a", "1")
                etcd.kill()
                etcd.endpoint = second
                etcd.start()
                etcd.ctl("put", PREFIX + "a", "2")
                follower.value("a", "2")
