# SPDX-License-Identifier: Apache-2.0
"""What others write below a fleet's prefix: much at once, too long, or too many keys.

None of it may keep a host from its steering, or take the memory that its agent has.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.etcd.server import EtcdServer, Received
from tidegate.keyspace import bounds
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.store import Fleet, Store
from tidegate.keyspace.etcd.watch import Watch, WatchState
from tidegate.keyspace.follower import Follower
from tidegate.keyspace.steering import Accepted, LocalHost
from tidegate.model.values import Snapshot, View

FLEET = "/tidegate/f/"
RELEASE = f"{FLEET}config/live/"
LONG = b"x" * 1_400_000
FREEZE = json.dumps({"freeze": True, "reason": "stop"})


def put(connection: Etcd, key: str, value: bytes) -> None:
    connection.put((FLEET + key).encode(), value)


def put_many(connection: Etcd, keys: list[str], value: bytes = b"{}") -> None:
    messages = connection.messages
    for start in range(0, len(keys), 120):
        operations = [
            messages.RequestOp(
                request_put=messages.PutRequest(key=(FLEET + key).encode(), value=value)
            )
            for key in keys[start : start + 120]
        ]
        request = messages.TxnRequest(success=operations)
        connection._unary("write", lambda client: client.kvstub.Txn, request)


@contextmanager
def connected(etcd: EtcdServer) -> Iterator[Etcd]:
    connection = Etcd(EtcdSettings(endpoints=(etcd.endpoint,)))
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def following(etcd: EtcdServer) -> Iterator[Received[View]]:
    views: Received[View] = Received()
    settings = EtcdSettings(endpoints=(etcd.endpoint,), backoff_max=0.3)
    follower = Follower(settings, "f", LocalHost("lb1", None, "live"), Accepted(), views)
    follower.start()
    try:
        yield views
    finally:
        assert follower.stop()


def memory_peak() -> int:
    """Return the most bytes of memory that this process has had since it was last asked."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            peak = int(line.split()[1]) * 1024
    Path("/proc/self/clear_refs").write_text("5", "utf-8")
    return peak


def reasons(view: View) -> dict[str, str]:
    return {each.key: each.reason for each in view.steering.rejections}


def test_sixty_thousand_deletions_in_one_revision_are_seen(etcd: EtcdServer) -> None:
    """However long etcd is silent over them: the result is listed, and no stream begins it anew."""
    snapshots: Received[Snapshot] = Received()
    states: Received[WatchState] = Received()
    # What takes this etcd 6 s takes a busy one minutes: the limit stands for its slowness.
    settings = EtcdSettings(endpoints=(etcd.endpoint,), idle_probe=0.2, silence_limit=0.5)
    watch = Watch(settings, RELEASE, snapshots, states)
    with connected(etcd) as connection:
        put_many(connection, [f"config/live/pools/p{i // 64}/backends/b{i}" for i in range(60_000)])
        watch.start()
        try:
            snapshots.wait(lambda snapshot: len(snapshot.documents) == 60_000)
            begun = time.monotonic()
            etcd.ctl("del", "--prefix", RELEASE)
            snapshots.wait(lambda snapshot: not snapshot.documents, timeout=20)
            assert time.monotonic() - begun < 5
            broken = [state for state in states.items if state.phase == "reconnecting"]
            assert len(broken) <= 2
            assert all("silent for" in state.reason for state in broken)
        finally:
            assert watch.stop()


def test_a_freeze_holds_beside_seventy_megabytes_of_junk(etcd: EtcdServer) -> None:
    """Overrides that are too long are refused by name; freeze and a good override count."""
    good = {"guard": "vips", "expires_at": "2099-01-01T00:00:00Z"}
    with connected(etcd) as connection:
        for number in range(50):
            put(connection, f"overrides/junk{number}", LONG)
        put(connection, "overrides/zz", json.dumps(good).encode())
        put(connection, "fleet", FREEZE.encode())
        put(connection, "config/live/pools/p", b"{}")
        with following(etcd) as views:
            view = views.wait(lambda _: True)
            assert "stop" in view.steering.freeze
            assert [each.name for each in view.steering.overrides] == ["zz"]
            assert "1400000 bytes; the limit is 65536" in reasons(view)["overrides/junk7"]
            put(connection, "overrides/later", LONG)
            views.wait(lambda view: "overrides/later" in reasons(view))
            put(connection, "fleet", b"{}")
            views.wait(lambda view: not view.steering.freeze)


