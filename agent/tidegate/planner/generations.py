# SPDX-License-Identifier: Apache-2.0
"""Plan the next generation: a pure function of what is wanted, what is in force, and the time.

Order matters in one place: ids are allocated in the order of names, so that hosts without a history
allocate the same ones; nothing else may depend on it.
"""

from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tidegate import maglev
from tidegate.errors import GenerationRefused
from tidegate.model.constants import (
    MAX_NETWORK_VIPS,
    MAX_ROUTES,
    TABLE_SIZE,
)
from tidegate.model.generation import (
    Freed,
    FreedIds,
    Generation,
    Identity,
    Level,
    PlacedBackend,
    PlacedPool,
    PlacedVip,
    Slots,
)
from tidegate.model.values import BackendKey, Desired, Endpoint, Fitness, Vip
from tidegate.planner import levels
from tidegate.planner.backends import place_backends
from tidegate.planner.digest import backend_hashes, generation_digest, table_digest
from tidegate.planner.effective import Effect, next_change
from tidegate.planner.ids import Allocator, allocators
from tidegate.planner.inheritance import VipIdentities
from tidegate.planner.transition import first_table, next_table
from tidegate.planner.vips import place_vips


class _Owner(NamedTuple):
    """What a table depends on: a backend that takes new flows, and its weight."""

    name: str
    weight: int
    id: int


def plan(
    desired: Desired,
    previous: Generation,
    now: int,
    fitness: Mapping[BackendKey, Fitness] | None = None,
) -> Generation:
    """Return the generation that follows `previous` and has what `desired` asks for.

    Args:
        desired: validated documents of one revision.
        previous: the generation in force.
        now: wall clock, s; drives slow starts, deadlines, deregistration delays, windows and id
            cooldowns.
        fitness: what health checks make of backends, all others being fit; None if that is not
            known (yet), which leaves each as it was.

    Returns:
        A generation with the next number, or with the number of `previous` if the two treat every
        packet alike.

    Raises:
        GenerationRefused: ids have run out, or VIPs ask for more than the maps hold.
    """
    _check_capacity(desired.vips.values())
    number = previous.number + 1
    ids = allocators(previous, now)
    backends = place_backends(desired, previous, now, fitness, ids.backends)
    touched = _touched(previous.backends, backends)
    came_from = _levels(desired, previous, now, touched)
    pools = _place_pools(desired, backends, previous, number, now, touched, ids.pools, came_from)
    vips = place_vips(
        desired.vips, backends, previous, VipIdentities(desired.vips, previous, ids.vips, now)
    )
    freed = FreedIds(
        _freed(previous.freed.vips, _endpoints(previous), _identities(vips.values()), now),
        _freed(previous.freed.pools, _plain(previous.pools), _identities(pools.values()), now),
        _freed(
            previous.freed.backends, _plain(previous.backends), _identities(backends.values()), now
        ),
    )
    last = (previous.vips, previous.pools, previous.backends, previous.hash_seed)
    same = (vips, pools, backends, desired.hash_seed) == last
    known = {name: part for name, part in previous.parts.items() if name not in touched}
    parts = backend_hashes(pools.keys(), backends.values(), known)
    return Generation(
        number=previous.number if same else number,
        revision=desired.revision,
        digest=generation_digest(vips, pools, parts, desired.hash_seed),
        vips=vips,
        pools=pools,
        backends=backends,
        freed=freed,
        hash_seed=desired.hash_seed,
        release=desired.release,
        pointer=desired.pointer,
        parts=parts,
    )


def _check_capacity(vips: Iterable[Vip]) -> None:
    networks = routes = 0
    for vip in vips:
        networks += vip.is_network
        routes += len(vip.source_routes) + len(vip.deny)
    for count, limit, what in (
        (networks, MAX_NETWORK_VIPS, "VIPs that are networks"),
        (routes, MAX_ROUTES, "source routes and denied prefixes"),
    ):
        if count > limit:
            raise GenerationRefused(f"{count} {what} are wanted, and the limit is {limit}")


def next_moment(generation: Generation) -> int | None:
    """Return the wall-clock second at which time alone changes this generation, or None.

    It may have passed: it follows from what the generation holds, not from a clock.
    """
    moments: list[int] = []
    for placed in generation.backends.values():
        if placed.retire_at is not None:
            moments.append(placed.retire_at)
        times = placed.backend.starts_at, placed.backend.drain_deadline, placed.fitness.joins_at
        if times != (None, None, None):
            pool = generation.pools.get(placed.backend.pool)
            last = Effect(placed.weight, placed.reachable)
            change = next_change(placed.backend, pool.pool if pool else None, last, placed.fitness)
            moments += [] if change is None else [change]
    for in_pool in generation.pools.values():
        moments += [window.closes_at for window in in_pool.table.windows[1:]]
    return min(moments, default=None)


def _levels(
    desired: Desired, previous: Generation, now: int, touched: Collection[str]
) -> dict[str, tuple[Level, ...]]:
    """Return the levels that pools came down from, of those of which a backend changed."""
    had = (placed.backend for placed in previous.backends.values() if placed.retire_at is None)
    was = levels.serving(had, desired, touched, now)
    is_now = levels.serving(desired.backends.values(), desired, touched, now)
    return {
        name: levels.after_change(previous.pools[name], was[name], is_now[name], now)
        for name in touched
        if name in previous.pools
    }


