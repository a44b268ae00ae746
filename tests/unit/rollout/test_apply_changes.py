# SPDX-License-Identifier: Apache-2.0
"""What it takes to make a release equal to some documents, and what hosts' statuses answer."""

import json
from typing import Any

import pytest

from tidegate.model.values import Document, Snapshot
from tidegate.rollout.apply import MAX_BYTES, answers, difference, traced, transactions
from tidegate.rollout.fleet import observe


def current(*keys: str) -> dict[str, Document]:
    return {key: Document(b'{"a": 1}', number) for number, key in enumerate(keys, 5)}


def test_only_what_differs_is_written() -> None:
    """A document that is laid out in another way says the same; one that is no JSON differs."""
    there = current("pools/a", "pools/b", "pools/c") | {"pools/d": Document(b"{", 9)}
    wanted = {"pools/a": b'{"a":1}', "pools/b": b'{"a":2}', "pools/d": b"{}", "pools/e": b"{}"}
    assert difference(there, wanted) == (("pools/e",), ("pools/b", "pools/d"), ("pools/c",))
    assert not difference(there, {key: document.value for key, document in there.items()})


def test_a_trace_is_no_difference_but_goes_with_what_differs() -> None:
    """A release that was applied in a trace is as the files have it that it came from."""
    context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    wanted = {"pools/a": b'{"a":1}', "pools/b": b'{"a":2, "traceparent": null}'}
    written = traced(wanted, context)
    assert json.loads(written["pools/a"]) == {"a": 1, "traceparent": context}
    assert json.loads(written["pools/b"]) == {"a": 2, "traceparent": context}
    there = {key: Document(value, 5) for key, value in written.items()}
    assert not difference(there, wanted)
    assert difference(there, {**wanted, "pools/a": b"{}"}).changed == ("pools/a",)


def test_each_write_expects_what_was_read() -> None:
    """A new key must still be absent, and the others of the revision that was seen."""
    there = current("pools/old", "vips/a")
    wanted = {"vips/a": b"{}", "pools/new": b"{}"}
    (part,) = transactions("r1", difference(there, wanted), there, wanted)
    assert [tuple(write) for write in part] == [
        ("config/r1/pools/new", b"{}", 0),
        ("config/r1/vips/a", b"{}", 6),
        ("config/r1/pools/old", None, 5),
    ]


def test_a_large_change_is_whole_in_each_part() -> None:
    """Pools come before their backends, those before VIPs; what goes, goes the other way round."""
    names = [f"{number:03}" for number in range(60)]
    kinds = [("pools/{}",), ("pools/{}/backends/a",), ("vips/{}",)]
    wanted = {kind.format(f"new{name}"): b"{}" for (kind,) in kinds for name in names}
    there = current(*(kind.format(f"old{name}") for (kind,) in kinds for name in names))
    parts = transactions("r1", difference(there, wanted), there, wanted)
    assert [len(part) for part in parts] == [128, 128, 104]
    kept = set(there)
    for part in parts:
        for write in part:
            key = write.key.removeprefix("config/r1/")
            (kept.discard if write.value is None else kept.add)(key)
            for each in kept:  # at no moment does anything point at what is not there
                pool = each.replace("vips/", "pools/").split("/backends/")[0]
                assert pool in kept
    assert kept == set(wanted)


def test_a_transaction_fits_a_request_of_etcd() -> None:
    """Large documents are spread over transactions by their bytes."""
    wanted = {f"vips/{number}": b"x" * (MAX_BYTES // 4) for number in range(9)}
    parts = transactions("r1", difference({}, wanted), {}, wanted)
    assert [len(part) for part in parts] == [3, 3, 3]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ({}, "ack"),
        ({"release_revision": 19}, "waiting"),
        ({"state": "stale"}, "waiting"),
        ({"state": "frozen", "reason": "by hand"}, "frozen"),
        ({"state": "degraded", "refusals": [{"key": "vips/a", "reason": "no"}]}, "nack"),
        ({"state": "degraded", "reason": "no gateway"}, "nack"),
    ],
)
def test_a_status_is_an_answer(status: dict[str, Any], kind: str) -> None:
    """Only hosts that follow the release answer, and only about what they have seen."""
    told = {"release": "live", "state": "synced", "release_revision": 20, **status}
    keys = {
        "status/lb1": Document(json.dumps(told).encode(), 1),
        "status/lb2": Document(json.dumps({**told, "release": "other"}).encode(), 1),
    }
    (answer,) = answers(observe(Snapshot(30, keys)), "live", 20)
    assert (answer.host, answer.kind) == ("lb1", kind)
