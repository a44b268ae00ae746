# SPDX-License-Identifier: Apache-2.0
"""A host's tracks and releases on a real etcd: every view is of one release, and the right one."""

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.etcd.server import EtcdServer, Received
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.follower import Follower, WatchState
from tidegate.keyspace.steering import Accepted, LocalHost
from tidegate.model.values import View

FLEET = "/tidegate/f/"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "keyspace.md"
NOTHING = Accepted()
STEERING = ("tracks/", "hosts/", "overrides/", "fleet")
STABLE, CANARY, HOST = "tracks/stable", "tracks/canary", "hosts/lb1"


class Following:
    """A follower, and what it handed over."""

    def __init__(self, etcd: EtcdServer, in_force: Accepted, **settings: float) -> None:
        self.views: Received[View] = Received()
        self.states: Received[WatchState] = Received()
        chosen = {"backoff_max": 0.3, "fatal_retry": 0.3} | settings
        self.settings = EtcdSettings(endpoints=(etcd.endpoint,), **chosen)  # type: ignore[arg-type]
        self.follower = Follower(
            self.settings, "f", LocalHost("lb1", None, "live"), in_force, self.views, self.states
        )
        self.follower.start()
        self.connection = Etcd(self.settings)

    def put(self, *pairs: tuple[str, object]) -> int:
        """Put documents in one transaction, and delete those that are None; return its revision."""
        messages = self.connection.messages
        operations = []
        for key, value in pairs:
            name = (FLEET + key).encode()
            if value is None:
                delete = messages.DeleteRangeRequest(key=name)
                operations.append(messages.RequestOp(request_delete_range=delete))
            else:
                put = messages.PutRequest(key=name, value=json.dumps(value).encode())
                operations.append(messages.RequestOp(request_put=put))
        request = messages.TxnRequest(success=operations)
        answer = self.connection._unary("write", lambda client: client.kvstub.Txn, request)
        return int(answer.header.revision)

    def release(self, name: str, text: str = "", count: int = 20) -> tuple[tuple[str, object], ...]:
        """Return the documents of a release, each with the release's name and a text."""
        return tuple((f"config/{name}/pools/p{i}", [name, text]) for i in range(count))

    def on(self, release: str, text: str = "", timeout: float = 10.0) -> View:
        """Wait for a view of a whole release with this text."""
        return self.views.wait(
            lambda view: view.steering.release == release and content(view) == {(release, text)},
            timeout,
        )


def content(view: View) -> set[tuple[str, str]]:
    """Return what the documents of a view say that they are of."""
    return {tuple(json.loads(d.value)) for d in view.snapshot.documents.values()}


@contextmanager
def following(
    etcd: EtcdServer, in_force: Accepted = NOTHING, **settings: float
) -> Iterator[Following]:
    made = Following(etcd, in_force, **settings)
    try:
        yield made
    finally:
        made.connection.close()
        assert made.follower.stop()
        views = made.views.items
        for view in views:  # what each test shows, whatever else it does
            assert {name for name, _ in content(view)} <= {view.steering.release}


def releases(seen: Following) -> list[str]:
    """Return the releases of all views, repetitions left out."""
    found: list[str] = []
    for view in seen.views.items:
        if found[-1:] != [view.steering.release]:
            found.append(view.steering.release)
    return found


def test_a_fleet_without_tracks_follows_live(etcd: EtcdServer) -> None:
    """Neither `tracks` nor `hosts` keys are needed, and an empty release is a view too."""
    with following(etcd) as seen:
        first = seen.views.wait(lambda _: True)
        assert (first.steering.track, first.steering.release) == ("stable", "live")
        assert (first.steering.rejections, dict(first.snapshot.documents)) == ((), {})
        revision = seen.put(*seen.release("live"))
        assert seen.on("live").snapshot.revision == revision
        assert seen.states.wait(lambda state: state.phase == "connected")


def test_a_pointer_that_flips_is_one_change(etcd: EtcdServer) -> None:
    """The new release appears whole and at once, and the flip back as well."""
    with following(etcd) as seen:
        seen.views.wait(lambda _: True)
        seen.put(*seen.release("r1"), (STABLE, {"release": "r1"}))
        seen.on("r1")
        seen.put(*seen.release("r2"))
        flip = seen.put((STABLE, {"release": "r2"}))
        assert seen.on("r2").snapshot.revision >= flip
        seen.put((STABLE, {"release": "r1"}))
        seen.views.wait(lambda view: view.steering.revision > flip)
        wait_for_releases(seen, ["live", "r1", "r2", "r1"])
        assert all(len(view.snapshot.documents) in (0, 20) for view in seen.views.items)


