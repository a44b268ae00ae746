# SPDX-License-Identifier: Apache-2.0
"""Remember how many backends of a pool served lately, so that guards can look at a window of time.

A pool that loses its backends one by one loses them all. So each placed pool keeps the levels that
it came down from, as documents alone have it: what health does is no removal. The ledger keeps them
over restarts. Of levels only those higher than all after them can matter, and there is a limit: a
level that is merged into a later one is remembered for longer, which errs on the safe side.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from tidegate.model.generation import Level, PlacedPool
from tidegate.model.values import Backend, Pool
from tidegate.planner.effective import effect

WINDOW_SECONDS: Final = 300
"""Within this time the documents may take no more from a pool than one change may."""
MOST: Final = 16
"""Levels that a pool keeps: the ledger's record has room for them."""


def serves(backend: Backend, pool: Pool | None, now: int) -> bool:
    """Return whether a backend takes new flows by its document alone."""
    if backend.starts_at is None:
        return backend.state == "active" and backend.weight > 0
    return effect(backend, pool, now).weight > 0


def serving(backends: Iterable[Backend], pool: Pool | None, now: int) -> int:
    """Return how many of a pool's backends serve by their documents."""
    return sum(serves(backend, pool, now) for backend in backends)


def after_change(placed: PlacedPool, was: int, is_now: int, now: int) -> tuple[Level, ...]:
    """Return a pool's levels when the number of those that serve changes."""
    if is_now == was:
        return placed.levels
    kept = [level for level in placed.levels if level.until > now - WINDOW_SECONDS]
    if is_now < was:
        kept = [level for level in kept if level.serving > was]
        kept.append(Level(now, was))
    else:
        kept = [level for level in kept if level.serving > is_now]
    while len(kept) > MOST:
        gaps = [later.until - level.until for level, later in pairwise(kept)]
        least = gaps.index(min(gaps))
        merged = Level(kept[least + 1].until, kept[least].serving)
        kept[least : least + 2] = [merged]
    return tuple(kept)


def peak(placed: PlacedPool, was: int, now: int) -> int:
    """Return the most that served at any moment of the window that ends now."""
    recent = (level.serving for level in placed.levels if level.until > now - WINDOW_SECONDS)
    return max(was, *recent, was)


def next_moment(placed: Iterable[PlacedPool], after: int) -> int | None:
    """Return the first second at which a level is no longer looked back to, or None."""
    moments = (level.until + WINDOW_SECONDS for each in placed for level in each.levels)
    return min((moment for moment in moments if moment > after), default=None)
