# SPDX-License-Identifier: Apache-2.0
"""Plan the next generation: a pure function of what is wanted, what is in force, and the time.

Order matters in one place: ids are allocated in the order of names, so that hosts without a history
allocate the same ones; nothing else may depend on it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from tidegate.errors import GenerationRefused
from tidegate.model.constants import MAX_NETWORK_VIPS, MAX_ROUTES
from tidegate.model.generation import (
    Freed,
    FreedIds,
    Generation,
    Identity,
    PlacedBackend,
    PlacedPool,
    PlacedVip,
    PlannedPool,
)
from tidegate.model.grouped import changed_values
from tidegate.model.values import BackendKey, ByPool, Desired, Endpoint, Fitness, Vip
from tidegate.planner import pools
from tidegate.planner.digest import generation_digest, pool_line, vip_line
from tidegate.planner.ids import allocators
from tidegate.planner.vips import place_vips


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
    ids = allocators(previous, now)
    planned = pools.plan_pools(desired, previous, now, fitness, ids)
    placed = {name: each.placed for name, each in planned.items() if each.placed is not None}
    backends = ByPool(groups={n: e.backends for n, e in planned.items() if e.backends})
    serving = {name for name, each in planned.items() if each.serves}
    vips = place_vips(desired.vips, serving, previous, ids.vips, now)
    last = (previous.vips, previous.pools, previous.backends, previous.hash_seed)
    same = (vips, placed, backends, desired.hash_seed) == last
    return Generation(
        number=previous.number if same else previous.number + 1,
        revision=desired.revision,
        digest=_digest(vips, planned, desired.hash_seed),
        vips=vips,
        pools=placed,
        backends=backends,
        freed=_freed_ids(previous, vips, placed, backends, now),
        hash_seed=desired.hash_seed,
        release=desired.release,
        pointer=desired.pointer,
        planned=planned,
    )


def _digest(
    vips: Mapping[str, PlacedVip], planned: Mapping[str, PlannedPool], hash_seed: str | None
) -> str:
    lines = (each.line for each in planned.values() if each.placed is not None)
    return generation_digest((placed.line for placed in vips.values()), lines, hash_seed)


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
    groups = generation.by_pool.groups
    moments = (
        _moment(generation, name, groups.get(name, {}))
        for name in generation.pools.keys() | groups.keys()
    )
    return min((moment for moment in moments if moment is not None), default=None)


def _moment(
    generation: Generation, name: str, backends: Mapping[BackendKey, PlacedBackend]
) -> int | None:
    """Return the moment of a pool, as it was planned if it still is what was planned."""
    known, placed = generation.planned.get(name), generation.pools.get(name)
    if known is not None and known.placed is placed and known.backends is backends:
        return known.next_change
    return pools.next_moment(placed, backends)


def _freed_ids(
    previous: Generation,
    vips: Mapping[str, PlacedVip],
    placed: Mapping[str, PlacedPool],
    backends: ByPool[PlacedBackend],
    now: int,
) -> FreedIds:
    """Return the freed ids: those freed by this step, and those freed before and not reused."""
    freed = previous.freed
    of_vips = changed_values(previous.vips, vips)
    had = {placed.identity: placed.vip.endpoint for placed in of_vips.before}
    of_pools = changed_values(previous.pools, placed)
    of_backends = [
        changed_values(previous.by_pool.group(name), backends.group(name))
        for name in backends.differing(previous.by_pool)
    ]
    return FreedIds(
        _freed(freed.vips, had, _identities(of_vips.after), now),
        _freed(freed.pools, _plain(of_pools.before), _identities(of_pools.after), now),
        _freed(
            freed.backends,
            _plain(placed for each in of_backends for placed in each.before),
            _identities(placed for each in of_backends for placed in each.after),
            now,
        ),
    )


def _freed(
    freed: Mapping[int, Freed],
    before: Mapping[Identity, Endpoint | None],
    after: Collection[Identity],
    now: int,
) -> Mapping[int, Freed]:
    """Return the freed ids of a kind.

    Args:
        freed: those that were.
        before: who had an id, of those that are others now.
        after: who has one instead.
        now: wall clock, s.
    """
    ids = {identity.id for identity in after}
    gone = {i: endpoint for i, endpoint in before.items() if i.id not in ids}
    if not gone and not (ids & freed.keys()):
        return freed
    found = {id_: last for id_, last in freed.items() if id_ not in ids}
    return found | {i.id: Freed(i.incarnation, now, endpoint) for i, endpoint in gone.items()}


def _identities(placed: Iterable[PlacedVip | PlacedPool | PlacedBackend]) -> set[Identity]:
    return {each.identity for each in placed}


def _plain(placed: Iterable[PlacedPool | PlacedBackend]) -> dict[Identity, Endpoint | None]:
    return dict.fromkeys(_identities(placed))


def confirm(found: Generation) -> Generation:
    """Return a generation that was read back, with its digests.

    A pool whose table does not follow from its backends, which a crash between the two leaves
    behind, gets an empty digest, so that the next plan rebuilds it.
    """
    by_pool = found.by_pool
    vips = {name: replace(p, line=vip_line(p.vip, p.unserved)) for name, p in found.vips.items()}
    confirmed = {
        name: pools.confirmed(placed, by_pool.group(name)) for name, placed in found.pools.items()
    }
    lines = (pool_line(confirmed[name], by_pool.group(name).values()) for name in sorted(confirmed))
    digest = generation_digest((vips[n].line for n in sorted(vips)), lines, found.hash_seed)
    return replace(found, vips=vips, pools=confirmed, digest=digest)
