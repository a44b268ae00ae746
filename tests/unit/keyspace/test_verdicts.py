# SPDX-License-Identifier: Apache-2.0
"""Verdicts between etcd and values."""

import pytest

from tidegate.keyspace.status import verdicts
from tidegate.model.health import Vote
from tidegate.model.values import BackendKey, Document, Snapshot

GOOD = verdicts.encode("unhealthy", "timeout", "No answer.", 1_700_000_000.9, has_recovered=False)


def read(documents: dict[str, bytes]) -> tuple[dict[str, object], list[str]]:
    found, refused = verdicts.votes(
        Snapshot(9, {key: Document(value, 7) for key, value in documents.items()})
    )
    return dict(found), [f"{each.key}: {each.reason}" for each in refused]


def test_what_a_host_writes_is_a_vote() -> None:
    """Host, pool and backend are in the key; the second is rounded down, for all alike."""
    assert read({"lb1/web/b1": GOOD}) == (
        {"lb1": {BackendKey("web", "b1"): Vote(is_healthy=False, since=1_700_000_000)}},
        [],
    )


def test_a_recovery_is_written() -> None:
    """A backend that was dead before is told from one that was never."""
    value = verdicts.encode("healthy", "passed", "", 5, has_recovered=True)
    found, _ = read({"lb1/web/b1": value})
    assert found == {"lb1": {BackendKey("web", "b1"): Vote(True, 5, True)}}  # noqa: FBT003


@pytest.mark.parametrize("state", ["initial", "unused", "draining"])
def test_what_is_not_decided_is_no_vote(state: str) -> None:
    """A host that still checks, or does not, has no say."""
    value = verdicts.encode(state, "checking", "", 5, has_recovered=False)  # type: ignore[arg-type]
    assert read({"lb1/web/b1": value}) == ({}, [])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("lb1/web", GOOD, "health/<host>/<pool>/<backend>"),
        ("lb1/web/b1/x", GOOD, "health/<host>/<pool>/<backend>"),
        ("lb1/web/b 1", GOOD, "health/<host>/<pool>/<backend>"),
        ("lb1/web/b1", b"{", "not valid JSON"),
        ("lb1/web/b1", b'{"state": "dead"}', "state is"),
        (
            "lb1/web/b1",
            GOOD.replace(b"2023-11-14", b"2023-11-99"),
            "since is 2023-11-99",
        ),
    ],
)
def test_what_cannot_be_read_is_no_vote_and_is_named(key: str, value: bytes, words: str) -> None:
    """One bad key never stops the others."""
    found, refused = read({key: value, "lb2/web/b2": GOOD})
    assert set(found) == {"lb2"}
    assert len(refused) == 1
    assert refused[0].startswith(f"health/{key}: ")
    assert words in refused[0]


def test_a_long_reason_is_shortened() -> None:
    """The document stays what its schema allows."""
    value = verdicts.encode("unhealthy", "error", "x" * 9999, 5, has_recovered=False)
    assert read({"lb1/web/b1": value})[1] == []


def test_a_verdict_that_is_too_long_is_refused_for_that() -> None:
    """Its reason is why its value was not kept, and others count."""
    there = {"lb1/web/b1": Document(b"", 7, 7, "too long"), "lb2/web/b1": Document(GOOD, 7)}
    found, refused = verdicts.votes(Snapshot(9, there))
    assert set(found) == {"lb2"}
    assert [each.reason for each in refused] == ["too long"]
