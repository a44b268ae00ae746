# SPDX-License-Identifier: Apache-2.0
"""What has arrived since the last look: counted whole, told within bounds, with its traces."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.documents.keyspaces import WEB, check, snapshot
from tidegate.agent.mailbox import Mailbox
from tidegate.keyspace.changed_keys import between, traceparent_of
from tidegate.keyspace.documents.decode import Fault, decode
from tidegate.model.documents import PoolDocument
from tidegate.model.generation import NOTHING
from tidegate.model.received_writes import (
    MOST_KEYS,
    MOST_TRACES,
    NO_WRITES,
    KeyWrite,
    ReceivedWrites,
    collect,
    merge,
)
from tidegate.model.steering import TrackDocument
from tidegate.model.values import Document, Snapshot, Steering, View
from tidegate.planner import plan

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

writes = st.lists(
    st.tuples(
        st.sampled_from([f"k{i}" for i in range(12)]),
        st.sampled_from(["", *(f"t{i}" for i in range(40))]),
    ),
    max_size=60,
).map(lambda found: [KeyWrite(key, number, t) for number, (key, t) in enumerate(found, 1)])


@given(writes, st.integers(0, 60))
@example([KeyWrite(key, number) for number, key in enumerate([*["k0"] * 8, "k1"], 1)], 1)
def test_it_does_not_matter_how_writes_are_coalesced(found: list[KeyWrite], cut: int) -> None:
    """Together or in two parts: the same number, keys and traces, the latest trace last."""
    whole = collect(found, 7)
    parts = merge(collect(found[:cut], 7), collect(found[cut:], 7))
    assert whole.total == len(found)
    assert len(whole.keys) <= MOST_KEYS
    assert set(whole.keys) <= {write.key for write in found}
    traces = list(dict.fromkeys(w.traceparent for w in reversed(found) if w.traceparent))
    expected = list(reversed(traces[:MOST_TRACES]))
    for each in (whole, parts):
        assert [origin.traceparent for origin in each.traced] == expected
    assert parts.total == whole.total
    assert parts.keys == whole.keys


def test_of_the_moments_the_first_and_the_last_stay() -> None:
    """A change began when its first write was received, and each trace with its own."""
    both = merge(collect([KeyWrite("a", 1, TRACE)], 100), collect([KeyWrite("b", 2, TRACE)], 250))
    assert (both.began, both.received) == (100, 250)
    assert [tuple(origin) for origin in both.traced] == [(TRACE, 2, 100, ("a", "b"), 2)]
    assert merge(NO_WRITES, both) is both is merge(both, NO_WRITES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TRACE.upper(), "it must be a W3C traceparent of version 00"),
        (TRACE[:-1], "it must be a W3C traceparent of version 00"),
        ("01" + TRACE[2:], "it must be a W3C traceparent of version 00"),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", "has a trace id of zeros"),
        (f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01", "has a parent id of zeros"),
    ],
)
def test_what_is_no_trace_context_is_refused_by_name(text: str, words: str) -> None:
    """A control system that writes it learns what is wrong; nobody begins a trace of zeros."""
    for kind, fields in ((PoolDocument, {}), (TrackDocument, {"release": "r1"})):
        found = decode(json.dumps({**fields, "traceparent": text}).encode(), kind)
        assert isinstance(found, list)
        assert isinstance(found[0], Fault)
        assert found[0].field == "traceparent"
        assert words in found[0].reason
    assert traceparent_of(json.dumps({"traceparent": text}).encode()) == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (json.dumps({"traceparent": TRACE}).encode(), TRACE),
        (json.dumps({"traceparent": TRACE, "unknown": [1]}).encode(), TRACE),
        (b'{"traceparent": 1}', ""),
        (b'["traceparent"]', ""),
        (b'{"traceparent": "\xff"}', ""),
        (b"[" * 100_000 + b'"traceparent"', ""),
        (b"{}", ""),
    ],
)
def test_a_refused_document_still_says_whose_it_was(value: bytes, expected: str) -> None:
    """So its refusal is told in that trace; what cannot be read is told in none."""
    assert traceparent_of(value) == expected


def test_a_trace_context_alone_makes_no_generation() -> None:
    """It has no part in values, so the same number and digest stay in force."""
    plain = check(WEB)
    traced = {key: {**document, "traceparent": TRACE} for key, document in WEB.items()}  # type: ignore[dict-item]
    again = check(traced, plain.desired)  # type: ignore[arg-type]
    assert (again.rejections, again.desired) == ((), plain.desired)
    first = plan(plain.desired, NOTHING, 1000)
    second = plan(again.desired, first, 1001)
    assert (second.number, second.digest) == (first.number, first.digest)


def test_two_lists_differ_in_what_was_written_and_deleted() -> None:
    """In the order of revisions; what was deleted counts as of the list that has it no more."""
    before = snapshot({"pools/a": {}, "pools/b": {}}).documents
    traced = json.dumps({"traceparent": TRACE}).encode()
    after = {"pools/a": before["pools/a"], "pools/c": Document(traced, 30), "x": Document(b"", 20)}
    found = between(before, after, 40, 5)
    assert (found.total, found.keys) == (3, ("x", "pools/c", "pools/b"))
    assert found.traced[0].revision == 30
    assert between(before, before, 40, 5) == NO_WRITES


def view(writes: ReceivedWrites) -> View:
    return View(Steering(1, "stable", "live"), Snapshot(1, {}), writes)


def test_a_view_that_nobody_read_leaves_its_arrivals_to_the_next() -> None:
    """The loop sees one state, and every change that led to it."""
    box = Mailbox()
    box.deliver(view(collect([KeyWrite("a", 1, TRACE)], 10)))
    box.deliver(view(collect([KeyWrite("b", 2)], 20)))
    seen = box.collect().view
    assert seen is not None
    assert (seen.writes.total, seen.writes.keys) == (2, ("a", "b"))
    assert len(seen.writes.traced) == 1
    box.deliver(view(NO_WRITES))
    again = box.collect().view
    assert again is not None
    assert again.writes == NO_WRITES
    box.close()
