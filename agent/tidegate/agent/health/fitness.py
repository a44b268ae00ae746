# SPDX-License-Identifier: Apache-2.0
"""From findings to what the planner takes: whose finding counts, and how much it may do. Pure.

Each pool says whose finding counts. In `fleet` it is the opinion that all hosts compute equally; in
`local` this host's own; in `external` what a control system has written, which is an opinion too.
Then the pool's limits apply. A backend without any finding is fit, but one that was out stays out
until there is a finding that counts: an agent that has just started has none, nor has a fleet whose
verdicts expired with their leases while etcd was away.

A backend whose key was deleted is checked for as long as it drains, and taken out like others. It
is no member that a panic or a broken checker would need: one that is out comes back only when it is
found healthy, also where nobody checks any more, since its pool or its check has gone.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from tidegate.health.limits import Limits, eject, is_checker_broken
from tidegate.health.standing import Standing
from tidegate.health.verdict import Effective, Opinion
from tidegate.model.generation import Generation
from tidegate.model.values import BackendKey, Fitness, Pool

_SPREAD: Final = 2.0
"""Intervals within which all hosts see one failure: each has a phase of its own, and jitter."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What health makes of a generation.

    Attributes:
        fitness: what the planner takes; backends that are not in it are fit.
        panics: pools that keep unhealthy backends since too few are healthy.
        is_checker_broken: everything failed at once, which is not believed.
        waiting: unhealthy backends that the limit per minute still keeps in.
        next_moment: wall-clock second at which time alone changes it, or None.
        found: the opinion that counts for each backend that has one.
    """

    fitness: Mapping[BackendKey, Fitness]
    panics: tuple[str, ...] = ()
    is_checker_broken: bool = False
    waiting: int = 0
    next_moment: int | None = None
    found: Mapping[BackendKey, Effective] = field(default_factory=dict, compare=False)


class Evidence(NamedTuple):
    """What stands behind what health makes of a backend.

    Attributes:
        state: what its voters think; empty if there are none.
        votes: those who think so.
        voters: all whose opinion counts; one in `local` mode, and without etcd.
        reason: what this host itself found.
    """

    state: str = ""
    votes: int = 0
    voters: int = 0
    reason: str = ""


def evidence(effective: Effective | None, standing: Standing | None) -> Evidence:
    """Return the opinion that counts, if there is one, with this host's own finding."""
    reason = "" if standing is None else standing.reason
    if effective is None:
        return Evidence(reason=reason)
    sides = {"healthy": effective.healthy, "unhealthy": effective.unhealthy}
    return Evidence(effective.state, sides[effective.state], sum(sides.values()), reason)


def judge(
    generation: Generation,
    own: Mapping[BackendKey, Standing],
    fleet: Opinion | None,
    now: int,
) -> Judgement:
    """Return what health makes of the backends of a generation.

    Args:
        generation: pools and backends.
        own: what this host thinks.
        fleet: what the fleet thinks; None if that is not known, so each pool goes by `own`.
        now: wall clock, s.
    """
    by_pool: defaultdict[str, list[BackendKey]] = defaultdict(list)
    for key in generation.backends:
        by_pool[key.pool].append(key)
    local = _own(own)
    found: dict[BackendKey, Effective] = {}
    interval = 0.0
    checked: dict[str, Pool] = {}
    for name, in_pool in generation.pools.items():
        health = in_pool.pool.health
        if health is None:
            continue
        checked[name] = in_pool.pool
        source = local if fleet is None or health.mode == "local" else fleet.backends
        found |= {key: source[key] for key in by_pool[name] if key in source}
        if health.check is not None:
            interval = max(interval, health.check.interval)
    probed = {key: e for key, e in found.items() if key in own}
    left = _left(generation, found)
    if is_checker_broken(probed, _SPREAD * interval):
        return Judgement(_fit(found) | left, is_checker_broken=True, found=found)
    judgement = _limited(generation, checked, by_pool, found, now)
    undecided = {
        key: generation.backends[key].fitness
        for name, pool in checked.items()
        if pool.health is not None and pool.health.check is not None
        for key in by_pool[name]
        if key not in found
        and not _is_unused(own.get(key))
        and generation.backends[key].fitness.is_out
    }
    return replace(judgement, fitness={**undecided, **judgement.fitness, **left}, found=found)


def _left(
    generation: Generation, found: Mapping[BackendKey, Effective]
) -> dict[BackendKey, Fitness]:
    """Return the fitness of those that leave and were out before: only health brings them back."""
    return {
        key: Fitness(is_out=key not in found or found[key].state == "unhealthy")
        for key, placed in generation.backends.items()
        if placed.retire_at is not None and placed.fitness.is_out
    }


def _limited(
    generation: Generation,
    checked: Mapping[str, Pool],
    by_pool: Mapping[str, list[BackendKey]],
    found: Mapping[BackendKey, Effective],
    now: int,
) -> Judgement:
    fitness = _fit(found)
    panics: list[str] = []
    moments: list[int] = []
    replaceable = _replaceable(generation)
    for name, pool in checked.items():
        assert pool.health is not None  # noqa: S101 - that is what `checked` means
        limits = Limits(pool.health.panic_percent, pool.health.most_per_minute, name in replaceable)
        members = [key for key in by_pool[name] if _may_serve(generation, key)]
        ejection = eject(members, found, limits, now)
        out = set(ejection.out)
        if ejection.panic:
            panics.append(name)
        else:  # a dead one that drains is taken out as well: its flows are better off elsewhere
            others = set(by_pool[name]) - set(members)
            out |= {k for k in others if k in found and found[k].state == "unhealthy"}
        fitness |= {key: Fitness(is_out=True) for key in out}
        moments += ejection.waiting.values()
    return Judgement(
        fitness,
        tuple(sorted(panics)),
        waiting=len(moments),
        next_moment=min(moments, default=None),
    )


def _replaceable(generation: Generation) -> set[str]:
    """Return the pools that health may empty: a sorry pool serves for each VIP that uses them.

    A sorry pool is never among them: nothing would serve in its place.
    """
    serving = {key.pool for key, placed in generation.backends.items() if placed.weight > 0}
    vips = [placed.vip for placed in generation.vips.values()]
    sorry = {vip.sorry_pool for vip in vips}
    wanting = {pool for vip in vips if vip.sorry_pool not in serving for pool in vip.own_pools}
    return {pool for vip in vips for pool in vip.own_pools} - wanting - sorry


def _fit(found: Mapping[BackendKey, Effective]) -> dict[BackendKey, Fitness]:
    """Return the fitness of those that have recovered; all others are fit without an entry."""
    return {
        key: Fitness(is_out=False, joins_at=effective.since)
        for key, effective in found.items()
        if effective.state == "healthy" and effective.has_recovered
    }


def _is_unused(standing: Standing | None) -> bool:
    """Return whether nobody will ever decide, since the check cannot be made."""
    return standing is not None and standing.state == "unused"


def _may_serve(generation: Generation, key: BackendKey) -> bool:
    placed = generation.backends[key]
    is_active = placed.backend.state == "active" and placed.backend.weight > 0
    return is_active and placed.retire_at is None


def _own(standings: Mapping[BackendKey, Standing]) -> dict[BackendKey, Effective]:
    """Return this host's findings as an opinion of one."""
    found: dict[BackendKey, Effective] = {}
    for key, standing in standings.items():
        since = int(standing.since)
        if standing.state == "healthy":
            found[key] = Effective("healthy", since, 1, 0, standing.has_recovered)
        elif standing.state == "unhealthy":
            found[key] = Effective("unhealthy", since, 0, 1)
    return found
