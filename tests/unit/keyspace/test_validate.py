# SPDX-License-Identifier: Apache-2.0
"""A whole snapshot: what is in force after it, and everything that was refused."""

import json
import random
import time
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.documents.keyspaces import WEB, Contents, check, refused, snapshot, vip
from tidegate.keyspace.documents.parse_cache import ParseCache
from tidegate.keyspace.documents.validate import validate
from tidegate.model.values import EMPTY, BackendKey, Document, Snapshot


def test_good_documents_become_what_is_wanted() -> None:
    """Values have the documents' content, their names and the snapshot's revision."""
    desired, rejections = check(WEB)
    assert rejections == ()
    assert desired.revision == 1000
    assert desired.vips["shop"].address == ip_address("192.0.2.1")
    assert desired.pools["web"].deregistration_delay == 300
    backend = desired.backends[BackendKey("web", "a")]
    assert (backend.weight, backend.state) == (100, "active")


def test_a_bad_document_keeps_the_last_good_value_of_its_key() -> None:
    """Each kind of key stays as it was, and each refusal names its key and field."""
    good = check(WEB).desired
    bad = {
        "pools/web": b"{",
        "pools/web/backends/a": {"address": "198.51.100.1", "weight": -1},
        "vips/shop": vip(port=70000),
    }
    desired, rejections = check(bad, good)
    assert (desired.vips, desired.pools, desired.backends) == (
        good.vips,
        good.pools,
        good.backends,
    )
    assert [(item.key, item.field, item.stage, item.revision) for item in rejections] == [
        ("pools/web", "", "decode", 2),
        ("pools/web/backends/a", "weight", "schema", 3),
        ("vips/shop", "port", "schema", 4),
    ]


def test_a_bad_document_without_a_last_good_value_is_absent() -> None:
    """Without a last value there is nothing to keep, and what needs the pool is refused too."""
    validation = check(WEB | {"pools/web": b"{"})
    assert (validation.desired.vips, validation.desired.pools) == ({}, {})
    assert validation.desired.backends == {}
    assert refused(validation) == [
        ("pools/web", "", "decode"),
        ("pools/web/backends/a", "", "reference"),
        ("vips/shop", "pool", "reference"),
    ]


def test_a_deleted_key_is_not_kept() -> None:
    """Last good values are for bad documents, not for deleted ones."""
    good = check(WEB).desired
    desired, rejections = check({"pools/web": {}}, good)
    assert (desired.vips, desired.backends, rejections) == ({}, {}, ())


def test_keys_of_another_shape_are_refused() -> None:
    """A key that Tidegate does not know is refused, whatever it holds."""
    strange = ("vips", "vips/", "vips/a/b", "vip/a", "pools/web/backends", "pools/web/x/a")
    names = ("vips/-a", "pools/a_", "pools/web/backends/" + "x" * 64, "pools/a b/backends/c")
    validation = check(WEB | dict.fromkeys(strange + names, b"{}"))
    assert refused(validation) == sorted((key, "", "schema") for key in strange + names)
    assert all("a name is 1 to 63" in r.reason for r in validation.rejections if r.key in names)
    assert set(validation.desired.vips) == {"shop"}


@pytest.mark.parametrize("key", ["", "vips/", "pools/", "pools//backends/a", "pools/web/backends/"])
def test_a_key_without_a_name_is_named_all_the_same(key: str) -> None:
    """Its refusal says which key it is; that of the bare prefix would be empty."""
    (rejection,) = check(WEB | {key: b"{}"}).rejections
    assert rejection.key == (key or "(no name)")
    assert "name" in rejection.reason


def test_a_vip_needs_a_pool_that_exists() -> None:
    """A new reference to a pool that is not there is refused, and the last good VIP stays."""
    good = check(WEB).desired
    validation = check(WEB | {"vips/shop": vip("wbe")}, good)
    assert validation.desired.vips == good.vips
    assert refused(validation) == [("vips/shop", "pool", "reference")]
    assert '"wbe", which does not exist' in validation.rejections[0].reason


def test_a_backend_needs_its_pool() -> None:
    """A backend below a pool without a document is refused."""
    validation = check({"pools/web/backends/a": {"address": "198.51.100.1"}})
    assert validation.desired.backends == {}
    assert refused(validation) == [("pools/web/backends/a", "", "reference")]


