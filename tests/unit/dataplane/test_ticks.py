# SPDX-License-Identifier: Apache-2.0
"""The clock of the packet path: a time that was set is never early, and two ticks late at most."""

import random

import pytest

from tidegate.model.ticks import TICKS, Clock

RATES = [100, 250, 300, 1000]
"""Values that CONFIG_HZ may have."""


@pytest.mark.parametrize("hz", RATES)
def test_a_tick_is_four_to_eight_seconds(hz: int) -> None:
    """Whatever the kernel's jiffies are."""
    assert 4 <= Clock(hz).tick_seconds < 8


@pytest.mark.parametrize("hz", RATES)
def test_a_limit_is_never_early_and_two_ticks_late_at_most(hz: int) -> None:
    """For any moment of the entry, any limit, and any silence."""
    clock, chance = Clock(hz), random.Random(1)  # noqa: S311 - a workload, not a secret
    for _ in range(2_000):
        then, limit = chance.randrange(1 << 40), chance.randrange(1, 5_000)
        tick = clock.tick(then)
        for silence, is_over in ((limit, False), (limit + 2 * clock.tick_seconds, True)):
            age = clock.age(tick, then + int(silence * hz))
            assert (age > clock.limit(limit)) == is_over


def test_ticks_begin_again() -> None:
    """An age is right over the end of the count."""
    clock = Clock(250)
    then = (TICKS - 1) << clock.shift
    assert clock.age(clock.tick(then), then + (3 << clock.shift)) == 3
