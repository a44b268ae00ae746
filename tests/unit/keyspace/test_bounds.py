# SPDX-License-Identifier: Apache-2.0
"""What an agent keeps of what others write: so much, and no more."""

from hypothesis import given
from hypothesis import strategies as st

from tidegate.keyspace.bounds import Bounds, Budget, is_whole, kept_key
from tidegate.model.values import Document

SMALL = Bounds(each=10, together=40, keys=100, page=10)


def test_a_document_that_is_too_long_is_refused() -> None:
    """By its length, and it takes no room from others."""
    budget = Budget(SMALL)
    assert budget.take("a", b"x" * 11, 5, 4).refused == (
        "the document has 11 bytes; the limit is 10"
    )
    assert budget.take("b", b"x" * 10, 5, 4) == Document(b"x" * 10, 5, 4)
    assert not budget.is_exceeded


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.binary(max_size=14)), max_size=60))
def test_what_is_kept_stays_within_its_bounds(writes: list[tuple[str, bytes]]) -> None:
    """Whatever is written over what, and when all of it has gone there is room for all."""
    budget, kept = Budget(SMALL), dict[str, Document]()
    for number, (key, value) in enumerate(writes):
        budget.give_back(key, kept.pop(key, None))
        kept[key] = budget.take(key, value, number, number)
        together = sum(len(k) + len(d.value) for k, d in kept.items() if not d.refused)
        assert together <= SMALL.together
        assert all(d.refused or len(d.value) <= SMALL.each for d in kept.values())
    for key, document in kept.items():
        budget.give_back(key, document)
    assert all(not budget.take(key, b"x" * 9, 1, 1).refused for key in "abcd")


def test_a_writer_takes_no_room_of_the_others() -> None:
    """What one writes beyond its share is refused, and another's verdict beside it is kept."""
    budget = Budget(SMALL._replace(together=1000, writer=40))
    kept = {f"aaa/{n}": budget.take(f"aaa/{n}", b"x" * 9, n, n) for n in range(9)}
    assert [not document.refused for document in kept.values()] == [True] * 2 + [False] * 7
    assert "aaa has 28 bytes in sum already and the limit is 40" in kept["aaa/8"].refused
    assert not budget.take("lb1/web", b"x" * 9, 1, 1).refused
    budget.give_back("aaa/0", kept["aaa/0"])
    assert not budget.take("aaa/9", b"x" * 9, 1, 1).refused


def test_long_keys_have_short_names_of_their_own() -> None:
    """Etcd cannot be asked for them, and two that begin alike are two."""
    one, other = kept_key(b"k" * 5000), kept_key(b"k" * 5001)
    assert one != other
    assert len(one) < 200
    assert not is_whole(one)
    assert (kept_key(b"vips/a"), is_whole("vips/a")) == ("vips/a", True)
    assert not is_whole(kept_key(b"\xff"))