def test_a_deleted_pool_stays_while_a_vip_uses_it() -> None:
    """The pool's last value stays, its backends follow their keys, and its key is refused."""
    good = check(WEB | {"pools/web/backends/b": {"address": "198.51.100.2"}}).desired
    left = {key: value for key, value in WEB.items() if key != "pools/web"}
    validation = check(left, good)
    assert validation.desired.vips == good.vips
    assert validation.desired.pools == good.pools
    assert set(validation.desired.backends) == {BackendKey("web", "a")}
    assert refused(validation) == [("pools/web", "", "reference")]
    assert validation.rejections[0].revision == 1000
    again = validate(snapshot(left, 1001), validation.desired)
    assert again.desired.pools == good.pools


def test_a_deleted_pool_goes_when_its_last_vip_goes() -> None:
    """A pool that no VIP uses is deleted at once, and new VIPs cannot revive it."""
    good = check(WEB).desired
    validation = check({"vips/new": vip(last=9)}, good)
    assert (validation.desired.pools, validation.desired.vips) == ({}, {})
    assert refused(validation) == [("vips/new", "pool", "reference")]


def test_a_vip_that_falls_back_keeps_its_old_pool() -> None:
    """A VIP that moved to a missing pool stays on its old one, even if that was deleted too."""
    good = check(WEB).desired
    validation = check({"vips/shop": vip("api")}, good)
    assert validation.desired.vips == good.vips
    assert validation.desired.pools == good.pools
    assert refused(validation) == [
        ("pools/web", "", "reference"),
        ("vips/shop", "pool", "reference"),
    ]


def test_an_endpoint_belongs_to_the_vip_that_was_created_first() -> None:
    """Of two new VIPs with one address, port and protocol the older key wins."""
    contents = {"pools/web": {}, "vips/z": vip(), "vips/a": vip()}
    validation = check(contents)
    assert set(validation.desired.vips) == {"z"}
    assert refused(validation) == [("vips/a", "address", "reference")]
    assert "VIP z" in validation.rejections[0].reason


def test_one_transaction_with_a_conflict_is_decided_by_name() -> None:
    """At the same revision the first name wins; other ports and protocols do not conflict."""
    value = json.dumps(vip()).encode()
    documents = {name: Document(value, 5) for name in ("vips/b", "vips/a")}
    documents["pools/web"] = Document(b"{}", 2)
    documents["vips/c"] = Document(json.dumps(vip(port=80)).encode(), 5)
    documents["vips/d"] = Document(json.dumps(vip() | {"protocol": "udp"}).encode(), 5)
    validation = validate(Snapshot(5, documents), EMPTY)
    assert set(validation.desired.vips) == {"a", "c", "d"}


def test_the_same_address_in_another_spelling_conflicts() -> None:
    """Addresses are compared, not texts."""
    one = vip() | {"address": "2001:db8::1"}
    other = vip() | {"address": "2001:0DB8:0:0::1"}
    assert set(check({"pools/web": {}, "vips/a": one, "vips/b": other}).desired.vips) == {"a"}


def test_the_loser_of_a_conflict_keeps_its_last_good_value() -> None:
    """A VIP that moves to a taken endpoint stays where it was."""
    good = check({"pools/web": {}, "vips/a": vip(last=1), "vips/b": vip(last=2)}).desired
    validation = check({"pools/web": {}, "vips/a": vip(last=1), "vips/b": vip(last=1)}, good)
    assert validation.desired.vips == good.vips
    assert refused(validation) == [("vips/b", "address", "reference")]


def test_a_loser_keeps_its_endpoint_from_who_came_for_it() -> None:
    """What is in force stays, though its VIP tried to move away and another wants its place."""
    good = check({"pools/web": {}, "vips/a": vip(last=1), "vips/b": vip(last=2)}).desired
    contents = {
        "pools/web": {},
        "vips/a": vip(last=1),
        "vips/b": vip(last=1),
        "vips/c": vip(last=2),
    }
    validation = check(contents, good)
    assert validation.desired.vips == good.vips
    assert refused(validation) == [
        ("vips/b", "address", "reference"),
        ("vips/c", "address", "reference"),
    ]


def test_a_typo_does_not_hand_an_address_to_another_vip() -> None:
    """A VIP whose document broke keeps its address, and the newcomer is refused."""
    good = check({"pools/web": {}, "vips/b": vip()}).desired
    validation = check({"pools/web": {}, "vips/a": vip(), "vips/b": b"{"}, good)
    assert validation.desired.vips == good.vips
    assert [r.key for r in validation.rejections] == ["vips/a", "vips/b"]


