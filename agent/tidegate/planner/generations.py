# SPDX-License-Identifier: Apache-2.0
"""Plan the next generation: a pure function of what is wanted, what is in force, and the time.

Order matters in one place: ids are allocated in the order of names, so that hosts without a history
allocate the same ones; nothing else may depend on it.
"""

from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

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
    PlacedBackend,
    PlacedPool,
    PlacedVip,
    Slots,
)
from tidegate.model.values import FIT, BackendKey, Desired, Fitness, Pool, Vip
from tidegate.planner.digest import backend_hashes, generation_digest, table_digest
from tidegate.planner.effective import Effect, effect, next_change
from tidegate.planner.ids import Allocator, allocators
from tidegate.planner.transition import first_table, next_table

_Placed = TypeVar("_Placed", PlacedVip, PlacedPool, PlacedBackend)
_Name = TypeVar("_Name", str, BackendKey)


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
    backends = _place_backends(desired, previous, now, fitness, ids.backends)
    touched = _touched(previous.backends, backends)
    pools = _place_pools(desired.pools, backends, previous, number, now, touched, ids.pools)
    vips = _place_vips(desired.vips, backends, previous, ids.vips)
    freed = FreedIds(
        _freed(previous.freed.vips, previous.vips, vips, now),
        _freed(previous.freed.pools, previous.pools, pools, now),
        _freed(previous.freed.backends, previous.backends, backends, now),
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


def _place_backends(
    desired: Desired,
    previous: Generation,
    now: int,
    fitness: Mapping[BackendKey, Fitness] | None,
    allocator: Allocator,
) -> dict[BackendKey, PlacedBackend]:
    before = previous.backends
    placed: dict[BackendKey, PlacedBackend] = {}
    for key in sorted(desired.backends):
        backend, old = desired.backends[key], before.get(key)
        last = FIT if old is None else old.fitness
        fit = last if fitness is None else fitness.get(key, FIT)
        does = effect(backend, desired.pools.get(key.pool), now, fit)
        if old is not None and old.backend is backend and _stays(old, does, fit):
            placed[key] = old  # as nearly all are: one comparison, and no copy
            continue
        identity = allocator.allocate() if old is None else old.identity
        placed[key] = PlacedBackend(identity, backend, *does, fitness=fit)
    for key in before.keys() - desired.backends.keys():
        leaving = _leaving(before[key], previous.pools.get(key.pool), now)
        if leaving is not None:
            placed[key] = leaving
    return placed


def _stays(placed: PlacedBackend, does: Effect, fitness: Fitness) -> bool:
    return (
        placed.retire_at is None
        and placed.fitness == fitness
        and placed.weight == does.weight
        and placed.reachable == does.reachable
    )


def _leaving(placed: PlacedBackend, pool: PlacedPool | None, now: int) -> PlacedBackend | None:
    """Return a backend whose key was deleted: it drains until its delay ends; None after that."""
    backend = placed.backend
    retire_at = placed.retire_at
    if retire_at is None:
        delay = pool.pool.deregistration_delay if pool else 0
        if delay == 0 or not placed.reachable:
            return None
        backend, retire_at = replace(backend, state="drain"), now + delay
    if retire_at <= now:
        return None
    does = effect(backend, None, now, placed.fitness)
    return PlacedBackend(placed.identity, backend, *does, retire_at, placed.fitness)


def _place_pools(
    wanted: Mapping[str, Pool],
    backends: Mapping[BackendKey, PlacedBackend],
    previous: Generation,
    number: int,
    now: int,
    touched: Collection[str],
    allocator: Allocator,
) -> dict[str, PlacedPool]:
    before = previous.pools
    examined = {*touched, *(wanted.keys() - before.keys())}
    examined |= {name for name, old in before.items() if not old.digest}
    serving, was_serving = _serving(backends, examined), _serving(previous.backends, examined)
    living = {placed.identity.id for placed in backends.values()}
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
            table = next_table(old.table, current, number, now, seconds, living)
        fresh = PlacedPool(identity, wanted[name], table, digest)
        placed[name] = old if old == fresh and old is not None else fresh
    return placed


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


def _place_vips(
    wanted: Mapping[str, Vip],
    backends: Mapping[BackendKey, PlacedBackend],
    previous: Generation,
    allocator: Allocator,
) -> dict[str, PlacedVip]:
    before = previous.vips
    serving = {key.pool for key, backend in backends.items() if backend.weight > 0}
    placed: dict[str, PlacedVip] = {}
    for name in sorted(wanted):
        vip = wanted[name]
        old, unserved = before.get(name), _unserved(vip, serving)
        if old is None:
            identity = allocator.allocate()
        elif old.vip is vip and old.unserved == unserved:
            placed[name] = old
            continue
        elif _service(old.vip) == _service(vip):
            identity = old.identity
        else:
            # Entries of its flows to the old address must not catch flows to the new one.
            identity = Identity(old.identity.id, old.identity.incarnation + 1)
        placed[name] = PlacedVip(identity, vip, unserved, _has_moved(old, identity, vip, unserved))
    return placed


def _has_moved(
    old: PlacedVip | None, identity: Identity, vip: Vip, unserved: tuple[str, ...]
) -> bool:
    """Return whether a VIP has had other pools since it has its identity."""
    if old is None or old.identity != identity:
        return False
    return old.moved or (*_led(old.vip), old.unserved) != (*_led(vip), unserved)


def _led(vip: Vip) -> tuple[object, ...]:
    """Return what says to which pools a VIP's clients are led."""
    return vip.pool, vip.source_routes, vip.deny, vip.sorry_pool


def _unserved(vip: Vip, serving: Container[str]) -> tuple[str, ...]:
    """Return the pools of a VIP that its sorry pool replaces; none if that does not serve itself.

    This follows from the backends' weights alone, so it is the same on all hosts.
    """
    if vip.sorry_pool is None or vip.sorry_pool not in serving:
        return ()
    return tuple(sorted({pool for pool in vip.own_pools if pool not in serving}))


def _service(vip: Vip) -> tuple[object, ...]:
    return vip.network, vip.port, vip.protocol


def _freed(
    freed: Mapping[int, Freed],
    before: Mapping[_Name, _Placed],
    after: Mapping[_Name, _Placed],
    now: int,
) -> dict[int, Freed]:
    """Return the freed ids: those freed by this step, and those freed before and not reused."""
    used = {placed.identity.id for placed in after.values()}
    gone = {before[name].identity for name in before.keys() - after.keys()}
    resting = {id_: last for id_, last in freed.items() if id_ not in used}
    return resting | {identity.id: Freed(identity.incarnation, now) for identity in gone}


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
