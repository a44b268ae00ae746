# SPDX-License-Identifier: Apache-2.0
"""What the keys beside the releases tell a host, and what becomes of those that say nonsense."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.keyspace.steering import Accepted, LocalHost, steer
from tidegate.model.values import Document, Override, Snapshot, Steering

ME = LocalHost("lb1", None, "live")
START = Accepted()


def snapshot(revision: int = 9, **keys: object) -> Snapshot:
    """Return keys, with `/` for `__`; a value that is not a string is written as JSON."""
    return Snapshot(
        revision,
        {
            key.replace("__", "/"): Document(
                (value if isinstance(value, str) else json.dumps(value)).encode(), 7, 7
            )
            for key, value in keys.items()
        },
    )


def told(me: LocalHost = ME, last: Accepted = START, **keys: object) -> Steering:
    return steer(snapshot(**keys), me, last)[0]


def after(*moments: Mapping[str, object], me: LocalHost = ME, last: Accepted = START) -> Steering:
    """Return the steering after the keys were these, one after another."""
    steering = None
    for keys in moments:
        steering, last = steer(snapshot(**keys), me, last)
    assert steering is not None
    return steering


def refused(steering: Steering) -> list[tuple[str, str]]:
    return [(rejection.key, rejection.field) for rejection in steering.rejections]


def test_without_keys_a_host_follows_the_release_of_its_file() -> None:
    """Who uses no tracks need not know of them, whatever track the file names."""
    for me in (ME, ME._replace(track="edge")):
        steering = told(me)
        assert (steering.release, steering.pointer, steering.rejections) == ("live", "", ())
    assert told().track == "stable"


def test_the_hosts_key_beats_the_file_and_the_file_beats_stable() -> None:
    """A host's track is that of its own key, else of its file, else `stable`."""
    tracks = {f"tracks__{name}": {"release": f"r-{name}"} for name in ("stable", "file", "own")}
    me = ME._replace(track="file")
    assert told(**tracks).release == "r-stable"
    assert told(me, **tracks).release == "r-file"
    assert told(me, **tracks, hosts__lb1={"freeze": False}).release == "r-file"
    own = told(me, **tracks, hosts__lb1={"track": "own"})
    assert (own.track, own.release, own.pointer) == ("own", "r-own", "own")


def test_stable_needs_no_key_while_others_try_a_canary() -> None:
    """Hosts that nobody moved are not refused anything because a canary track is there."""
    steering = told(tracks__canary={"release": "r8"})
    assert (steering.track, steering.release, steering.rejections) == ("stable", "live", ())


def test_a_track_without_a_key_is_refused_by_name() -> None:
    """The host stays on the release that it has, and on the file's one at the start."""
    keys = {"tracks__canary": {"release": "r8"}}
    first = told(hosts__lb1={"track": "nothing"}, **keys)
    assert (first.release, refused(first)) == ("live", [("tracks/nothing", "")])
    moved = after(
        {"hosts__lb1": {"track": "canary"}, **keys}, {"hosts__lb1": {"track": "nothing"}, **keys}
    )
    assert (moved.release, moved.pointer) == ("r8", "canary")
    assert refused(moved) == [("tracks/nothing", "")]
    assert "stays on the release r8" in moved.rejections[0].reason


def test_a_pointer_that_vanished_sends_nobody_elsewhere() -> None:
    """Deleting the key of `stable` is refused, also after a restart; writing it is obeyed."""
    pointed = {"tracks__stable": {"release": "r7"}}
    for steering in (after(pointed, {}), told(last=Accepted("r7", "stable"))):
        assert (steering.release, steering.pointer) == ("r7", "stable")
        assert refused(steering) == [("tracks/stable", "")]
    back = after(pointed, {}, {"tracks__stable": {"release": "live"}}, {})
    assert (back.release, back.pointer, back.rejections) == ("live", "", ())


def test_a_host_that_leaves_a_track_has_the_files_release_again() -> None:
    """Its key's deletion is an order, not an accident, and so is another file."""
    keys = {"tracks__canary": {"release": "r8"}}
    steering = after({"hosts__lb1": {"track": "canary"}, **keys}, keys)
    assert (steering.track, steering.release, steering.rejections) == ("stable", "live", ())
    assert told(ME._replace(release="next"), Accepted("live", "")).release == "next"