def wait_for_releases(seen: Following, wanted: list[str]) -> None:
    seen.views.wait(lambda _: releases(seen) == wanted)


def test_a_transaction_of_a_release_and_its_pointer_comes_whole(etcd: EtcdServer) -> None:
    """Each of many writes a release anew and flips to it; no view has a half, or an old text."""
    with following(etcd) as seen:
        for turn in range(30):
            name = f"r{turn % 3}"
            revision = seen.put(*seen.release(name, str(turn)), (STABLE, {"release": name}))
            if turn % 4 == 0:  # and sometimes faster than it can follow
                assert seen.on(name, str(turn)).snapshot.revision >= revision
        seen.on("r2", "29")
        for view in seen.views.items:
            assert len(content(view)) <= 1
            if view.steering.pointer:
                assert len(view.snapshot.documents) == 20
        assert len(releases(seen)) > 8
    ended = {"tidegate-watch", "tidegate-steering"}  # readers follow, when gRPC lets go of them
    assert not [t for t in threading.enumerate() if t.name in ended]


def test_a_view_tells_what_has_arrived_and_in_whose_trace(etcd: EtcdServer) -> None:
    """Every write once: of the release, of the host's own keys, and a flip with its release."""
    contexts = [f"00-{number:032x}-{number:016x}-01" for number in (1, 2, 3, 4)]

    def pool(release: str, number: int) -> tuple[str, object]:
        document = {release: "as `content` reads it", "traceparent": contexts[number]}
        return f"config/{release}/pools/p{number}", document

    with following(etcd) as seen:
        first = seen.views.wait(lambda _: True)
        assert first.writes.total == 0
        before = time.time_ns()
        revisions = [seen.put(pool("live", number)) for number in (0, 1)]
        seen.put((CANARY, {"release": "r9", "traceparent": contexts[3]}))  # not this host's
        seen.put(("config/live/pools/p0", None))
        seen.put(pool("r2", 0), pool("r2", 1))
        # Nothing orders two watches: a flip that is seen first ends that of the release left.
        seen.views.wait(lambda _: sum(view.writes.total for view in seen.views.items) == 3)
        revisions.append(seen.put((STABLE, {"release": "r2", "traceparent": contexts[2]})))
        seen.views.wait(lambda view: view.steering.release == "r2")
        found = [view for view in seen.views.items if view.writes.total]
    assert sum(view.writes.total for view in found) == 4
    traced = [origin for view in found for origin in view.writes.traced]
    assert [(o.traceparent, o.revision) for o in traced] == list(
        zip(contexts, revisions, strict=False)
    )
    assert all(before <= origin.received <= time.time_ns() for origin in traced)
    assert found[-1].steering.release == "r2"
    assert found[-1].writes.keys == (STABLE,)


def test_only_one_release_is_watched_once_it_is_in_use(etcd: EtcdServer) -> None:
    """The watches of releases that were left end; the changes of theirs wake nobody."""
    with following(etcd) as seen:
        for name in ("r1", "r2", "r3"):
            seen.put(*seen.release(name), (STABLE, {"release": name}))
            seen.on(name)
        count = len(seen.views.items)
        seen.put(*seen.release("r1", "unseen"))
        seen.put(*seen.release("r3", "seen"))
        seen.on("r3", "seen")
        assert len(seen.views.items) == count + 1
        for watch in seen.follower._stopping:
            assert watch.stop()
        watches = [t for t in threading.enumerate() if t.name == "tidegate-watch"]
        assert len(watches) == 1


def test_a_hosts_key_moves_it_to_a_track_and_back(etcd: EtcdServer) -> None:
    """Its deletion puts the host back where it was."""
    with following(etcd) as seen:
        seen.put(*seen.release("live"), *seen.release("r8"), (CANARY, {"release": "r8"}))
        assert seen.on("live").steering.rejections == ()
        seen.put((HOST, {"track": "canary"}))
        assert seen.on("r8").steering.track == "canary"
        seen.put((HOST, None))
        wait_for_releases(seen, ["live", "r8", "live"])
        assert seen.views.items[-1].steering.track == "stable"