def test_two_hundred_long_documents_take_little_memory(
    etcd: EtcdServer, record_property: Callable[[str, object], None]
) -> None:
    """280 MB in a release and beside it, as a list and as events, take less than 150 MB."""
    quota = "--quota-backend-bytes=4000000000"
    etcd.kill()
    etcd.extra.append(quota)
    etcd.start()
    with connected(etcd) as connection:
        for number in range(100):
            put(connection, f"config/live/vips/v{number}", LONG)
            put(connection, f"overrides/o{number}", LONG)
        put(connection, "config/live/pools/p", b"{}")
        memory_peak()
        begun = int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
        with following(etcd) as views:
            view = views.wait(lambda _: True, timeout=60)
            assert view.snapshot.documents["vips/v7"].refused
            assert view.snapshot.documents["pools/p"].value == b"{}"
            for number in range(100):
                put(connection, f"config/live/vips/w{number}", LONG)
            views.wait(lambda view: "vips/w99" in view.snapshot.documents, timeout=60)
        more = memory_peak() - begun
        record_property("memory of 300 documents of 1.4 MB", f"{more / 1e6:.0f} MB")
        assert more < 150e6


def test_documents_that_are_too_much_in_sum_are_refused(etcd: EtcdServer) -> None:
    """Each is short enough; the first ones count, and the others are refused by name."""
    whole = bounds.STEERING.together // 60_000
    with connected(etcd) as connection:
        for number in range(whole + 5):
            put(connection, f"overrides/o{number:03}", b" " * 60_000)
        put(connection, "tracks/stable", b'{"release": "r1"}')
        with following(etcd) as views:
            view = views.wait(lambda _: True)
            assert view.steering.release == "r1"
            assert "in sum" in reasons(view)[f"overrides/o{whole + 4:03}"]
            assert "in sum" not in reasons(view)["overrides/o000"]


@pytest.mark.parametrize("kind", ["tracks", "overrides"])
def test_the_own_track_counts_beside_too_many_keys(etcd: EtcdServer, kind: str) -> None:
    """What comes after ten thousand keys is not read, and said so, but for the host's own track."""
    with connected(etcd) as connection:
        put_many(connection, [f"{kind}/a{number}" for number in range(bounds.STEERING.keys + 500)])
        put(connection, "tracks/stable", b'{"release": "r1"}')
        put(connection, "hosts/lb1", FREEZE.encode())
        with following(etcd) as views:
            view = views.wait(lambda _: True)
            assert view.steering.release == "r1"
            assert "stop" in view.steering.freeze
            assert "more than 10000 keys" in reasons(view)[f"{kind}/"]


def test_a_command_reads_beside_megabytes_of_junk(etcd: EtcdServer) -> None:
    """Rollouts and overrides read their keys in pages, whatever else is below the same prefix."""
    with connected(etcd) as connection:
        for number in range(50):
            put(connection, f"hosts/junk{number}", LONG)
        put(connection, "hosts/lb1", b"{}")
        settings = EtcdSettings(endpoints=(etcd.endpoint,))
        with Store(Fleet(settings, "f")) as store:
            read = store.read("hosts/", "fleet")
            assert read.documents["hosts/lb1"].value == b"{}"
            assert "limit" in read.documents["hosts/junk7"].refused
            assert store.read_release("live").documents == {}


def test_a_key_that_is_far_too_long_is_named_shortly(etcd: EtcdServer) -> None:
    """It is refused under a short name, which is its own, and goes again when it is deleted."""
    long = "vips/" + "k" * 100_000
    with connected(etcd) as connection, following(etcd) as views:
        put(connection, f"config/live/{long}1", b"{}")
        put(connection, f"config/live/{long}2", b"{}")
        view = views.wait(lambda view: len(view.snapshot.documents) == 2)
        assert all(len(key) < 250 for key in view.snapshot.documents)
        etcd.ctl("del", "--prefix", f"{RELEASE}vips/")
        views.wait(lambda view: not view.snapshot.documents and len(views.items) > 1)
