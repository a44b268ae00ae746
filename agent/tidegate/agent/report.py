# SPDX-License-Identifier: Apache-2.0
"""What the agent reports to the fleet: facts in, status document out."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tidegate import __version__
from tidegate.agent.config import AgentConfig
from tidegate.agent.outcome import Outcome
from tidegate.dataplane.kernel.programs import XdpMode
from tidegate.dataplane.links import Link
from tidegate.keyspace.etcd.watch_loop import WatchState
from tidegate.keyspace.paths import DEFAULT_TRACK
from tidegate.keyspace.status.document import State, StatusDocument, refusals, rfc3339
from tidegate.keyspace.status.parts import (
    BackendsStatus,
    HealthStatus,
    InterfaceStatus,
    OverrideStatus,
    TrafficStatus,
    Usage,
)
from tidegate.model.constants import MAX_BACKENDS, MAX_POOLS, MAX_VIPS
from tidegate.model.generation import Generation
from tidegate.model.values import Override, Rejection, View


@dataclass(frozen=True)
class Facts:
    """Everything that a status is made of. Times are wall-clock seconds.

    Attributes:
        view: what etcd says; None until it has been read.
        frozen: why nothing new is published; empty if it is.
        overrides: those that have not expired.
        damages: what the audit found and could not repair.
        repairs: what it repaired since the start.
        health: what health checks do not act upon.
        unready: why the host is not ready; empty if it is.
        needed: families of outer packets that backends in force need.
        instance: of the host's data plane.
        resting: ids that rest, by table.
        unwritten: why etcd does not take the status until a person acts; empty if it does.
        unreadable: verdicts of others that cannot be read; they do not make this host degraded.
    """

    config: AgentConfig
    generation: Generation
    outcome: Outcome
    view: View | None
    frozen: str
    overrides: Sequence[Override]
    etcd: WatchState
    links: Mapping[str, Link]
    modes: Mapping[str, XdpMode]
    traffic: TrafficStatus | None
    damages: Sequence[Rejection]
    repairs: int
    health: HealthStatus
    unready: str
    started: float
    applied: float | None
    needed: Collection[int] = ()
    instance: str = ""
    unwritten: str = ""
    warnings: tuple[str, ...] = ()
    unreadable: Sequence[Rejection] = ()
    resting: Mapping[str, int] = field(default_factory=dict)


def describe(facts: Facts) -> StatusDocument:
    """Return the status document of these facts."""
    generation = facts.generation
    listed, left_out = refusals((*facts.damages, *facts.outcome.rejections, *facts.unreadable))
    state, reason = _state(facts)
    track, release = _followed(facts)
    return StatusDocument(
        version=__version__,
        host=facts.config.host,
        instance=facts.instance,
        track=track,
        release=release,
        release_revision=facts.view.snapshot.revision if facts.view else 0,
        revision=facts.outcome.revision,
        generation=generation.number,
        generation_release=generation.release,
        generation_revision=generation.revision,
        digest=generation.digest,
        state=state,
        reason=reason,
        ready=not facts.unready,
        ready_reason=facts.unready,
        freeze=facts.frozen,
        overrides=tuple(
            OverrideStatus(
                name=each.name,
                guard=each.guard,
                pool=each.pool,
                expires_at=rfc3339(each.expires_at),
            )
            for each in facts.overrides
        ),
        warnings=facts.warnings,
        refusals=listed,
        refusals_left_out=left_out,
        interfaces=tuple(
            InterfaceStatus(name=name, mode=facts.modes.get(name, "detached"))
            for name in facts.config.interfaces
        ),
        capacity={
            name: Usage(used=used, resting=facts.resting.get(name, 0), limit=limit)
            for name, used, limit in (
                ("vips", len(generation.vips), MAX_VIPS - 1),
                ("pools", len(generation.pools), MAX_POOLS - 1),
                ("backends", len(generation.backends), MAX_BACKENDS - 1),
            )
        },
        backends=_backends(generation),
        on_sorry_pool=generation.on_sorry_pool,
        health=facts.health,
        traffic=facts.traffic,
        repairs=facts.repairs,
        started_at=rfc3339(facts.started),
        applied_at=rfc3339(facts.applied) if facts.applied else None,
    )


def _backends(generation: Generation) -> BackendsStatus:
    kept = [each for each in generation.backends.values() if each.retire_at is None]
    return BackendsStatus(
        total=len(kept),
        serving=sum(each.weight > 0 for each in kept),
        unhealthy=sum(each.backend.state == "quarantine" or each.fitness.is_out for each in kept),
    )


def _followed(facts: Facts) -> tuple[str, str]:
    """Return track and release: those that etcd names, else those of what is in force."""
    if facts.view is not None:
        return facts.view.steering.track, facts.view.steering.release
    track = facts.generation.pointer or facts.config.track or DEFAULT_TRACK
    return track, facts.generation.release or facts.config.release


def _state(facts: Facts) -> tuple[State, str]:
    """Return the state and a sentence about it, the most serious first."""
    if facts.etcd.phase in ("stale", "fatal"):
        return "stale", facts.etcd.reason
    if facts.view is None:
        return "starting", facts.etcd.reason
    lacking = _lacking(facts) or _disbelieved(facts.health) or facts.unwritten
    if lacking:
        return "degraded", lacking
    if facts.frozen:
        return "frozen", facts.frozen
    if facts.outcome.rejections:
        return "degraded", f"{len(facts.outcome.rejections)} refused: {facts.outcome.rejections[0]}"
    return "synced", ""


def _disbelieved(health: HealthStatus) -> str:
    """Return why checks are not acted upon as a whole, or not made; empty if they are."""
    if health.blind:
        return "This host finds dead what the other hosts reach: its own path is broken."
    if health.broken_checker:
        return "All checked backends failed at once: the checks are not believed."
    if health.hindrance:
        return health.hindrance
    if health.late:
        return f"The checks of {health.late} backends are late: they have no finding here."
    return ""


def _lacking(facts: Facts) -> str:
    """Return what the data plane lacks to forward packets as it should; empty if nothing."""
    detached = [name for name in facts.config.interfaces if name not in facts.modes]
    if detached:
        return f"The program is not on {', '.join(detached)}."
    if facts.damages:
        return facts.damages[0].reason
    return "; ".join(filter(None, (link.missing(facts.needed) for link in facts.links.values())))
