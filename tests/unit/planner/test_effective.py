# SPDX-License-Identifier: Apache-2.0
"""Slow starts and scheduled drains: equal moments on every host, from the documents alone."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from support.documents.roster import backend, generations, web
from tidegate import maglev
from tidegate.model.generation import NOTHING
from tidegate.model.values import Backend, BackendKey, Pool
from tidegate.planner import confirm, next_moment, plan
from tidegate.planner.effective import Effect, effect, next_change

POOLS = st.builds(
    lambda length, steps: Pool("web", 0, 0, slow_start=length, slow_start_steps=steps),
    st.integers(0, 40) | st.integers(0, 3600),
    st.integers(2, 16),
)
STARTING = st.builds(
    lambda weight, start: backend("b1", weight=weight, starts_at=start),
    st.integers(0, 300) | st.integers(0, 65535),
    st.integers(900, 1100),
)
B1, B2 = BackendKey("web", "b1"), BackendKey("web", "b2")


def test_a_ramp_steps_first_at_its_start_and_last_at_its_end() -> None:
    """60 s in 4 steps: a quarter more every 20 s."""
    pool = Pool("web", 0, 0, slow_start=60, slow_start_steps=4)
    server = backend("b1", weight=100, starts_at=1000)
    weights = [
        effect(server, pool, now).weight for now in (0, 999, 1000, 1019, 1020, 1040, 1059, 1060)
    ]
    assert weights == [0, 0, 25, 25, 50, 75, 75, 100]


@given(STARTING, POOLS)
def test_weights_rise_and_end_at_the_full_weight(server: Backend, pool: Pool) -> None:
    """Never down, never above; one who has a weight takes flows from the first second on."""
    start = server.starts_at or 0
    weights = [effect(server, pool, now).weight for now in range(start - 2, start + 3602)]
    assert weights == sorted(weights)
    assert weights[:2] == [0, 0]
    assert (weights[2] > 0) == (server.weight > 0)
    assert weights[2 + pool.slow_start] == weights[-1] == server.weight
    assert len(set(weights)) <= 1 + pool.slow_start_steps


@given(STARTING, POOLS, st.integers(800, 1300))
def test_next_change_is_the_first_second_that_differs(
    server: Backend, pool: Pool, now: int
) -> None:
    """Against looking at every second: a loop that sleeps until then misses no step."""
    last = effect(server, pool, now)
    seconds = range(now + 1, 1101 + 3600)
    first = next((t for t in seconds if effect(server, pool, t) != last), None)
    assert next_change(server, pool, last) == first


def test_a_start_without_a_ramp_has_its_full_weight_at_once() -> None:
    """Before, it takes no new flows; its flows, from before its key was written anew, stay."""
    server, pool = backend("b1", starts_at=1000), Pool("web", 0, 0)
    assert effect(server, pool, 999) == Effect(0, reachable=True)
    assert effect(server, pool, 1000) == Effect(100, reachable=True)


def test_a_drain_keeps_its_flows_until_its_deadline() -> None:
    """Then it is out of the connection table too, though its key is still there."""
    server = backend("b1", state="drain", drain_deadline=1000)
    assert effect(server, None, 999) == Effect(0, reachable=True)
    assert effect(server, None, 1000) == Effect(0, reachable=False)
    assert effect(backend("b1", state="drain"), None, 10**10) == Effect(0, reachable=True)


def test_a_generation_follows_a_ramp_from_moment_to_moment() -> None:
    """Each moment that next_moment names gives another table, and after the last there is none."""
    roster = web(
        backend("b1"),
        backend("b2", starts_at=1010),
        window=0,
        slow_start=30,
        slow_start_steps=4,
    )
    (generation,) = generations(roster, now=1000)
    seen = []
    while (moment := next_moment(generation)) is not None:
        before, generation = generation, plan(roster, generation, moment)
        assert generation.number == before.number + 1
        assert generation.digest != before.digest
        weight = generation.backends[B2].weight
        owners = maglev.build([("b1", 100), ("b2", weight)])
        b2 = generation.backends[B2].identity.id
        assert np.array_equal(generation.pools["web"].table.current == b2, owners == 1)
        seen.append((moment, weight))
    assert seen == [(1010, 25), (1020, 50), (1030, 75), (1040, 100)]


def test_a_missed_moment_is_still_named() -> None:
    """A host that was busy when a step was due takes it late, and not with the next one."""
    roster = web(backend("b1"), backend("b2", starts_at=1010), slow_start=30, slow_start_steps=4)
    (generation,) = generations(roster, now=1015)
    assert generation.backends[B2].weight == 25
    assert next_moment(generation) == 1020
    late = plan(roster, generation, 1035)
    assert late.backends[B2].weight == 75
    assert next_moment(late) == 1040


def test_a_deadline_is_a_moment_of_a_generation() -> None:
    """From then on the backend is unreachable; its table was without it before."""
    roster = web(backend("b1"), backend("b2", state="drain", drain_deadline=1100), window=0)
    (draining,) = generations(roster)
    assert draining.backends[B2].reachable
    assert next_moment(draining) == 1100
    gone = plan(roster, draining, 1100)
    assert not gone.backends[B2].reachable
    assert gone.pools["web"].table is draining.pools["web"].table
    assert (gone.number, gone.digest != draining.digest) == (draining.number + 1, True)
    assert next_moment(gone) is None


def test_a_deadline_outlives_the_key() -> None:
    """Deleting the key of a backend that drains gives its flows no more time than it said."""
    both = web(backend("b1"), backend("b2", state="drain", drain_deadline=1100))
    draining, leaving = generations(both, web(backend("b1")))
    assert leaving.backends[B2].retire_at == 1301
    assert next_moment(leaving) == 1100
    late = plan(web(backend("b1")), leaving, 1100)
    assert not late.backends[B2].reachable
    assert late.backends[B2].identity == draining.backends[B2].identity
    # Without flows there is nothing to wait for if the key goes after the deadline.
    assert B2 not in plan(web(backend("b1")), plan(both, draining, 1100), 1101).backends


def test_a_start_does_not_ramp_what_has_no_start() -> None:
    """A pool that gets a slow start later, and an agent that starts later, move no slot."""
    plain, ramped = web(backend("b1"), backend("b2")), web(backend("b1"), backend("b2"))
    pools = {"web": replace(ramped.pools["web"], slow_start=60)}
    first, second = generations(plain, replace(ramped, pools=pools))
    assert second.pools["web"].table is first.pools["web"].table


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(990, 1050), max_size=4), st.integers(990, 1050))
def test_weights_do_not_depend_on_when_a_host_looked(past: list[int], now: int) -> None:
    """A host that came at any time, or was restarted in the ramp, has the weights of all others."""
    roster = web(
        backend("b1"),
        backend("b2", starts_at=1000),
        backend("b3", state="drain", drain_deadline=1020),
        slow_start=40,
    )
    late = previous = NOTHING
    for moment in [*sorted(past), now]:
        previous = plan(roster, confirm(previous), moment)
    late = plan(roster, late, now)
    assert previous.digest == late.digest
    assert {k: (p.weight, p.reachable) for k, p in previous.backends.items()} == {
        k: (p.weight, p.reachable) for k, p in late.backends.items()
    }
