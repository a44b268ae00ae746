# SPDX-License-Identifier: Apache-2.0
"""What holds over any history: documents that come, go and change, time that passes, restarts.

A history is a list of steps. Restarts go through the bytes that the kernel keeps, so what holds
here holds over an agent's death as well.
"""

import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from support.crash.restart import restarted
from support.documents.roster import backend, vip
from tidegate.model.constants import ID_COOLDOWN_SECONDS, TABLE_SIZE
from tidegate.model.generation import NOTHING, Freed, Generation, Identity, Table
from tidegate.model.values import Backend, BackendKey, Desired, Pool
from tidegate.planner import next_moment, plan
from tidegate.planner.diff import difference

START = 1_000_000
PAUSES = st.sampled_from([0, 1, 2, 5, 60, 301, ID_COOLDOWN_SECONDS, ID_COOLDOWN_SECONDS + 301])
_K, _V = TypeVar("_K"), TypeVar("_V")
SAMPLE = [0, 1, TABLE_SIZE - 1, *range(7, TABLE_SIZE, 577)]


class Step(NamedTuple):
    """Documents, how long after the step before, and whether the agent died between."""

    desired: Desired
    pause: int
    restart: bool


@st.composite
def backends(draw: st.DrawFn, pool: str, now: int) -> list[Backend]:
    """Draw some of five names, each at one of two addresses, with any weight, state and times."""
    moments = st.none() | st.integers(now - 30, now + 90)
    found = []
    for number in draw(st.sets(st.integers(1, 5))):
        address = draw(st.sampled_from([f"10.1.0.{number}", f"fd01::{number}"]))
        weight = draw(st.sampled_from([0, 1, 100, 100, 300]))
        state = draw(st.sampled_from(["active", "active", "active", "drain", "quarantine"]))
        times = {"starts_at": draw(moments)}
        if state == "drain":
            times["drain_deadline"] = draw(moments)
        found.append(backend(f"b{number}", address, pool=pool, weight=weight, state=state, **times))
    return found


@st.composite
def rosters(draw: st.DrawFn, now: int = START) -> Desired:
    """Return one or two pools with their backends, and some VIPs that use them."""
    options = {
        "deregistration_delay": draw(st.sampled_from([0, 3, 300])),
        "transition_window": draw(st.sampled_from([0, 4, 60])),
        "slow_start": draw(st.sampled_from([0, 40])),
    }
    names = draw(st.sampled_from([["web"], ["web", "api"]]))
    servers = [b for pool in names for b in draw(backends(pool, now))]
    vips = []
    for port, name in enumerate(draw(st.lists(st.sampled_from("abc"), unique=True))):
        address, pool = f"10.99.0.{draw(st.integers(1, 2))}", draw(st.sampled_from(names))
        others = [each for each in names if each != pool]
        sorry = draw(st.sampled_from([None, *others]))
        vips.append(vip(name, address, port, pool=pool, sorry_pool=sorry))
    return Desired(
        1,
        {v.name: v for v in vips},
        {name: Pool(name, **options) for name in names},
        {b.key: b for b in servers},
    )


def histories(longest: int = 8) -> st.SearchStrategy[list[Step]]:
    steps = st.builds(Step, rosters(), PAUSES, st.booleans())
    return st.lists(steps, min_size=1, max_size=longest)


def replay(history: list[Step]) -> Iterator[tuple[int, Generation, Generation]]:
    """Yield the time of each step, and the generations before and after it."""
    now, previous = START, NOTHING
    for step in history:
        now += step.pause
        before = restarted(previous) if step.restart else previous
        previous = plan(step.desired, before, now)
        yield now, before, previous


def identities(generation: Generation) -> dict[tuple[str, object], Identity]:
    """Return the ids of every kind, by kind and what they stand for."""
    return {
        **{("vip", p.vip.endpoint): p.identity for p in generation.vips.values()},
        **{("pool", name): p.identity for name, p in generation.pools.items()},
        **{
            ("backend", (key.pool, p.backend.address)): p.identity
            for key, p in generation.backends.items()
        },
    }


@settings(max_examples=25, deadline=None)
@given(histories(12))
def test_ids_over_any_history(history: list[Step]) -> None:
    """Endpoints and addresses keep theirs; a freed id rests, and then has a new incarnation."""
    resting: dict[tuple[str, int], Freed] = {}
    ends: dict[Identity, object] = {}
    for now, before, after in replay(history):
        old, new = identities(before), identities(after)
        moved = {p.identity for p in before.backends.values()}
        for (kind, what), identity in new.items():
            if (kind, what) in old:
                assert identity == old[kind, what]
            elif kind == "backend" and identity in moved:
                continue  # a server that moved to an address that nobody had
            else:
                last = resting.pop((kind, identity.id), None)
                if last is not None and now < last.at + ID_COOLDOWN_SECONDS:
                    assert kind == "vip"
                    assert (identity.incarnation, what) == (last.incarnation, ends[identity])
                else:
                    assert identity.incarnation == (last.incarnation + 1 if last else 1)
        for kind in ("vip", "pool", "backend"):
            ids = [identity.id for (k, _), identity in new.items() if k == kind]
            assert len(ids) == len(set(ids))
            assert 0 not in ids
        used = {(kind, identity) for (kind, _), identity in new.items()}
        for (kind, what), identity in old.items():
            if (kind, identity) not in used:
                resting[kind, identity.id] = Freed(identity.incarnation, now)
                if kind == "vip":
                    ends[identity] = what