def test_an_edit_does_not_hand_an_address_to_another_vip() -> None:
    """A VIP that is written again keeps its address from a refused duplicate that is older now."""
    value = json.dumps(vip()).encode()
    documents = {
        "pools/web": Document(b"{}", 2, 2),
        "vips/a": Document(value, 4, 4),
        "vips/b": Document(value, 9, 3),
    }
    for last in (EMPTY, validate(Snapshot(9, {**documents}), EMPTY).desired):
        assert set(validate(Snapshot(9, documents), last).desired.vips) == {"b"}


def test_all_faults_of_all_keys_are_listed_in_one_pass() -> None:
    """One bad key hides no other."""
    contents: Contents = {f"pools/p{i}": b"no" for i in range(50)} | {
        f"vips/v{i}": {"port": -1, "colour": 1} for i in range(50)
    }
    assert len(check(contents).rejections) == 50 + 50 * 5


POOLS = st.sampled_from(["p", "q", "r"])
VALUES = st.one_of(
    st.just(b"{"),
    st.just(b"{}"),
    st.builds(
        lambda pool, last, port, routes: json.dumps(
            vip(pool, last, port) | {"source_routes": routes}
        ).encode(),
        POOLS,
        st.integers(1, 3),
        st.sampled_from([80, 70000]),
        st.dictionaries(st.just("10.0.0.0/8"), POOLS),
    ),
    st.builds(
        lambda last, weight, server_id: json.dumps(
            {"address": f"198.51.100.{last}", "weight": weight, "quic_server_id": server_id}
        ).encode(),
        st.integers(1, 3),
        st.sampled_from([1, -1]),
        st.sampled_from([None, "0a", "0A", "0b"]),
    ),
)
KEYS = st.one_of(
    st.sampled_from(["vips/a", "vips/b", "vips/c", "settings", "x"]),
    POOLS.map(lambda pool: f"pools/{pool}"),
    st.builds(lambda pool, name: f"pools/{pool}/backends/{name}", POOLS, st.sampled_from("ab")),
)
STORES = st.dictionaries(KEYS, st.builds(Document, VALUES, st.integers(1, 9)))


@given(st.lists(STORES, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_any_history_is_consistent_and_independent_of_order(
    stores: list[dict[str, Document]], shuffler: random.Random
) -> None:
    """After any writes references hold, endpoints are unique; order and cache do not matter."""
    last, cache = EMPTY, ParseCache()
    for revision, store in enumerate(stores, start=10):
        validation = validate(Snapshot(revision, store), last)
        assert validate(Snapshot(revision, store), last, cache) == validation
        items = list(store.items())
        shuffler.shuffle(items)
        assert validate(Snapshot(revision, dict(items)), last) == validation
        desired = validation.desired
        assert all(desired.pools.keys() >= {*vip.pools} for vip in desired.vips.values())
        assert all(key.pool in desired.pools for key in desired.backends)
        endpoints = [(vip.network, vip.port, vip.protocol) for vip in desired.vips.values()]
        assert len(set(endpoints)) == len(endpoints)
        server_ids = [
            (key.pool, one.quic_server_id)
            for key, one in desired.backends.items()
            if one.quic_server_id
        ]
        assert len(set(server_ids)) == len(server_ids)
        assert {f"vips/{name}" for name in desired.vips} <= set(store)
        last = desired


def test_ten_thousand_documents_are_validated_within_a_second() -> None:
    """A large keyspace does not hold up the agent: the CPU time of the best of five passes."""
    contents: Contents = {f"pools/p{i}": {} for i in range(100)}
    contents |= {f"vips/v{i}": vip(f"p{i}", i + 1) for i in range(100)}
    contents |= {
        f"pools/p{i % 100}/backends/b{i}": {"address": f"10.0.{i // 250}.{i % 250 + 1}"}
        for i in range(9800)
    }
    large = snapshot(contents, 20_000)
    times = []
    for _ in range(5):
        start = time.thread_time()
        assert len(validate(large, EMPTY).desired.backends) == 9800
        times.append(time.thread_time() - start)
    assert min(times) < 1


def test_what_has_not_changed_is_not_read_again() -> None:
    """With a cache, what is read of a document that did not change is the very same object."""
    cache = ParseCache()
    first = validate(snapshot(WEB), EMPTY, cache).desired
    changed = WEB | {"pools/web/backends/a": {"address": "198.51.100.9"}}
    second = validate(snapshot(changed), first, cache).desired
    assert second.vips["shop"] is first.vips["shop"]
    assert second.pools["web"] is first.pools["web"]
    assert str(second.backends[BackendKey("web", "a")].address) == "198.51.100.9"
    assert validate(snapshot({}), second, cache).desired.pools == {}
