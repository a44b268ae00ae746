# SPDX-License-Identifier: Apache-2.0
"""Table construction: equal everywhere, exact in its weights, and equal to the slow reference."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate import maglev
from tidegate.maglev.naive import apportion, naive_build, permutation
from tidegate.model.constants import TABLE_SIZE

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-", min_size=1, max_size=12)
WEIGHTS = st.one_of(st.integers(0, 5), st.integers(0, maglev.MAX_WEIGHT))
POOLS = (
    st.dictionaries(NAMES, WEIGHTS, min_size=1, max_size=24)
    .filter(lambda pool: any(pool.values()))
    .map(lambda pool: list(pool.items()))
)
PRIMES = st.sampled_from([2, 3, 5, 7, 13, 31, 101, 251, 509])


@given(POOLS, PRIMES)
def test_equals_the_reference_for_small_primes(pool: list[tuple[str, int]], size: int) -> None:
    """The C loops give the table that the plain statement of the algorithm gives."""
    assert maglev.build(pool, size).tolist() == naive_build(pool, size)


@settings(max_examples=5, deadline=None)
@given(POOLS)
def test_equals_the_reference_at_the_real_size(pool: list[tuple[str, int]]) -> None:
    """The same holds for the size that the kernel uses."""
    assert maglev.build(pool).tolist() == naive_build(pool, TABLE_SIZE)


def test_equals_the_reference_for_a_thousand_backends() -> None:
    """A full-sized pool with weights over the whole range is built as the reference builds it."""
    pool = [(f"backend-{i}", i * i * 7919 % 65536) for i in range(1000)]
    assert maglev.build(pool, 8191).tolist() == naive_build(pool, 8191)


@given(POOLS, st.randoms(use_true_random=False))
def test_order_of_input_does_not_matter(pool: list[tuple[str, int]], random: object) -> None:
    """Shuffled backends give the same bytes."""
    shuffled = list(pool)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert maglev.build(shuffled, 509).tobytes() == maglev.build(pool, 509).tobytes()


@settings(deadline=None)
@given(POOLS)
def test_every_slot_has_an_owner_and_every_share_is_exact(pool: list[tuple[str, int]]) -> None:
    """A backend's slots differ from its exact share by less than one; weight 0 owns none."""
    table = maglev.build(pool)
    assert table.shape == (TABLE_SIZE,)
    assert table.dtype == np.uint32
    total = sum(weight for _, weight in pool)
    slots = maglev.share(table, len(pool))
    for (_, weight), owned in zip(sorted(pool), slots.tolist(), strict=True):
        assert abs(owned - Fraction(TABLE_SIZE * weight, total)) < 1


@given(st.lists(st.integers(1, maglev.MAX_WEIGHT), min_size=1, max_size=40), PRIMES)
def test_apportionment_hands_out_every_turn(weights: list[int], size: int) -> None:
    """The turns of all backends together are the slots of the table."""
    assert sum(apportion(weights, size)) == size


@given(NAMES, PRIMES)
def test_a_permutation_visits_every_slot_once(name: str, size: int) -> None:
    """A prime size makes every skip reach every slot."""
    assert sorted(permutation(name, size)) == list(range(size))


def test_scaling_all_weights_changes_nothing() -> None:
    """Only ratios of weights count."""
    pool = [(f"b{i}", i % 5 + 1) for i in range(50)]
    scaled = [(name, 100 * weight) for name, weight in pool]
    assert np.array_equal(maglev.build(pool), maglev.build(scaled))


def test_the_table_is_the_one_that_every_release_built() -> None:
    """Hosts of different versions must agree, so this digest may only change with a migration."""
    table = maglev.build([(f"backend-{i:03d}", 1 + i % 7) for i in range(100)])
    digest = hashlib.blake2b(table.astype("<u4").tobytes(), digest_size=16).hexdigest()
    assert digest == "91f17bdcb37d9c977939baa180149854"


@pytest.mark.parametrize(
    ("pool", "size", "what"),
    [
        ([], 7, "at least one backend"),
        ([("a", 0)], 7, "at least one backend"),
        ([("a", -1), ("b", 1)], 7, "outside 0 to 65535"),
        ([("a", 65536)], 7, "outside 0 to 65535"),
        ([("a", 1), ("a", 2)], 7, "the same name"),
        ([("a", 1)], 1, "not 1"),
        ([("a", 1)], 65536, "not 65536"),
        ([("a", 1)], 4194319, "not 4194319"),
    ],
)
def test_what_cannot_be_a_table_is_refused(
    pool: list[tuple[str, int]], size: int, what: str
) -> None:
    """Each impossible input raises ValueError that says what is wrong."""
    with pytest.raises(ValueError, match=what):
        maglev.build(pool, size)


def test_more_backends_than_slots_leaves_some_without() -> None:
    """A share below one slot rounds to none or one, and the table is still full."""
    slots = maglev.share(maglev.build([(f"b{i}", 1) for i in range(20)], 13), 20)
    assert sorted(slots.tolist()) == [0] * 7 + [1] * 13
