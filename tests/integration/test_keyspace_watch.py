# SPDX-License-Identifier: Apache-2.0
"""A watch on a real etcd: what it hands over while all is well."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from support.etcd.server import EtcdServer, Received
from tidegate.keyspace.documents.validate import validate
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.listing import History, history_holds, read_prefix
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.stream import WatchStream
from tidegate.keyspace.etcd.watch import Watch, WatchState
from tidegate.keyspace.paths import key_range
from tidegate.model.values import EMPTY, Document, Snapshot

PREFIX = "/tidegate/f/config/live/"


class Follower:
    """A watch, and what it handed over."""

    def __init__(self, etcd: EtcdServer, prefix: str = PREFIX, **settings: float) -> None:
        self.snapshots: Received[Snapshot] = Received()
        self.states: Received[WatchState] = Received()
        chosen = {"backoff_max": 0.5, "fatal_retry": 0.3} | settings
        self.settings = EtcdSettings(endpoints=(etcd.endpoint,), **chosen)  # type: ignore[arg-type]
        self.watch = Watch(self.settings, prefix, self.snapshots, self.states)
        self.watch.start()

    def wait(self, **wanted: str | None) -> Snapshot:
        """Wait for a snapshot with these values at keys (`_` for `/`; None for absent)."""
        pairs = [(key.replace("_", "/"), value) for key, value in wanted.items()]
        return self.snapshots.wait(
            lambda snapshot: all(text(snapshot, key) == value for key, value in pairs)
        )


def text(snapshot: Snapshot, key: str) -> str | None:
    document = snapshot.documents.get(key)
    return None if document is None else document.value.decode()


@pytest.fixture
def follower(etcd: EtcdServer) -> Iterator[Follower]:
    made = Follower(etcd)
    yield made
    assert made.watch.stop()


def test_an_empty_prefix_is_handed_over_too(follower: Follower) -> None:
    """The agent must be able to tell an empty keyspace from an unread one."""
    snapshot = follower.snapshots.wait(lambda _: True)
    assert (snapshot.revision, dict(snapshot.documents)) == (1, {})
    assert follower.states.wait(lambda state: state.phase == "connected").reason == ""


def test_puts_and_deletes_arrive_in_order(etcd: EtcdServer, follower: Follower) -> None:
    """Each change arrives with its revision, keys are relative, and others' keys do not appear."""
    follower.snapshots.wait(lambda _: True)
    etcd.ctl("put", PREFIX + "vips/a", "1")
    assert follower.wait(vips_a="1").documents["vips/a"].mod_revision == 2
    etcd.ctl("put", "/tidegate/f/config/live2/vips/b", "other release")
    etcd.ctl("put", PREFIX + "vips/a", "2")
    assert follower.wait(vips_a="2").revision == 4
    etcd.ctl("del", PREFIX + "vips/a")
    follower.snapshots.wait(lambda snapshot: snapshot.revision == 5 and not snapshot.documents)
    revisions = [snapshot.revision for snapshot in follower.snapshots.items]
    assert revisions == sorted(set(revisions))
    assert all(set(snapshot.documents) <= {"vips/a"} for snapshot in follower.snapshots.items)


def test_a_transaction_is_one_snapshot(etcd: EtcdServer, follower: Follower) -> None:
    """All events of a revision arrive together, whatever their number."""
    follower.snapshots.wait(lambda _: True)
    etcd.ctl("put", PREFIX + "old", "x")
    follower.wait(old="x")
    puts = "".join(f'put {PREFIX}vips/v{i} "{i}"\n' for i in range(100))
    etcd.ctl("txn", stdin=f"\n{puts}del {PREFIX}old\n\n\n".encode())
    snapshot = follower.snapshots.wait(lambda snapshot: snapshot.revision == 3)
    assert set(snapshot.documents) == {f"vips/v{i}" for i in range(100)}
    partial = [s for s in follower.snapshots.items if "vips/v0" in s.documents]
    assert all(len(s.documents) == 100 for s in partial)