@pytest.mark.parametrize("broken", ["{", '{"releese": "r9"}', '{"release": ""}', "[]"])
def test_a_broken_track_leaves_its_last_good_value(broken: str) -> None:
    """The refusal names the key; other hosts' broken tracks are no business of this one."""
    good = {"tracks__stable": {"release": "r7"}}
    steering = after(good, {"tracks__stable": broken})
    assert (steering.release, refused(steering)[0][0]) == ("r7", "tracks/stable")
    assert steering.rejections[0].revision == 7
    assert told(tracks__stable=broken, last=Accepted("r7", "stable")).release == "r7"
    assert told(tracks__stable=broken).release == "live"
    assert told(**good, tracks__canary=broken).rejections == ()


def test_a_broken_host_document_moves_nobody() -> None:
    """The last good one stays; after a restart the track that named the release in force."""
    tracks = {"tracks__canary": {"release": "r8"}, "tracks__stable": {"release": "r7"}}
    good = {"hosts__lb1": {"track": "canary", "freeze": True}, **tracks}
    steering = after(good, {**good, "hosts__lb1": '{"track": 5}'})
    assert (steering.track, steering.release) == ("canary", "r8")
    assert steering.freeze
    assert refused(steering) == [("hosts/lb1", "track")]
    again = told(hosts__lb1="{", **tracks, last=Accepted("r6", "canary"))
    assert (again.track, again.release) == ("canary", "r8")


def test_freezes_of_host_and_fleet_add_up() -> None:
    """Each says which key it is, and why; one that is lifted leaves the other."""
    host, fleet = {"freeze": True, "reason": "new switch"}, {"freeze": True}
    both = told(hosts__lb1=host, fleet=fleet).freeze
    assert both == "hosts/lb1 freezes this host: new switch; fleet freezes all"
    assert told(fleet=fleet).freeze == "fleet freezes all"
    assert told(hosts__lb1={"freeze": False}, fleet={}).freeze == ""
    broken = after({"fleet": fleet}, {"fleet": '{"freeze": "no"}'})
    assert (broken.freeze, refused(broken)) == ("fleet freezes all", [("fleet", "freeze")])


def test_overrides_are_read_and_refused_one_by_one() -> None:
    """Times become whole seconds; a broken one keeps its last good value, a deleted one is gone."""
    good = {"guard": "removal", "pool": "web", "expires_at": "2026-01-31T12:00:00.5Z"}
    wanted = (Override("a", "removal", "web", 1_769_860_800),)
    assert told(overrides__a=good).overrides == wanted
    bad = {**good, "expires_at": "2026-02-31T12:00:00Z"}
    steering = after({"overrides__a": good}, {"overrides__a": bad, "overrides__b": bad})
    assert steering.overrides == wanted
    assert refused(steering) == [("overrides/a", "expires_at"), ("overrides/b", "expires_at")]
    assert "2026-02-31" in steering.rejections[0].reason
    assert after({"overrides__a": good}, {}).overrides == ()


def test_keys_that_are_none_are_refused() -> None:
    """A key below tracks or overrides that is no name is named, not ignored."""
    keys = {"tracks/a/b": {"release": "r"}, "overrides/-": {}}
    assert refused(told(**keys)) == [("overrides/-", ""), ("tracks/a/b", "")]


_VALUES = st.one_of(
    st.text(max_size=20),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ).map(json.dumps),
    st.sampled_from(
        [
            '{"release": "r1"}',
            '{"release": "r2"}',
            '{"track": "canary"}',
            '{"track": "stable", "freeze": true}',
            '{"guard": "vips", "expires_at": "2026-01-31T12:00:00Z"}',
        ]
    ),
)
_KEYS = st.dictionaries(
    st.sampled_from(
        ["tracks/stable", "tracks/canary", "hosts/lb1", "fleet", "overrides/a", "tracks/x/y"]
    ),
    _VALUES,
)


@given(st.lists(_KEYS, min_size=1, max_size=5))
def test_whatever_is_written_a_host_has_a_release_and_a_reason(
    moments: list[dict[str, str]],
) -> None:
    """No history of keys leaves a host without a release that somebody named, or raises."""
    last = Accepted("r0", "stable")
    for keys in moments:
        steering, last = steer(snapshot(**keys), ME, last)
        assert steering.release in {"r0", "r1", "r2", "live"}
        assert (last.release, last.pointer) == (steering.release, steering.pointer)
        again, _ = steer(snapshot(**dict(reversed(keys.items()))), ME, last)
        assert (again.release, again.freeze) == (steering.release, steering.freeze)