@settings(max_examples=25, deadline=None)
@given(histories())
def test_a_restart_finds_what_was_there(history: list[Step]) -> None:
    """With the same digest, ids and moments, and the next step is nothing new."""
    for now, _, generation in replay(history):  # noqa: B007 - the last one's, below
        again = restarted(generation)
        assert again.digest == generation.digest
        assert identities(again) == identities(generation)
        assert again.freed == generation.freed
        assert next_moment(again) == next_moment(generation)
    last = history[-1].desired
    assert plan(last, again, now).number == plan(last, generation, now).number == generation.number


@settings(max_examples=25, deadline=None)
@given(histories(4), histories(4), rosters(), st.integers(0, 120), st.randoms())
def test_hosts_agree_whatever_they_have_seen(
    one: list[Step], two: list[Step], last: Desired, later: int, chance: random.Random
) -> None:
    """The same keys at the same time: equal digests, owners and weights, also amid ramps."""
    now = START + 20_000_000 + later
    moved = _shifted(last, now - 60 - START)
    found = [
        plan(_shuffled(moved, chance), list(replay(history))[-1][2], now) for history in (one, two)
    ]
    # Who drains without a key is a matter of history: the digest leaves it out, as owners do.
    assert found[0].digest == found[1].digest
    assert _by_name(found[0]) == _by_name(found[1])
    for pool in moved.pools:
        assert np.array_equal(_owners(found[0], pool), _owners(found[1], pool))


def _shifted(desired: Desired, seconds: int) -> Desired:
    """Return the same documents, with their moments so much later."""
    return Desired(
        desired.revision,
        desired.vips,
        desired.pools,
        {
            key: Backend(
                *(b.pool, b.name, b.address, b.weight, b.state, b.quic_server_id),
                starts_at=None if b.starts_at is None else b.starts_at + seconds,
                drain_deadline=None if b.drain_deadline is None else b.drain_deadline + seconds,
            )
            for key, b in desired.backends.items()
        },
    )


def _shuffled(desired: Desired, chance: random.Random) -> Desired:
    def shuffled(given: Mapping[_K, _V]) -> dict[_K, _V]:
        items = list(given.items())
        chance.shuffle(items)
        return dict(items)

    wanted = shuffled(desired.vips), shuffled(desired.pools), shuffled(desired.backends)
    return Desired(desired.revision, *wanted)


def _by_name(generation: Generation) -> dict[BackendKey, tuple[Backend, int, bool]]:
    return {
        key: (p.backend, p.weight, p.reachable)
        for key, p in generation.backends.items()
        if p.retire_at is None
    }


def _owners(generation: Generation, pool: str) -> np.ndarray:
    """Return the owner of each slot as its number in the order of names; 0 is nobody."""
    keys = sorted(key for key in generation.backends if key.pool == pool)
    rank = np.zeros(max([0, *(i.id for i in identities(generation).values())]) + 1, np.uint32)
    serving = [key for key in keys if generation.backends[key].weight]
    for place, key in enumerate(serving, start=1):
        rank[generation.backends[key].identity.id] = place
    return rank[generation.pools[pool].table.current]


@settings(max_examples=25, deadline=None)
@given(histories(3), rosters(), PAUSES, st.randoms())
def test_the_order_of_keys_does_not_matter(
    history: list[Step], last: Desired, pause: int, chance: random.Random
) -> None:
    """Two plans from one generation are equal to the last id and slot."""
    *_, (now, _, before) = replay(history)
    one, two = (plan(_shuffled(last, chance), before, now + pause) for _ in range(2))
    assert identities(one) == identities(two)
    assert (one.number, one.digest, one.freed) == (two.number, two.digest, two.freed)
    for name, placed in one.pools.items():
        a, b = placed.table, two.pools[name].table
        assert all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("current", "fallback"))
        assert np.array_equal(_closes(a), _closes(b))


def _closes(table: Table) -> np.ndarray:
    return np.array([window.closes_at for window in table.windows], np.int64)[table.window]


class Event(NamedTuple):
    """One change of a slot's owner: at which step, and when that was."""

    step: int
    at: int
    owner_before: int
    window: int


