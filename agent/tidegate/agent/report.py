# SPDX-License-Identifier: Apache-2.0
"""What the agent tells the fleet of itself: facts in, status document out."""

from collections.abc import Mapping
from dataclasses import dataclass

from tidegate import __version__
from tidegate.agent.config import AgentConfig
from tidegate.agent.control import Outcome
from tidegate.dataplane.links import Link
from tidegate.dataplane.programs import XdpMode
from tidegate.keyspace.status import (
    InterfaceStatus,
    State,
    StatusDocument,
    Usage,
    refusals,
    rfc3339,
)
from tidegate.keyspace.watch_loop import WatchState
from tidegate.model.constants import MAX_BACKENDS, MAX_POOLS, MAX_VIPS
from tidegate.model.generation import Generation


@dataclass(frozen=True)
class Facts:
    """Everything that a status is made of. Times are wall-clock seconds."""

    config: AgentConfig
    generation: Generation
    outcome: Outcome
    etcd: WatchState
    synced: bool
    links: Mapping[str, Link]
    modes: Mapping[str, XdpMode]
    started: float
    applied: float | None


def describe(facts: Facts) -> StatusDocument:
    """The status document of these facts."""
    generation = facts.generation
    listed, left_out = refusals(facts.outcome.rejections)
    state, reason = _state(facts)
    return StatusDocument(
        version=__version__,
        host=facts.config.host,
        release=facts.config.release,
        revision=facts.outcome.revision,
        generation=generation.number,
        generation_revision=generation.revision,
        digest=generation.digest,
        state=state,
        reason=reason,
        refusals=listed,
        refusals_left_out=left_out,
        interfaces=tuple(
            InterfaceStatus(name=name, mode=facts.modes.get(name, "detached"))
            for name in facts.config.interfaces
        ),
        capacity={
            "vips": Usage(used=len(generation.vips), limit=MAX_VIPS - 1),
            "pools": Usage(used=len(generation.pools), limit=MAX_POOLS - 1),
            "backends": Usage(used=len(generation.backends), limit=MAX_BACKENDS - 1),
        },
        started_at=rfc3339(facts.started),
        applied_at=rfc3339(facts.applied) if facts.applied else None,
    )


def _state(facts: Facts) -> tuple[State, str]:
    """The state and a sentence about it, the most serious first."""
    if facts.etcd.phase in ("stale", "fatal"):
        return "stale", facts.etcd.reason
    if not facts.synced:
        return "starting", facts.etcd.reason
    detached = [name for name in facts.config.interfaces if name not in facts.modes]
    if detached:
        return "degraded", f"The program is not on {', '.join(detached)}."
    missing = [link.missing() for link in facts.links.values() if link.missing()]
    if missing:
        return "degraded", "; ".join(filter(None, missing))
    if facts.outcome.rejections:
        return "degraded", f"{len(facts.outcome.rejections)} refused: {facts.outcome.rejections[0]}"
    return "synced", ""
