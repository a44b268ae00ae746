# SPDX-License-Identifier: Apache-2.0
"""Limits of source prefixes, as the specification has them: two rows of cells that all share."""

import random
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tidegate.model.ticks import Clock
from tidegate.spec.limit import CELLS, SharedLimits

CLOCK = Clock(250)
NOW = 1 << 32
RATE = 50
"""Tokens a second: one comes every five jiffies."""


def hash_of(cell: int, other: int) -> int:
    """Return the hash of a prefix that has these cells."""
    return other << 32 | cell


def test_a_prefix_has_a_cell_of_either_row() -> None:
    """Both are drawn by the whole of its hash, and none is of the other's row."""
    chance = random.Random(1)  # noqa: S311 - a workload, not a secret
    places = [SharedLimits.places(chance.getrandbits(64)) for _ in range(1000)]
    assert all(one < CELLS <= other < 2 * CELLS for one, other in places)
    assert len(set(places)) == len(places)


def test_a_prefix_has_its_rate_and_a_second_at_once() -> None:
    """A second's worth is there at first, then one token at a time."""
    limits = SharedLimits()
    at_once = sum(limits.take(1, RATE, NOW, CLOCK) for _ in range(3 * RATE))
    later = [limits.take(1, RATE, NOW + jiffy, CLOCK) for jiffy in range(1, 4 * CLOCK.hz)]
    assert (at_once, sum(later)) == (RATE, 4 * RATE - 1)


def test_who_shares_one_cell_has_all_of_its_own() -> None:
    """Of the two cells the one with more left counts."""
    limits = SharedLimits()
    for other in range(1, 9):
        for _ in range(RATE):
            assert limits.take(hash_of(5, other), RATE, NOW, CLOCK)
        assert not limits.take(hash_of(5, other), RATE, NOW, CLOCK)


def test_who_shares_both_cells_shares_the_limit() -> None:
    """Two prefixes have used up both cells of a third: the price of having no table of prefixes."""
    limits = SharedLimits()
    for hash_ in (hash_of(5, 1), hash_of(2, 6)):
        assert all(limits.take(hash_, RATE, NOW, CLOCK) for _ in range(RATE))
    assert not limits.take(hash_of(5, 6), RATE, NOW, CLOCK)
    assert limits.take(hash_of(5, 6), RATE, NOW + CLOCK.hz // RATE, CLOCK)


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 2), st.integers(0, 2), st.booleans()),
        max_size=400,
    )
)
def test_nobody_ever_has_more_than_the_limit(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    """However prefixes share cells, and whatever limits their VIPs have, none gains by it."""
    limits, now, rates = SharedLimits(), NOW, (RATE, 3)
    taken: dict[tuple[int, int], int] = {}
    for passed, cell, other, is_strict in steps:
        now += passed
        for _ in range(4):
            if limits.take(hash_of(cell, other), rates[is_strict], now, CLOCK):
                taken[cell, other] = taken.get((cell, other), 0) + 1
    most = RATE * (1 + Fraction(now - NOW, CLOCK.hz))
    assert all(count <= most for count in taken.values())