def expected(
    events: list[Event], owners: list[int], deaths: Mapping[int, list[int]], now: int
) -> tuple[int, int]:
    """Return a slot's fallback and when its window closes (0: it is closed), from all events.

    Args:
        events: every change of its owner.
        owners: its owner at each step.
        deaths: steps at which an id was freed.
        now: wall clock, s.
    """
    run: list[Event] = []  # the changes of the last window, each before the one before it closed
    closes = 0
    for event in events:
        if event.at >= closes:
            run, closes = [], 0
        if event.window or run:
            run.append(event)
            closes = max(closes, event.at + event.window)
    if not run or now >= closes:
        return owners[-1], 0
    fallback, since = run[0].owner_before, run[0].step
    while True:  # an owner that is gone gives way to who has the slot then; nobody, to somebody
        gone = deaths.get(fallback, []) if fallback else range(since, len(owners))
        step = next((s for s in gone if s >= since and owners[s] != fallback), None)
        if step is None:
            return fallback, closes
        fallback, since = owners[step], step


@settings(max_examples=40, deadline=None)
@given(histories(12))
def test_fallbacks_and_windows_against_all_that_ever_was(history: list[Step]) -> None:
    """Exact for each slot that is looked at, from the list of its changes alone."""
    events: dict[int, list[Event]] = {slot: [] for slot in SAMPLE}
    owners: dict[int, list[int]] = {slot: [] for slot in SAMPLE}
    deaths: dict[int, list[int]] = {}
    for step, (now, before, after) in enumerate(replay(history)):
        living = {p.identity.id for p in after.backends.values()}
        for id_ in {p.identity.id for p in before.backends.values()} - living:
            deaths.setdefault(id_, []).append(step)
        window = after.pools["web"].pool.transition_window
        table = after.pools["web"].table
        closes = _closes(table)
        for slot in SAMPLE:
            owner = int(table.current[slot])
            if step and owners[slot][-1] != owner:
                events[slot].append(Event(step, now, owners[slot][-1], window))
            owners[slot].append(owner)
            found = int(table.fallback[slot]), int(closes[slot])
            assert found == expected(events[slot], owners[slot], deaths, now)


@settings(max_examples=25, deadline=None)
@given(histories())
def test_a_diff_says_what_moved_within_its_bound(history: list[Step]) -> None:
    """Slots are counted one by one, and names come from the documents of both sides."""
    for _, before, after in replay(history):
        diff = difference(before, after)
        for name in after.pools.keys() & before.pools.keys():
            tables = before.pools[name].table.current, after.pools[name].table.current
            moved = int(np.count_nonzero(tables[0] != tables[1]))
            assert (name in diff.moves) == (moved > 0)
            if moved:
                move = diff.moves[name]
                assert move.moved == moved
                assert move.minimum <= move.moved <= move.bound
        had, has = _by_name(before), _by_name(after)
        assert diff.backends.added == tuple(map(str, sorted(has.keys() - had.keys())))
        assert diff.backends.removed == tuple(map(str, sorted(had.keys() - has.keys())))
        assert set(diff.backends.changed) == {
            str(key) for key in had.keys() & has.keys() if had[key] != has[key]
        }
        assert diff.vips.added == tuple(sorted(after.vips.keys() - before.vips.keys()))


@settings(max_examples=25, deadline=None)
@given(histories())
def test_a_vip_is_on_its_sorry_pool_exactly_while_that_helps(history: list[Step]) -> None:
    """Whatever came before: from the owners in the tables alone, and no table is made for it."""
    for _, _, after in replay(history):
        has_owners = {name: bool(p.table.current.any()) for name, p in after.pools.items()}
        for placed in after.vips.values():
            vip = placed.vip
            helps = vip.sorry_pool is not None and has_owners[vip.sorry_pool]
            wanted = vip.sorry_pool if helps and not has_owners[vip.pool] else vip.pool
            assert placed.serving(vip.pool) == wanted
        assert after.on_sorry_pool == tuple(
            sorted(n for n, p in after.vips.items() if p.serving(p.vip.pool) != p.vip.pool)
        )


@settings(max_examples=25, deadline=None)
@given(rosters(), st.lists(st.integers(0, 200), max_size=6), st.booleans())
def test_what_time_does_does_not_depend_on_when_a_host_looks(
    roster: Desired, looks: list[int], restart: bool
) -> None:
    """One host steps at every moment that is named, one looks now and then: they end up equal."""
    end = START + 200
    exact = plan(roster, NOTHING, START)
    while (moment := next_moment(exact)) is not None and moment <= end:
        exact = plan(roster, exact, moment)
    rare = plan(roster, NOTHING, START)
    for look in sorted(looks):
        rare = plan(roster, restarted(rare) if restart else rare, START + look)
    rare = plan(roster, rare, end)
    assert exact.digest == rare.digest
    assert _by_name(exact) == _by_name(rare)
