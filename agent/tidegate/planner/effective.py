# SPDX-License-Identifier: Apache-2.0
"""Decide what a backend does at a moment: its weight, and whether its flows still reach it.

A pure function of the documents and of the time in whole seconds, without any history. So every
host has the same weights at the same moments, also one that starts in the middle of a ramp.

* A backend that starts at S takes no new flows before S. Its pool's slow start of L seconds has N
  steps: step k (from 0) begins at S + k L / (N - 1), rounded up to a second, and gives (k + 1) / N
  of the weight, rounded down but at least 1. So the first step is at S, and the last, which is the
  full weight, at S + L.
* A backend that drains with a deadline keeps its flows until the deadline.
* A backend that health checks have taken out is unreachable. It joins again like one that starts at
  that moment.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from tidegate.model.document_types import BackendState
from tidegate.model.values import FIT, Backend, Fitness, Pool

UNREACHABLE: Final[tuple[BackendState, ...]] = ("quarantine", "disabled")


class Effect(NamedTuple):
    """What a backend does at one moment."""

    weight: int
    """Its share of new flows; 0 takes none."""
    reachable: bool
    """Whether its flows go to it."""


def effect(backend: Backend, pool: Pool | None, now: int, fitness: Fitness = FIT) -> Effect:
    """Return what a backend does at a moment.

    Args:
        backend: its document.
        pool: its pool, which has the slow start; None if it was deleted before the backend.
        now: wall clock, s.
        fitness: what health checks make of it.
    """
    if fitness.is_out:
        return Effect(0, reachable=False)
    deadline = backend.drain_deadline
    expired = backend.state == "drain" and deadline is not None and now >= deadline
    reachable = backend.state not in UNREACHABLE and not expired
    weight = _weight(backend, pool, now, fitness) if backend.state == "active" else 0
    return Effect(weight, reachable)


def next_change(
    backend: Backend, pool: Pool | None, last: Effect, fitness: Fitness = FIT
) -> int | None:
    """Return the first moment at which time alone changes the last effect, or None."""
    for moment in _moments(backend, pool, fitness):
        new = effect(backend, pool, moment, fitness)
        # Time only ever adds weight, and only ever takes flows away.
        if new.weight > last.weight or new.reachable < last.reachable:
            return moment
    return None


def _moments(backend: Backend, pool: Pool | None, fitness: Fitness) -> Iterator[int]:
    """Yield everything that may change at a moment, in order."""
    start = _start(backend, fitness)
    if backend.state == "active" and start is not None:
        yield from (moment for moment, _ in _steps(start, pool))
    elif backend.state == "drain" and backend.drain_deadline is not None:
        yield backend.drain_deadline


def _start(backend: Backend, fitness: Fitness) -> int | None:
    """Return when it begins to serve: by its document or after it was out, the later of both."""
    starts, joins = backend.starts_at, fitness.joins_at
    if starts is None or joins is None:  # every backend of every change comes here
        return joins if starts is None else starts
    return max(starts, joins)


def _weight(backend: Backend, pool: Pool | None, now: int, fitness: Fitness) -> int:
    full, start = backend.weight, _start(backend, fitness)
    if start is None or full == 0:
        return full
    reached = [part for moment, part in _steps(start, pool) if moment <= now]
    if not reached:
        return 0
    done, steps = reached[-1]
    return max(1, full * done // steps)


def _steps(start: int, pool: Pool | None) -> list[tuple[int, tuple[int, int]]]:
    """Return the moments of a ramp, each with its share of the weight as a fraction."""
    if pool is None or pool.slow_start == 0:
        return [(start, (1, 1))]
    length, steps = pool.slow_start, pool.slow_start_steps
    return [(start - (-k * length // (steps - 1)), (k + 1, steps)) for k in range(steps)]