def test_revisions_beyond_a_message_are_put_together(etcd: EtcdServer) -> None:
    """Events that etcd sends in fragments end in one snapshot, never in half a revision."""
    operations = [f'put {PREFIX}big{i} "{"x" * 100_000}"' for i in range(10)]
    for _ in range(5):
        etcd.ctl("txn", stdin="\n".join(["", *operations, "", "", ""]).encode())
    following = Watch(EtcdSettings(endpoints=(etcd.endpoint,)), PREFIX, got := Received())
    connection = following._etcd
    following._history = History(1, 1, 1)
    following._next = 2
    stream = WatchStream(connection, [key_range(PREFIX)], 2, idle_probe=2, silence_limit=6)
    fragments = 0
    try:
        while following._next < 7:
            for message in stream.batch(time.monotonic() + 10):
                fragments += message.fragment
                following._history = History(message.header.cluster_id, 1, 1)
                before = following._next
                following._absorb([message])
                revisions = {d.mod_revision for d in following._documents.values()}
                assert not revisions or revisions == {following._next - 1}
                assert not message.fragment or following._next == before
    finally:
        stream.cancel()
        connection.close()
    assert fragments > 0
    assert got.items == []


def test_a_list_of_many_pages_is_one_moment(etcd: EtcdServer) -> None:
    """Keys beyond one page arrive in the first snapshot, though others are written meanwhile."""
    for start in range(0, 300, 100):
        puts = "".join(f'put {PREFIX}k{i} "{i}"\n' for i in range(start, start + 100))
        etcd.ctl("txn", stdin=f"\n{puts}\n\n".encode())
    follower = Follower(etcd, page_size=7)
    try:
        snapshot = follower.snapshots.wait(lambda _: True)
        assert {key: document.value for key, document in snapshot.documents.items()} == {
            f"k{i}": b"%d" % i for i in range(300)
        }
    finally:
        assert follower.watch.stop()


def test_many_live_writes_end_in_the_right_state(etcd: EtcdServer, follower: Follower) -> None:
    """Writes in quick succession may be coalesced; the last snapshot has them all."""
    follower.snapshots.wait(lambda _: True)
    for start in range(20):
        puts = "".join(f'put {PREFIX}k{i} "{start}"\n' for i in range(50))
        etcd.ctl("txn", stdin=f"\n{puts}\n\n".encode())
    last = follower.snapshots.wait(lambda snapshot: snapshot.revision == 21)
    assert {document.value for document in last.documents.values()} == {b"19"}
    for snapshot in follower.snapshots.items[1:]:
        assert len({document.value for document in snapshot.documents.values()}) == 1


def test_an_idle_watch_keeps_getting_answers_from_etcd(etcd: EtcdServer) -> None:
    """A sign of life comes on request, so an idle watch is not taken for a dead one."""
    follower = Follower(etcd, idle_probe=0.2, silence_limit=0.6)
    try:
        follower.states.wait(lambda state: state.phase == "connected")
        deadline = time.monotonic() + 2.0
        contacts = set()
        while time.monotonic() < deadline:
            contacts.add(follower.watch.last_contact)
            time.sleep(0.02)  # watching a clock: there is no event to wait for
        assert len(contacts) >= 5
        assert time.monotonic() - follower.watch.last_contact < 0.6
        assert [state.phase for state in follower.states.items] == ["connected"]
    finally:
        assert follower.watch.stop()


def test_keys_and_values_that_are_not_utf_8_are_refused_by_name(
    etcd: EtcdServer, follower: Follower
) -> None:
    """Foreign bytes reach validation, which refuses them, and they can be deleted again."""
    etcd.ctl("put", PREFIX + "vips/bad", "\udcff\udcfe")
    follower.snapshots.wait(lambda snapshot: "vips/bad" in snapshot.documents)
    etcd.ctl("put", PREFIX + "vips/\udcff", "{}")
    snapshot = follower.snapshots.wait(lambda snapshot: "vips/\\xff" in snapshot.documents)
    assert {(r.key, r.stage) for r in validate(snapshot, EMPTY).rejections} == {
        ("vips/bad", "decode"),
        ("vips/\\xff", "schema"),
    }
    etcd.ctl("del", "--prefix", PREFIX)
    follower.snapshots.wait(lambda snapshot: snapshot.revision == 4 and not snapshot.documents)


