# SPDX-License-Identifier: Apache-2.0
"""A host notices what others do to its keys, and answers at a bounded rate."""

from itertools import pairwise

from tidegate.keyspace.status.own_keys import OwnKeys, OwnKeyWatch


class Host:
    """A host that has written two keys at revisions 5 and 6, and read them; with a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.watch = OwnKeyWatch(lambda: self.now)
        self.watch.wrote({"a": b"1"}, 5)
        self.watch.wrote({"b": b"1"}, 6)
        assert self.read(6, a=5, b=6) == []

    def read(self, revision: int, **keys: int) -> list[str]:
        """Return what others did by a reading at this revision, and have it answered."""
        found = self.watch.foreign(OwnKeys(revision, keys))
        if found is not None:
            self.watch.answer(found)
        return found or []


def test_a_key_that_others_wrote_is_noticed() -> None:
    """By its revision, so also if it says the same, under whatever lease."""
    host = Host()
    assert host.read(7, a=7, b=6) == ["a"]
    assert host.watch.overwritten == 1
    assert "a last" in host.watch.problem


def test_a_key_that_others_deleted_or_added_is_noticed() -> None:
    """What is missing is written, what is too much is to be deleted."""
    assert Host().read(7, b=6) == ["a"]
    assert Host().read(7, a=5, b=6, c=7) == ["c"]


def test_an_older_reading_says_nothing() -> None:
    """What a host has just written is not there yet."""
    host = Host()
    host.watch.wrote({"a": b"2"}, 8)
    assert host.read(7, a=5, b=6) == []
    assert host.read(8, a=8, b=6) == []
    host.watch.wrote({"b": None}, 9)
    assert host.read(8, a=8, b=6) == []
    assert host.read(9, a=8) == []
    assert not host.watch.overwritten


def test_a_fight_is_answered_ever_more_slowly() -> None:
    """At once, then after 1, 2, 4 … 30 s: in ten minutes two dozen times, not thousands."""
    host = Host()
    answers: list[float] = []
    revision = 6
    while host.now < 700:
        revision += 1
        if host.read(revision, a=revision, b=6):
            answers.append(host.now)
            revision += 1
            host.watch.wrote({"a": b"1"}, revision)
        host.now += 0.1
    gaps = [later - earlier for earlier, later in pairwise(answers)]
    assert [round(gap) for gap in gaps[:5]] == [1, 2, 4, 8, 16]
    assert {round(gap) for gap in gaps[5:]} == {30}


def test_peace_is_forgotten_trouble() -> None:
    """A minute later the status does not speak of it, and the next answer comes at once."""
    host = Host()
    assert host.read(7, a=7, b=6)
    host.watch.wrote({"a": b"1"}, 8)
    host.now += 61
    assert host.watch.problem == ""
    assert host.read(9, a=8) == ["b"]


def test_what_was_left_from_before_is_nobodys_doing() -> None:
    """Keys of an agent that ran before are to go, and are no warning."""
    watch = OwnKeyWatch(lambda: 100.0)
    watch.wrote({"a": b"1"}, 5)
    assert watch.foreign(OwnKeys(4, {"old": 2})) is None, "it is older than the last write"
    found = watch.foreign(OwnKeys(5, {"a": 5, "old": 2}))
    assert found == ["old"]
    watch.answer(found)
    assert (watch.overwritten, watch.problem) == (0, "")
