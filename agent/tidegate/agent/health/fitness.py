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

All times are of this host's monotonic clock, those of votes that others cast too (`ballots`); only
where a slow start is counted from is told in wall-clock time, which the planner knows. A slow start
is for who was out: verdicts that are read anew begin none for a backend that is in service.
"""

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from tidegate.health.limits import Limits, eject, is_checker_broken
from tidegate.health.standing import Standing
from tidegate.health.verdict import Effective, Opinion
from tidegate.model.generation import Generation
from tidegate.model.values import BackendKey, Fitness, Pool

_SPREAD: Final = 2.0
"""Intervals within which all hosts see one failure: each has a phase of its own, and jitter."""

_OUT: Final = Fitness(is_out=True)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What health makes of a generation.

    Attributes:
        fitness: what the planner takes; backends that are not in it are fit.
        panics: pools that keep unhealthy backends since too few are healthy.
        is_checker_broken: everything failed at once, which is not believed.
        waiting: unhealthy backends that the limit per minute still keeps in.
        next_moment: monotonic second at which time alone changes it, or None.
        found: the opinion that counts for each backend that has one.
        joined: monotonic second from which each that had been out is back.
    """

    fitness: Mapping[BackendKey, Fitness]
    panics: tuple[str, ...] = ()
    is_checker_broken: bool = False
    waiting: int = 0
    next_moment: float | None = None
    found: Mapping[BackendKey, Effective] = field(default_factory=dict, compare=False)
    joined: Mapping[BackendKey, float] = field(default_factory=dict, compare=False)


NOTHING_JUDGED: Final = Judgement({})


class Moment(NamedTuple):
    """When it is judged, and in which light.

    Attributes:
        now: monotonic clock, s.
        ahead: seconds by which the wall clock is ahead of that.
        is_unsure: contact to etcd was lost, and not all verdicts have been read anew. What is out
            then stays out, whatever is read, unless this host itself finds it alive.
    """

    now: float
    ahead: float = 0.0
    is_unsure: bool = False


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
    moment: Moment,
    before: Judgement = NOTHING_JUDGED,
) -> Judgement:
    """Return what health makes of the backends of a generation.

    Args:
        generation: pools and backends.
        own: what this host thinks.
        fleet: what the fleet thinks; None if that is not known, so each pool goes by `own`.
        moment: when.
        before: the last judgement.
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
    gone = _gone(generation, before)
    joined = _joined(found, before, gone, {key for name in checked for key in by_pool[name]})
    fit = {
        key: Fitness(is_out=False, joins_at=round(at + moment.ahead)) for key, at in joined.items()
    }
    left = _left(generation, found)
    if is_checker_broken(_failures(found, own), _SPREAD * interval):
        return Judgement(fit | left, is_checker_broken=True, found=found, joined=joined)
    judgement = _limited(generation, checked, by_pool, found, moment.now, gone)
    fitness = {**fit, **judgement.fitness}
    if moment.is_unsure:
        kept = {n for n in by_pool if n not in judgement.panics}
        fitness |= {key: _OUT for key in gone if key.pool in kept and _may_be_dead(own.get(key))}
    undecided = {
        key: generation.backends[key].fitness
        for name, pool in checked.items()
        if pool.health is not None and pool.health.check is not None
        for key in by_pool[name]
        if key not in found
        and not _is_unused(own.get(key))
        and generation.backends[key].fitness.is_out
    }
    fitness = {**undecided, **fitness, **left}
    return replace(judgement, fitness=fitness, found=found, joined=joined)


def _gone(generation: Generation, before: Judgement) -> set[BackendKey]:
    """Return those that are out, in the generation in force or by the last judgement."""
    gone = {key for key, placed in generation.backends.items() if placed.fitness.is_out}
    return gone | {key for key, fit in before.fitness.items() if fit.is_out}


def _joined(
    found: Mapping[BackendKey, Effective],
    before: Judgement,
    gone: Container[BackendKey],
    checked: Container[BackendKey],
) -> dict[BackendKey, float]:
    """Return when those that were out came back; who is in service keeps what it has."""
    joined = {
        key: moment for key, moment in before.joined.items() if key in checked and key not in gone
    }
    for key, effective in found.items():
        if effective.state == "healthy" and effective.has_recovered:
            joined.setdefault(key, effective.since)
    return joined


def _failures(
    found: Mapping[BackendKey, Effective], own: Mapping[BackendKey, Standing]
) -> Iterator[float | None]:
    """Yield for each probed backend when it failed: by own probes, if they say so, or by votes.

    Votes that are read anew after a while seem to have been cast together; own findings remember.
    """
    for key, effective in found.items():
        standing = own.get(key)
        if standing is None:
            continue
        if effective.state == "healthy":
            yield None
        else:
            seen = standing.since if standing.state == "unhealthy" else effective.since
            yield min(seen, effective.since)


def _may_be_dead(standing: Standing | None) -> bool:
    """Return whether this host checks it, and does not find it alive: dead, or not known yet."""
    return standing is not None and standing.state in ("unhealthy", "initial")


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
    now: float,
    gone: Container[BackendKey],
) -> Judgement:
    fitness: dict[BackendKey, Fitness] = {}
    panics: list[str] = []
    moments: list[float] = []
    replaceable = _replaceable(generation)
    for name, pool in checked.items():
        assert pool.health is not None  # noqa: S101 - that is what `checked` means
        limits = Limits(pool.health.panic_percent, pool.health.most_per_minute, name in replaceable)
        members = [key for key in by_pool[name] if _may_serve(generation, key)]
        ejection = eject(members, found, limits, now, gone)
        out = set(ejection.out)
        if ejection.panic:
            panics.append(name)
        else:  # a dead one that drains is taken out as well: its flows are better off elsewhere
            others = set(by_pool[name]) - set(members)
            out |= {k for k in others if k in found and found[k].state == "unhealthy"}
        fitness |= dict.fromkeys(out, _OUT)
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
        since = standing.since
        if standing.state == "healthy":
            found[key] = Effective("healthy", since, 1, 0, standing.has_recovered)
        elif standing.state == "unhealthy":
            found[key] = Effective("unhealthy", since, 0, 1)
    return found