def test_the_periodic_list_hands_over_nothing_without_changes(etcd: EtcdServer) -> None:
    """Listing again does not make the agent work, and changes still arrive after it."""
    etcd.ctl("put", PREFIX + "a", "1")
    follower = Follower(etcd, relist_interval=0.1)
    try:
        follower.wait(a="1")
        started = follower.watch._list_at
        deadline = time.monotonic() + 10
        while follower.watch._list_at < started + 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.02)  # waiting for a time that passes by itself
        assert len(follower.snapshots.items) == 1
        etcd.ctl("put", PREFIX + "a", "2")
        follower.wait(a="2")
    finally:
        assert follower.watch.stop()


def test_a_receiver_that_fails_once_gets_the_snapshot_again(etcd: EtcdServer) -> None:
    """A fault in the agent is reported and does not end the watch."""
    got: Received[Snapshot] = Received()
    states: Received[WatchState] = Received()
    failed = threading.Event()

    def deliver(snapshot: Snapshot) -> None:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError("a fault of the receiver")
        got(snapshot)

    settings = EtcdSettings(endpoints=(etcd.endpoint,), fatal_retry=0.1)
    watch = Watch(settings, PREFIX, deliver, states)
    watch.start()
    try:
        assert "a fault of the receiver" in states.wait(lambda s: s.phase == "fatal").reason
        got.wait(lambda snapshot: snapshot.revision == 1)
        states.wait(lambda state: state.phase == "connected")
    finally:
        assert watch.stop()


def test_stop_is_quick_and_may_be_repeated(etcd: EtcdServer) -> None:
    """An open stream does not hold up the agent's exit, and no thread is left."""
    follower = Follower(etcd)
    follower.snapshots.wait(lambda _: True)
    begun = time.monotonic()
    assert follower.watch.stop()
    assert follower.watch.stop()
    assert time.monotonic() - begun < 1.0
    assert not [t for t in threading.enumerate() if t.name == "tidegate-watch"]


def test_a_lost_event_is_repaired_by_the_next_list(
    etcd: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A write that no stream brought is handed over after the next list, and the loss is logged."""
    got: Received[Snapshot] = Received()
    watch = Watch(EtcdSettings(endpoints=(etcd.endpoint,)), PREFIX, got)
    try:
        watch._list()
        etcd.ctl("put", PREFIX + "vips/a", "1")
        watch._next = 3  # as if a stream had passed revision 2 without its event
        watch._list()
    finally:
        assert watch.stop()
    assert [(s.revision, set(s.documents)) for s in got.items] == [(1, set()), (2, {"vips/a"})]
    assert "etcd_events_lost keys=1 first=vips/a" in caplog.text


def test_another_history_is_distinguished_from_ours(etcd: EtcdServer) -> None:
    """Another cluster, an older term, an older store or another newest document is not ours."""
    etcd.ctl("put", PREFIX + "vips/a", "1")
    connection = Etcd(EtcdSettings(endpoints=(etcd.endpoint,)))
    prefix = PREFIX.encode()
    try:
        documents, known, _ = read_prefix(connection, prefix, 1000, lambda: False)
        etcd.ctl("put", PREFIX + "vips/a", "2")
        assert history_holds(connection, prefix, documents, known, 2)
        others = [replace(known, cluster=1), replace(known, term=known.term + 1)]
        assert not any(history_holds(connection, prefix, documents, h, 2) for h in others)
        assert not history_holds(connection, prefix, documents, known, 4)
        assert not history_holds(connection, prefix, {}, known, 2)
        assert history_holds(connection, prefix, {}, known, 1)
        changed = {"vips/a": Document(b"x", 2, 2)}
        assert not history_holds(connection, prefix, changed, known, 2)
    finally:
        connection.close()
