# SPDX-License-Identifier: Apache-2.0
"""Votes of others are dated by this host's own clock, whatever theirs say."""

import msgspec
import pytest

from tidegate.agent.health.ballots import Ballots, Received
from tidegate.health.limits import Limits, eject
from tidegate.health.poll import Poll
from tidegate.keyspace.status import verdicts
from tidegate.model.health import Vote
from tidegate.model.values import BackendKey, Document, Snapshot

PREFIX = "/tidegate/f/health/"
WALL, NOW = 1_700_000_000.0, 1000.0
AHEAD = WALL - NOW
B1 = BackendKey("web", "b1")
POOL = [BackendKey("web", f"b{number}") for number in range(1, 9)]


class Store:
    """A store whose snapshots a host receives; `at` is a second of the host's own clock."""

    def __init__(self, host: str = "lb1") -> None:
        self.poll = Poll()
        self.ballots = Ballots(host, PREFIX, self.poll)
        self.documents: dict[str, Document] = {}
        self.revision = 1

    def put(self, key: str, value: bytes | None) -> None:
        """Write a key, or delete it."""
        self.revision += 1
        self.documents = {k: v for k, v in self.documents.items() if k != key}
        if value is not None:
            self.documents[key] = Document(value, self.revision)

    def verdict(self, state: str, wall: float, key: str = "lb2/web/b1", **more: bool) -> None:
        """Write a verdict that claims to be of this second of its writer's wall clock."""
        more.setdefault("has_recovered", False)
        self.put(key, verdicts.encode(state, "external", "", wall, **more))  # type: ignore[arg-type]

    def read(self, at: float = NOW, ahead: float = AHEAD) -> bool:
        """Have it received; return whether that says anything."""
        return self.ballots.take(Snapshot(self.revision, self.documents), Received(at, ahead))

    def since(self, host: str = "lb2", key: BackendKey = B1) -> float:
        """Return the date of a vote."""
        return self.poll.votes[host][key].since


@pytest.mark.parametrize("hour", [3600, -3600])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_foreign_clock_keeps_no_dead_backend_in(hour: int, *, is_first: bool) -> None:
    """An hour ahead or back: it is out at once, on first reading and later."""
    store = Store()
    if not is_first:
        store.read(NOW - 100)
    store.verdict("unhealthy", WALL + hour)
    store.read()
    found = eject(POOL, store.poll.opinion().backends, Limits(), NOW)
    assert found.out == {B1}
    assert not found.waiting


def test_a_vote_is_not_later_than_its_receipt() -> None:
    """What is claimed to be in the future began when it was received."""
    store = Store()
    store.verdict("unhealthy", WALL + 3600)
    store.read()
    assert store.since() == NOW


@pytest.mark.parametrize(("claimed", "dated"), [(-4, -4), (-3600, -10), (3, 0)])
def test_a_vote_is_hardly_earlier_than_its_receipt(claimed: int, dated: int) -> None:
    """A few seconds that a writer needs are believed, an hour is not."""
    store = Store()
    store.read(NOW - 500)
    store.verdict("healthy", WALL + claimed)
    store.read()
    assert store.since() == NOW + dated


def test_what_is_there_at_first_is_as_old_as_it_says() -> None:
    """A host that starts takes out at once what others have long taken out."""
    store = Store()
    for number in range(1, 9):
        store.verdict("unhealthy", WALL - 7200 - number, f"lb2/web/b{number}")
    store.read()
    found = eject(POOL, store.poll.opinion().backends, Limits(0, 2, may_empty=True), NOW)
    assert len(found.out) == len(POOL)


def test_a_clock_that_is_set_back_brings_nobody_back() -> None:
    """Neither the own wall clock, nor a vote that is written anew with another time."""
    store = Store()
    store.read(NOW - 500)
    store.verdict("unhealthy", WALL)
    store.read()
    for hour in (-3600, 3600):
        store.verdict("unhealthy", WALL + hour)
        store.read(NOW + 60, AHEAD + hour)
        found = eject(POOL, store.poll.opinion().backends, Limits(), NOW + 60)
        assert (found.out, found.waiting) == ({B1}, {})
        assert store.since() == NOW


def test_a_vote_that_is_written_again_keeps_its_date() -> None:
    """As after the loss of a lease that nobody noticed: the same state, in force all the while."""
    store = Store()
    store.read(NOW - 500)
    store.verdict("healthy", WALL, has_recovered=True)
    store.read()
    store.verdict("healthy", WALL, has_recovered=True)
    store.read(NOW + 300)
    assert store.since() == NOW


def test_a_change_that_was_not_seen_alone_has_its_own_date() -> None:
    """Dead and alive again between two readings: it is healthy since then, not since long ago."""
    store = Store()
    store.verdict("healthy", WALL - 5000, has_recovered=True)
    store.read()
    store.verdict("healthy", WALL + 58, has_recovered=True)
    store.read(NOW + 60)
    assert store.since() == NOW + 58


def test_own_keys_are_no_votes() -> None:
    """Whoever overwrites a host's own verdict tells it nothing; the key is known to be there."""
    store = Store("lb2")
    store.verdict("healthy", WALL)
    assert store.read()  # the first reading always counts
    assert not store.poll.votes
    assert store.ballots.own_keys.keys == {f"{PREFIX}lb2/web/b1": store.revision}
    store.verdict("unhealthy", WALL)
    assert not store.read()
    assert store.ballots.own_keys.revision == store.revision


JUNK = [b"", b"{", b"[]", b'{"state": "dead"}', b'{"state": "healthy"}', b"\xff" * 99, b"null"]


def test_junk_is_named_and_hides_nothing() -> None:
    """A vote of one writer counts beside a thousand unreadable ones of another."""
    store = Store()
    for number in range(1000):
        store.put(f"aaa/web/b{number}", JUNK[number % len(JUNK)])
    store.put("zzz/web/b1", b"?")
    store.put("zzz", b"?")
    store.verdict("unhealthy", WALL)
    store.read()
    assert store.poll.votes == {"lb2": {B1: Vote(is_healthy=False, since=NOW)}}
    named = [each.key for each in store.ballots.rejections]
    assert (len(named), store.ballots.unreadable) == (200, 1002)
    assert {key.split("/")[1] for key in named[:3]} == {"aaa", "zzz"}, "nobody's fills the list"


def test_a_vote_that_becomes_unreadable_is_taken_back() -> None:
    """It is named with its revision, until it can be read again or is gone."""
    store = Store()
    store.verdict("unhealthy", WALL)
    store.read()
    store.put("lb2/web/b1", b"{}")
    assert store.read()
    assert not store.poll.votes
    (refusal,) = store.ballots.rejections
    assert (refusal.key, refusal.revision) == ("health/lb2/web/b1", store.revision)
    store.put("lb2/web/b1", None)
    assert not store.read(), "no vote more or less"
    assert (store.ballots.rejections, store.ballots.unreadable) == ((), 0)


def test_a_confirmation_is_noted_and_asks_for_nothing() -> None:
    """It is no vote, no refusal, and no reason to judge anew."""
    store = Store()
    store.read(NOW - 1)
    store.put("lb2/@confirmed", verdicts.encode_confirmation(verdicts.Confirmation(7, 5.0)))
    assert not store.read()
    confirmed = store.ballots.confirmed["lb2"]
    assert (confirmed.revision, confirmed.received, confirmed.said.number) == (2, NOW, 7)
    assert not store.ballots.rejections
    store.put("lb2/@confirmed", msgspec.json.encode({"number": -1, "every": 5}))
    store.read()
    assert [each.key for each in store.ballots.rejections] == ["health/lb2/@confirmed"]
