# SPDX-License-Identifier: Apache-2.0
"""Mappings in groups: what two versions share, and that they are like any mapping."""

import random

from tidegate.model.grouped import Edits, changed_values
from tidegate.model.values import BackendKey, ByPool, Document, Documents


def key(text: str) -> BackendKey:
    """Return a key from its text."""
    return BackendKey(*text.split("/"))


ENTRIES = {key(text): object() for text in ("b/2", "a/1", "b/1", "c/9")}


def test_a_mapping_in_groups_is_like_any_other() -> None:
    """It has the entries it was made of, in the order of keys."""
    grouped = ByPool(ENTRIES)
    assert list(grouped) == sorted(ENTRIES)
    assert dict(grouped.items()) == ENTRIES
    assert list(grouped.values()) == [ENTRIES[each] for each in sorted(ENTRIES)]
    assert len(grouped) == len(ENTRIES)
    assert grouped == ENTRIES
    assert grouped == ByPool(ENTRIES)
    assert key("b/1") in grouped
    assert key("b/3") not in grouped
    assert grouped.get(key("z/1")) is None
    assert grouped != {**ENTRIES, key("a/1"): object()}
    more = {key("a/1"): object(), key("d/1"): object()}
    assert grouped | more == ENTRIES | more


def test_versions_share_groups_that_stay() -> None:
    """A replaced group is another; all others, and one with the same entries, are the same."""
    before = ByPool(ENTRIES)
    value = object()
    after = before.replaced({"a": {key("a/2"): value}, "b": dict(before.group("b")), "c": {}})
    assert after.differing(before) == ["a", "c"]
    assert before.differing(after) == ["a", "c"]
    assert after.group("b") is before.group("b")
    assert dict(after.items()) == {key("a/2"): value, **dict(before.group("b"))}
    assert before == ENTRIES
    assert before.replaced({"a": dict(before.group("a"))}) is before


def test_edits_are_those_of_a_dict() -> None:
    """Any writes to a mapping in groups give what they give in a dict, and leave the base."""
    rng = random.Random(5)  # noqa: S311 - reproducible, not secret
    base = ByPool({BackendKey(rng.choice("abc"), str(n)): n for n in range(12)})
    was, edits, plain = dict(base.items()), Edits(base), dict(base.items())
    for number in range(200):
        one = BackendKey(rng.choice("abcd"), str(rng.randrange(14)))
        if rng.random() < 0.5:
            edits[one] = plain[one] = number
        elif one in plain:
            del edits[one], plain[one]
        assert len(edits) == len(plain)
        assert one in edits or one not in plain
    assert edits.frozen() == plain
    assert sorted(edits) == sorted(plain)
    assert {name for name, _ in edits.groups()} == {one.pool for one in plain}
    assert base == was


def test_documents_are_grouped_by_pool() -> None:
    """A pool and its backends are one group; every other document is one by itself."""
    keys = ["settings", "vips/a", "pools/p", "pools/p/backends/x", "pools/q", "junk/a/b/c", ""]
    documents = Documents({each: Document(b"", 1) for each in keys})
    assert {name: list(group) for name, group in documents.groups.items()} == {
        "": [""],
        "junk/a": ["junk/a/b/c"],
        "pools/p": ["pools/p", "pools/p/backends/x"],
        "pools/q": ["pools/q"],
        "settings": ["settings"],
        "vips/a": ["vips/a"],
    }


def test_changed_values_are_those_of_either_side() -> None:
    """What came, went, or is another object is named; what stays is not."""
    stays, was, now, gone, new = (object() for _ in range(5))
    found = changed_values(
        {"stays": stays, "changes": was, "goes": gone},
        {"stays": stays, "changes": now, "comes": new},
    )
    assert found == ([was, gone], [now, new])
