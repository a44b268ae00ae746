# SPDX-License-Identifier: Apache-2.0
"""Rates from counters: what is reported of traffic, and when it is reported anew."""

from dataclasses import replace

import numpy as np
import pytest

from support.documents.roster import backend, generations, web
from tidegate.agent.report import _backends
from tidegate.agent.traffic_rates import INTERVAL, TrafficSampler, rates, steady
from tidegate.keyspace.status.parts import BackendsStatus, TrafficStatus
from tidegate.model.values import Fitness


def totals(*rows: tuple[int, int, int], merged: int = 0) -> np.ndarray:
    return np.array([(*row, merged) for row in rows], np.uint64)


def reported(packets: float, drops: float = 0.0, misses: float = 0.0) -> TrafficStatus:
    return TrafficStatus(packets_per_second=packets, drops=drops, misses=misses)


def test_rates_are_of_the_time_between_two_samples() -> None:
    """Packets by the second, drops and misses by the packet, over all VIPs."""
    before = totals((100, 1, 5), (1000, 0, 0))
    after = totals((600, 6, 30), (1500, 0, 0))
    assert rates(before, after, 5.0) == reported(200.0, 0.005, 0.025)


def test_an_id_that_is_new_or_was_given_away_does_no_harm() -> None:
    """A new VIP counts from zero; counters that went back are not a negative rate."""
    assert rates(totals((100, 0, 0)), totals((200, 0, 0), (50, 0, 0)), 5.0) == reported(30.0)
    assert rates(totals((100, 50, 0)), totals((10, 5, 0)), 5.0) == reported(0.0)
    assert rates(totals((1, 0, 0), (9, 0, 0)), totals((6, 0, 0)), 5.0) == reported(1.0)


@pytest.mark.parametrize(
    ("old", "new", "is_news"),
    [
        (reported(1000), reported(1150), False),
        (reported(1000), reported(1250), True),
        (reported(1), reported(9), False),
        (reported(1000, 0.01), reported(1000, 0.0115), False),
        (reported(1000, 0.01), reported(1000, 0.0125), True),
        (reported(1000, 0.0), reported(1000, 0.00009), False),
        (reported(1000, 0.0), reported(1000, 0.001), True),
        (reported(1000, 0.0, 0.02), reported(1000, 0.0, 0.0), True),
    ],
)
def test_noise_is_not_reported(old: TrafficStatus, new: TrafficStatus, is_news: bool) -> None:
    """What is reported stays the same object of the same text until it is not true any more."""
    assert steady(old, new) == (new if is_news else old)


def test_merged_frames_are_a_problem_while_they_come(caplog: pytest.LogCaptureFixture) -> None:
    """Reported once in the log, and in the status until none has come for a minute."""
    frames = [0, 7, 9, 9, 9]
    sampler = TrafficSampler(lambda: totals((100, 0, 0), merged=frames.pop(0)))
    problems = []
    for now in (10.0, 20.0, 30.0, 85.0, 95.0):
        sampler.sample(now)
        problems.append(bool(sampler.problem))
    assert problems == [False, True, True, True, False]
    assert caplog.text.count("merged_frames_dropped") == 1


def test_samples_are_no_closer_than_the_interval() -> None:
    """It reports nothing before its second sample; reading that fails is not repeated at once."""
    looks: list[np.ndarray] = [totals((0, 0, 0)), totals((500, 5, 0))]
    sampler = TrafficSampler(lambda: looks.pop(0))
    sampler.sample(10.0)
    sampler.sample(10.0 + INTERVAL - 0.1)
    assert (sampler.traffic, len(looks)) == (None, 1)
    sampler.sample(10.0 + INTERVAL)
    assert sampler.traffic == reported(100.0, 0.01)
    with pytest.raises(IndexError):
        sampler.sample(10.0 + 2 * INTERVAL)
    sampler.sample(10.0 + 2 * INTERVAL + 1)
    assert sampler.next_due() == 10.0 + 3 * INTERVAL


def test_backends_are_counted_by_what_they_do() -> None:
    """Those whose keys are gone do not count; what checks took out is as bad as a quarantine."""
    every = [
        backend("b1"),
        backend("b2", weight=0),
        backend("b3", state="drain"),
        backend("b4", state="quarantine"),
        backend("b5"),
        backend("b6"),
    ]
    *_, generation = generations(web(*every), web(*every[:-1]))
    placed = dict(generation.backends)
    key = every[4].key
    placed[key] = replace(placed[key], weight=0, fitness=Fitness(is_out=True))
    counted = _backends(replace(generation, backends=placed))
    assert counted == BackendsStatus(total=5, serving=1, unhealthy=2)