def _place_pools(
    desired: Desired,
    backends: Mapping[BackendKey, PlacedBackend],
    previous: Generation,
    number: int,
    now: int,
    touched: Collection[str],
    allocator: Allocator,
    came_from: Mapping[str, tuple[Level, ...]],
) -> dict[str, PlacedPool]:
    wanted = desired.pools
    before = previous.pools
    examined = {*touched, *(wanted.keys() - before.keys())}
    examined |= {name for name, old in before.items() if not old.digest}
    serving, was_serving = _serving(backends, examined), _serving(previous.backends, examined)
    living = {placed.identity.id for placed in backends.values()}
    out = _out(backends, previous.backends)
    placed: dict[str, PlacedPool] = {}
    for name in sorted(wanted):
        old = before.get(name)
        here = serving[name]  # nobody where nothing was touched
        if old is not None and old.digest and here == was_serving[name]:
            current, digest = old.table.current, old.digest
        else:
            current = _current(here)
            digest = table_digest(current, [owner.id for owner in here])
        if old is None:
            identity, table = allocator.allocate(), first_table(current, number)
        else:
            identity = old.identity
            seconds = wanted[name].transition_window
            table = next_table(old.table, current, number, now, seconds, living, out[name])
        before_it = () if old is None else old.levels
        fresh = PlacedPool(identity, wanted[name], table, digest, came_from.get(name, before_it))
        is_old = old == fresh and fresh.levels == before_it
        placed[name] = old if is_old and old is not None else fresh
    return placed


def _out(*placed: Mapping[BackendKey, PlacedBackend]) -> defaultdict[str, set[int]]:
    """Return the ids of backends that are out in any of these, by pool."""
    out: defaultdict[str, set[int]] = defaultdict(set)
    for backends in placed:
        for key, backend in backends.items():
            if not backend.reachable:
                out[key.pool].add(backend.identity.id)
    return out


def _touched(
    before: Mapping[BackendKey, PlacedBackend], after: Mapping[BackendKey, PlacedBackend]
) -> set[str]:
    """Return pools of which a backend came, went or changed."""
    touched = {key.pool for key, placed in after.items() if before.get(key) is not placed}
    return touched | {key.pool for key in before.keys() - after.keys()}


def _serving(
    backends: Mapping[BackendKey, PlacedBackend], pools: Container[str]
) -> defaultdict[str, list[_Owner]]:
    """Return the backends of these pools that take new flows, in the order of their names."""
    serving: defaultdict[str, list[_Owner]] = defaultdict(list)
    for key in sorted(key for key in backends if key.pool in pools):
        placed = backends[key]
        if placed.weight > 0:
            serving[key.pool].append(_Owner(key.name, placed.weight, placed.identity.id))
    return serving


def _current(serving: list[_Owner]) -> Slots:
    """Return a Maglev table of ids."""
    if not serving:
        return np.zeros(TABLE_SIZE, np.uint32)
    ids = np.array([owner.id for owner in serving], np.uint32)
    return ids[maglev.build([(o.name, o.weight) for o in serving], TABLE_SIZE)]


def current_table(pool: str, backends: Mapping[BackendKey, PlacedBackend]) -> Slots:
    """Return the table that follows from a pool's backends, as ids."""
    return _current(_serving(backends, (pool,))[pool])


def _freed(
    freed: Mapping[int, Freed],
    before: Mapping[Identity, Endpoint | None],
    used: Collection[Identity],
    now: int,
) -> dict[int, Freed]:
    """Return the freed ids: those freed by this step, and those freed before and not reused."""
    ids = {identity.id for identity in used}
    found = {id_: last for id_, last in freed.items() if id_ not in ids}
    for identity, endpoint in before.items():
        if identity.id not in ids:
            found[identity.id] = Freed(identity.incarnation, now, endpoint)
    return found


def _identities(placed: Iterable[PlacedVip | PlacedPool | PlacedBackend]) -> set[Identity]:
    return {each.identity for each in placed}


def _plain(
    placed: Mapping[str, PlacedPool] | Mapping[BackendKey, PlacedBackend],
) -> dict[Identity, Endpoint | None]:
    return dict.fromkeys(_identities(placed.values()))


def _endpoints(previous: Generation) -> dict[Identity, Endpoint | None]:
    return {placed.identity: placed.vip.endpoint for placed in previous.vips.values()}


def confirm(found: Generation) -> Generation:
    """Return a generation that was read back, with its digests.

    A pool whose table does not follow from its backends, which a crash between the two leaves
    behind, gets an empty digest, so that the next plan rebuilds it.
    """
    serving = _serving(found.backends, found.pools)
    pools = {
        name: replace(placed, digest=_digest_if_built(placed.table.current, serving[name]))
        for name, placed in found.pools.items()
    }
    parts = backend_hashes(pools.keys(), found.backends.values(), {})
    return replace(
        found,
        pools=pools,
        digest=generation_digest(found.vips, pools, parts, found.hash_seed),
        parts=parts,
    )


def _digest_if_built(current: Slots, serving: list[_Owner]) -> bytes:
    if not np.array_equal(current, _current(serving)):
        return b""
    return table_digest(current, [owner.id for owner in serving])
