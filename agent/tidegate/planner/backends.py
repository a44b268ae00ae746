# SPDX-License-Identifier: Apache-2.0
"""Place backends: each with its identity, and what it does now; those that leave drain first.

What failed stays failed. A backend that leaves keeps its quarantine, and what health makes of it
goes on to count: its pool's check goes on while it drains. A backend that takes over an identity,
or whose key comes back, has the health of that identity until there is a finding under its name.
"""

from collections.abc import Mapping
from dataclasses import replace

from tidegate.model.generation import PlacedBackend, PlacedPool
from tidegate.model.values import FIT, Backend, BackendKey, Fitness, Pool
from tidegate.planner.digest import backend_line
from tidegate.planner.effective import Effect, effect
from tidegate.planner.ids import Allocator
from tidegate.planner.inheritance import inherit, renamed

_Fitness = Mapping[BackendKey, Fitness] | None


def place_backends(
    wanted: Mapping[BackendKey, Backend],
    document: Pool | None,
    before: Mapping[BackendKey, PlacedBackend],
    old_pool: PlacedPool | None,
    now: int,
    fitness: _Fitness,
    allocator: Allocator,
) -> dict[BackendKey, PlacedBackend]:
    """Return the backends of a pool in the next generation, in the order of names.

    Args:
        wanted: their documents.
        document: the pool's; None if there is none.
        before: those in force.
        old_pool: the pool in force; None if there is none.
        now: wall clock, s.
        fitness: what health makes of them; None if that is not known.
        allocator: of ids of backends.

    Raises:
        GenerationRefused: ids have run out.
    """
    former, leaving = inherit(wanted, before)
    placed: dict[BackendKey, PlacedBackend] = {}
    for key in sorted(wanted):
        backend, old = wanted[key], former.get(key)
        fit = _fitness(key, old, fitness)
        is_same = old is not None and old.backend is backend and old.fitness == fit
        if old is not None and is_same and _is_timeless(old):
            placed[key] = old  # as nearly all are
            continue
        does = effect(backend, document, now, fit)
        if old is not None and is_same and _stays(old, does):
            placed[key] = old
            continue
        identity = allocator.allocate() if old is None else old.identity
        line = backend_line(backend, does.weight, reachable=does.reachable)
        placed[key] = PlacedBackend(identity, backend, *does, fitness=fit, line=line)
    for key, old in leaving.items():
        rest = _leaving(key, old, old_pool, now, fitness)
        if rest is not None:
            placed[key] = rest
    return {key: placed[key] for key in sorted(placed)} if leaving else placed


def _fitness(key: BackendKey, old: PlacedBackend | None, fitness: _Fitness) -> Fitness:
    """Return what health makes of a backend that is wanted."""
    if old is None:
        return FIT if fitness is None else fitness.get(key, FIT)
    if fitness is None:
        return old.fitness
    found = fitness.get(key)
    if found is not None:
        return found
    before = old.backend.key
    is_own = before == key and old.retire_at is None
    return FIT if is_own else fitness.get(before, old.fitness)


def _is_timeless(placed: PlacedBackend) -> bool:
    """Return whether neither time nor its pool changes what a backend does."""
    backend = placed.backend
    times = backend.starts_at, backend.drain_deadline, placed.fitness.joins_at, placed.retire_at
    return times == (None, None, None, None)


def _stays(placed: PlacedBackend, does: Effect) -> bool:
    return placed.retire_at is None and (placed.weight, placed.reachable) == does


def _has_drained(placed: PlacedBackend) -> bool:
    """Return whether its deadline has passed, so that it has no flows to wait for."""
    is_draining = placed.backend.state == "drain" and not placed.fitness.is_out
    return is_draining and not placed.reachable


def _leaving(
    key: BackendKey, placed: PlacedBackend, pool: PlacedPool | None, now: int, fitness: _Fitness
) -> PlacedBackend | None:
    """Return a backend that nobody wants: it drains until its delay ends; None after that."""
    backend, retire_at = renamed(placed, key), placed.retire_at
    if retire_at is None:
        delay = pool.pool.deregistration_delay if pool else 0
        if delay == 0 or _has_drained(placed):
            return None
        state = "drain" if backend.state == "active" else backend.state
        backend, retire_at = replace(backend, state=state), now + delay
    if retire_at <= now:
        return None
    fit = placed.fitness
    if fitness is not None:
        fit = fitness.get(placed.backend.key, fit)
    does = effect(backend, None, now, fit)
    return PlacedBackend(placed.identity, backend, *does, retire_at, fit)