def test_a_release_without_documents_is_named(etcd: EtcdServer) -> None:
    """It is handed over empty, for the guards to refuse, with the key that names it."""
    with following(etcd) as seen:
        seen.put(*seen.release("r1"), (STABLE, {"release": "r1"}))
        seen.on("r1")
        seen.put((STABLE, {"release": "r-typo"}))
        view = seen.views.wait(lambda view: view.steering.release == "r-typo")
        assert not view.snapshot.documents
        (rejection,) = view.steering.rejections
        assert (rejection.key, rejection.field) == (STABLE, "release")
        assert "'r-typo', which has no documents" in rejection.reason
        seen.put(*seen.release("r-typo"))
        assert seen.on("r-typo").steering.rejections == ()


def test_broken_steering_keeps_the_release(etcd: EtcdServer) -> None:
    """The refusal comes with the next view, and the release goes on to be followed."""
    with following(etcd) as seen:
        seen.put(*seen.release("r1"), (STABLE, {"release": "r1"}))
        seen.on("r1")
        seen.put((STABLE, {"release": 5}))
        view = seen.views.wait(lambda view: bool(view.steering.rejections))
        assert (view.steering.release, view.steering.rejections[0].key) == ("r1", STABLE)
        seen.put(*seen.release("r1", "later"))
        assert seen.on("r1", "later").steering.rejections[0].field == "release"


def test_restart_without_etcd_and_then_a_broken_pointer(etcd: EtcdServer) -> None:
    """What was in force is followed when etcd is back with nothing better to say."""
    etcd.kill()
    with following(etcd, Accepted("r1", "stable"), stale_after=0.3) as seen:
        seen.states.wait(lambda state: state.phase == "stale")
        assert seen.views.items == []
        etcd.start()
        seen.put(*seen.release("r1"), (STABLE, "broken"))
        assert seen.on("r1").steering.track == "stable"
        wait_for_releases(seen, ["r1"])


def test_an_outage_with_compaction_is_caught_up_with(etcd: EtcdServer) -> None:
    """A flip during an outage whose history is compacted away is followed afterwards."""
    with following(etcd) as seen:
        seen.put(*seen.release("r1"), (STABLE, {"release": "r1"}))
        seen.on("r1")
        etcd.kill()
        seen.states.wait(lambda state: state.phase == "reconnecting")
        etcd.start()
        etcd.ctl("put", "/elsewhere", "x")  # it answers now, so the next write will not fail
        seen.put(*seen.release("r2"))
        last = seen.put((STABLE, {"release": "r2"}))
        etcd.ctl("compact", str(last))
        seen.on("r2")
        seen.put(*seen.release("r2", "after"))
        seen.on("r2", "after")
        assert seen.follower.state.phase == "connected"


def test_a_store_that_went_back_takes_the_release_with_it(etcd: EtcdServer) -> None:
    """After a restore from long ago the pointer and the release of then are in use."""
    with following(etcd) as seen:
        for turn in range(5):
            seen.put(*seen.release("r2", str(turn)), (STABLE, {"release": "r2"}))
        before = seen.on("r2", "4").snapshot.revision
        etcd.kill()
        etcd.wipe()
        etcd.start()
        etcd.ctl("put", "/elsewhere", "x")  # it answers now, so the next write will not fail
        assert seen.put(*seen.release("r1", "old"), (STABLE, {"release": "r1"})) < before
        assert seen.on("r1", "old").steering.revision < before
        seen.put((STABLE, {"release": "r2"}), *seen.release("r2", "old"))
        seen.on("r2", "old")


