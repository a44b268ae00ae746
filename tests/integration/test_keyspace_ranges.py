# SPDX-License-Identifier: Apache-2.0
"""A watch of several ranges on a real etcd: each snapshot is one moment of all of them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.etcd.server import EtcdServer, Received
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed, Remedy
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.watch_ranges import RangesWatch, WatchState
from tidegate.model.values import Snapshot

PREFIX = "/tidegate/f/"
BELOW = ("tracks/", "hosts/lb1", "fleet", "overrides/")
KEYS = ("tracks/a", "tracks/b", "hosts/lb1", "fleet", "overrides/x")


class Watching:
    """A watch, and what it handed over."""

    def __init__(self, etcd: EtcdServer, **settings: float) -> None:
        self.snapshots: Received[Snapshot] = Received()
        self.states: Received[WatchState] = Received()
        chosen = {"backoff_max": 0.3, "fatal_retry": 0.3} | settings
        self.settings = EtcdSettings(endpoints=(etcd.endpoint,), **chosen)  # type: ignore[arg-type]
        self.watch = RangesWatch(self.settings, PREFIX, BELOW, self.snapshots, self.states)

    def value(self, key: str, value: str) -> Snapshot:
        """Wait for a snapshot with this value at `key`."""
        return self.snapshots.wait(lambda snapshot: values(snapshot).get(key) == value)


def values(snapshot: Snapshot) -> dict[str, str]:
    return {key: document.value.decode() for key, document in snapshot.documents.items()}


@contextmanager
def watching(etcd: EtcdServer, **settings: float) -> Iterator[Watching]:
    made = Watching(etcd, **settings)
    made.watch.start()
    try:
        yield made
    finally:
        assert made.watch.stop()


def write_together(connection: Etcd, pairs: dict[str, str]) -> int:
    """Put in one transaction; return its revision."""
    messages = connection.messages
    puts = [
        messages.RequestOp(
            request_put=messages.PutRequest(key=(PREFIX + key).encode(), value=value.encode())
        )
        for key, value in pairs.items()
    ]
    request = messages.TxnRequest(success=puts)
    answer = connection._unary("write", lambda client: client.kvstub.Txn, request)
    return int(answer.header.revision)


def test_a_transaction_over_all_ranges_is_never_seen_by_halves(etcd: EtcdServer) -> None:
    """Each of many transactions writes one value everywhere; no snapshot has two values."""
    with watching(etcd) as seen:
        seen.snapshots.wait(lambda _: True)
        connection = Etcd(seen.settings)
        try:
            for value in range(300):
                last = write_together(connection, dict.fromkeys(KEYS, str(value)))
        finally:
            connection.close()
        seen.value("fleet", "299")
        assert seen.snapshots.items[-1].revision == last
        for snapshot in seen.snapshots.items[1:]:
            assert set(snapshot.documents) == set(KEYS)
            assert len({d.mod_revision for d in snapshot.documents.values()}) == 1
        assert len(seen.snapshots.items) > 10  # it followed, and did not merely read the end


def test_only_the_ranges_are_followed(etcd: EtcdServer) -> None:
    """Other hosts, releases and statuses wake nobody and are in no snapshot."""
    with watching(etcd) as seen:
        seen.snapshots.wait(lambda _: True)
        for key in ("hosts/lb10", "hosts/lb2", "fleet2", "config/live/vips/a", "status/lb1"):
            etcd.ctl("put", PREFIX + key, "1")
        etcd.ctl("put", PREFIX + "hosts/lb1", "1")
        assert set(seen.value("hosts/lb1", "1").documents) == {"hosts/lb1"}
        etcd.ctl("del", PREFIX + "hosts/lb1")
        seen.snapshots.wait(lambda snapshot: snapshot.revision == 8)
        assert [len(s.documents) for s in seen.snapshots.items] == [0, 1, 0]


def test_a_killed_and_compacted_etcd_is_read_anew(etcd: EtcdServer) -> None:
    """What was written around an outage is there, though no stream can tell it any more."""
    etcd.ctl("put", PREFIX + "tracks/gone", "1")
    with watching(etcd) as seen:
        seen.value("tracks/gone", "1")
        etcd.kill()
        seen.states.wait(lambda state: state.phase == "reconnecting")
        etcd.start()
        etcd.ctl("del", PREFIX + "tracks/gone")
        etcd.ctl("put", PREFIX + "fleet", "2")
        etcd.ctl("put", PREFIX + "fleet", "3")
        etcd.ctl("compact", "5")
        assert values(seen.value("fleet", "3")) == {"fleet": "3"}
        seen.states.wait(lambda state: state.phase == "connected")


def test_a_history_that_went_back_is_handed_over(etcd: EtcdServer) -> None:
    """A wiped etcd has another history at a lower revision; its keys count from then on."""
    for value in ("1", "2", "3"):
        etcd.ctl("put", PREFIX + "fleet", value)
    with watching(etcd) as seen:
        assert seen.value("fleet", "3").revision == 4
        etcd.kill()
        etcd.wipe()
        etcd.start()
        seen.snapshots.wait(lambda snapshot: (snapshot.revision, len(snapshot.documents)) == (1, 0))
        etcd.ctl("put", PREFIX + "tracks/a", "new")
        assert values(seen.value("tracks/a", "new")) == {"tracks/a": "new"}


def test_silence_is_noticed_on_a_stream_with_several_watchers(etcd: EtcdServer) -> None:
    """Signs of life keep an idle stream open, and their absence ends it."""
    with watching(etcd, idle_probe=0.2, silence_limit=0.6) as seen:
        seen.states.wait(lambda state: state.phase == "connected")
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            time.sleep(0.05)  # watching a clock: there is no event to wait for
        assert [state.phase for state in seen.states.items] == ["connected"]
        etcd.stop()
        try:
            state = seen.states.wait(lambda state: state.phase == "reconnecting")
            assert "silent for" in state.reason
        finally:
            etcd.cont()
        etcd.ctl("put", PREFIX + "overrides/x", "1")
        seen.value("overrides/x", "1")


def test_what_etcd_cancels_is_read_anew(etcd: EtcdServer) -> None:
    """A stream whose start was compacted away is cancelled by etcd; that is a reason to read."""
    made = Watching(etcd)
    watch = made.watch
    try:
        watch._list()
        for value in ("1", "2", "3"):
            etcd.ctl("put", PREFIX + "fleet", value)
        etcd.ctl("compact", "4")
        with pytest.raises(CallFailed, match="compacted") as caught:
            watch._watch()
        assert caught.value.remedy is Remedy.RELIST
        watch.start()
        made.value("fleet", "3")
    finally:
        assert watch.stop()


def test_an_event_that_never_came_is_found_by_the_periodic_read(etcd: EtcdServer) -> None:
    """Streams that start too late bring nothing; the next read has the write all the same."""
    made = Watching(etcd)
    watch = made.watch
    try:
        watch._list()
        etcd.ctl("put", PREFIX + "hosts/lb1", "1")
        watch._next = 3  # as if a stream had passed revision 2 without its event
        watch._list_at = time.monotonic() + 0.3
        watch._watch()  # ends when the time for the read has come
        assert [len(s.documents) for s in made.snapshots.items] == [0]
        watch._list()
        assert [len(s.documents) for s in made.snapshots.items] == [0, 1]
    finally:
        assert watch.stop()