def test_a_release_that_cannot_be_read_leaves_the_old_one_in_use(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    """Its changes go on to be handed over, the state says why, and a permission ends the wait."""
    root = ("--user", "root:r00t")
    for command in (
        "user add root:r00t",
        "user grant-role root root",
        "user add agent:s3cret",
        "role add agent",
        *(f"role grant-permission agent --prefix read {FLEET}{key}" for key in STEERING),
        f"role grant-permission agent --prefix read {FLEET}config/r1/",
        "user grant-role agent agent",
        "auth enable",
    ):
        etcd.ctl(*command.split())
    (tmp_path / "password").write_text("s3cret")
    settings = EtcdSettings(
        endpoints=(etcd.endpoint,),
        user="agent",
        password_file=str(tmp_path / "password"),
        backoff_max=0.3,
        fatal_retry=0.3,
    )
    views: Received[View] = Received()
    states: Received[WatchState] = Received()
    follower = Follower(
        settings, "f", LocalHost("lb1", None, "live"), Accepted("r1"), views, states
    )
    for key, text in (("config/r1/pools/p", '["r1", "1"]'), (STABLE, '{"release": "r1"}')):
        etcd.ctl(*root, "put", FLEET + key, text)
    follower.start()
    try:
        views.wait(lambda view: content(view) == {("r1", "1")})
        etcd.ctl(*root, "put", FLEET + "config/r2/pools/p", '["r2", "1"]')
        etcd.ctl(*root, "put", FLEET + STABLE, '{"release": "r2"}')
        states.wait(lambda state: state.phase == "fatal" and "permission denied" in state.reason)
        etcd.ctl(*root, "put", FLEET + "config/r1/pools/p", '["r1", "2"]')
        view = views.wait(lambda view: content(view) == {("r1", "2")})
        assert (view.steering.release, view.steering.pointer) == ("r1", "stable")
        grant = ("role", "grant-permission", "agent", "--prefix", "read")
        etcd.ctl(*root, *grant, f"{FLEET}config/r2/")
        views.wait(lambda view: content(view) == {("r2", "1")})
        states.wait(lambda _: follower.state.phase == "connected")
        assert time.monotonic() - follower.last_contact < settings.silence_limit
    finally:
        assert follower.stop()
    assert {view.steering.release for view in views.items} == {"r1", "r2"}


def test_freeze_and_overrides_come_with_the_views(etcd: EtcdServer) -> None:
    """They change the steering and leave the snapshot as it was."""
    with following(etcd) as seen:
        seen.put(*seen.release("live"))
        before = seen.on("live")
        override = {"guard": "vips", "expires_at": "2030-01-01T00:00:00Z"}
        seen.put(("fleet", {"freeze": True, "reason": "fire"}), ("overrides/o", override))
        view = seen.views.wait(lambda view: bool(view.steering.freeze))
        assert view.steering.freeze == "fleet freezes all: fire"
        assert [each.name for each in view.steering.overrides] == ["o"]
        assert view.snapshot == before.snapshot


def test_the_documented_commands_do_what_the_page_says(etcd: EtcdServer) -> None:
    """A canary, a flip for all, the canary's end; a frozen host, a frozen fleet, and a thaw."""
    page = DOCS.read_text("utf-8")
    text = page[page.index("## Tracks and releases") : page.index("## Override")]
    script = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    folder, *commands = script.replace("\\\n", " ").splitlines()
    documented = {
        "hosts/lb1 '{\"track": [("lb1", "canary", "r2", False), ("lb2", "stable", "live", False)],
        "tracks/stable": [("lb1", "canary", "r2", False), ("lb2", "stable", "r2", False)],
        "del": [("lb1", "stable", "r2", False)],
        "hosts/lb2": [("lb2", "stable", "r2", True)],
        "fleet '{\"freeze": [("lb1", "stable", "r2", True)],
        "fleet '{}'": [("lb1", "stable", "r2", False), ("lb2", "stable", "r2", True)],
    }
    with hosts(etcd, "lb1", "lb2") as views:
        for command in commands:
            where = f"export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=http://{etcd.endpoint}"
            whole = f"{where}; {folder}; {command}"
            subprocess.run(["bash", "-euc", whole], check=True, timeout=30, capture_output=True)
            for words in [words for words in documented if words in command]:
                for host, *wanted in documented.pop(words):
                    got = views[host]
                    got.wait(lambda _, got=got, w=wanted: list(brief(got.items[-1])) == w)
    assert documented == {}


def brief(view: View) -> tuple[str, str, bool]:
    assert view.steering.rejections == ()
    return view.steering.track, view.steering.release, bool(view.steering.freeze)


@contextmanager
def hosts(etcd: EtcdServer, *names: str) -> Iterator[dict[str, Received[View]]]:
    """Hosts of the documentation's fleet, and what each is handed."""
    views: dict[str, Received[View]] = {name: Received() for name in names}
    settings = EtcdSettings(endpoints=(etcd.endpoint,))
    followers = [
        Follower(settings, "edge", LocalHost(name, None, "live"), NOTHING, views[name])
        for name in names
    ]
    for follower in followers:
        follower.start()
    try:
        yield views
    finally:
        assert all(follower.stop() for follower in followers)
