# SPDX-License-Identifier: Apache-2.0
"""What a change trace says of a change: how it ended, what it changed, in whose traces it is.

Pure functions of what is known when the change is over.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple

from tidegate.agent.outcome import Applied, Outcome
from tidegate.keyspace.paths import FLEET_KEY
from tidegate.model.generation import Generation
from tidegate.model.received_writes import ReceivedWrites, TracedWrites
from tidegate.model.values import Rejection, View
from tidegate.telemetry.changes import Joined, Refusal
from tidegate.telemetry.names import changes as names
from tidegate.telemetry.span import Attributes, Context, Value, parse_traceparent

_SHOWN: Final = 8
_HOSTS: Final = "hosts/"
IN_FORCE: Final = ("applied", "unchanged")
"""Outcomes of what is in force when the step is over."""


class Result(NamedTuple):
    """How a change ended; `error` and its type are empty if it is in force."""

    outcome: str
    error: str = ""
    error_type: str = ""


def result(
    own: Applied | None, rejections: Sequence[Rejection], fresh: Sequence[Rejection], frozen: str
) -> Result:
    """Return how a change ended.

    Args:
        own: the generation that it made; None if it made none.
        rejections: everything that is refused now.
        fresh: what of it was not refused before.
        frozen: why the host keeps what it has; empty if it does not.
    """
    if own is not None:
        return Result("applied")
    if frozen:
        return Result("frozen", frozen, "frozen")
    whole = [each for each in rejections if is_whole(each)]
    if whole:
        outcome = "failed" if whole[0].stage == "publish" else "refused"
        return Result(outcome, whole[0].reason, whole[0].stage)
    if fresh:
        return Result("refused", fresh[0].reason, fresh[0].stage)
    return Result("unchanged")


def is_whole(rejection: Rejection) -> bool:
    """Return whether it keeps everything out of force, and not one document."""
    return rejection.stage in ("guard", "build", "publish")


def is_freeze(arrived: ReceivedWrites) -> bool:
    """Return whether nothing arrived but what may be the freeze, or the thaw, itself."""
    return all(key == FLEET_KEY or key.startswith(_HOSTS) for key in arrived.keys)


def parent_of(arrived: ReceivedWrites) -> Context | None:
    """Return the trace context of the latest write that carries one."""
    return parse_traceparent(arrived.traced[-1].traceparent) if arrived.traced else None


def received(arrived: ReceivedWrites, parent: Context | None) -> int | None:
    """Return when a change began: with the write whose trace it is in, or else the first.

    A span does not begin before the one that it is a child of.
    """
    if not arrived.total:
        return None
    own = [o.received for o in arrived.traced if parse_traceparent(o.traceparent) == parent]
    return own[0] if own else arrived.began


def refused_of(origin: TracedWrites, rejections: Iterable[Rejection]) -> Rejection | None:
    """Return the first refusal of the writes that carry a trace context."""
    return next((each for each in rejections if each.key in origin.keys), None)


def others(
    arrived: ReceivedWrites, parent: Context | None, rejections: Sequence[Rejection]
) -> tuple[Joined, ...]:
    """Return the writes that belong to other traces than the change."""
    found = []
    for origin in arrived.traced:
        context = parse_traceparent(origin.traceparent)
        if context == parent:
            continue
        refused = refused_of(origin, rejections)
        found.append(
            Joined(
                parent=context,
                received=origin.received,
                revision=origin.revision,
                keys=origin.keys,
                total=origin.total,
                error=refused.reason if refused else "",
                error_type=refused.stage if refused else "",
            )
        )
    return tuple(found)


def refusals(rejections: Iterable[Rejection], stages: Sequence[str]) -> tuple[Refusal, ...]:
    """Return refusals, each with the stage that it was refused in.

    Args:
        rejections: what was refused.
        stages: of the change, in their order.
    """
    return tuple(
        Refusal(
            stage=_stage(each, stages),
            error_type=each.stage,
            key=each.key,
            field=each.field,
            reason=each.reason,
            revision=each.revision,
        )
        for each in rejections
    )


def _stage(rejection: Rejection, stages: Sequence[str]) -> str:
    match rejection.stage:
        case "guard":  # over documents before there is a plan, over tables after it
            return "disruption" if "disruption" in stages else "guard"
        case "build" | "publish" as stage:
            return stage
        case _:
            return "validate"


def seen(outcome: Outcome, view: View | None, in_force: Generation) -> dict[str, Value]:
    """Return what a change was made of, and what is in force."""
    return {
        names.REVISION.key: outcome.revision,
        names.NUMBER.key: in_force.number,
        names.DIGEST.key: in_force.digest,
        names.RELEASE.key: in_force.release,
        names.TRACK.key: view.steering.track if view else "",
    }


def changed(applied: Applied) -> Attributes:
    """Return what a generation changed."""
    diff = applied.diff
    pools = {*diff.pools.added, *diff.pools.removed, *diff.pools.changed, *diff.moves}
    vips = {*diff.vips.added, *diff.vips.removed, *diff.vips.changed}
    vips |= {
        name
        for name, placed in applied.generation.vips.items()
        if not pools.isdisjoint(placed.vip.pools)
    }
    return {
        names.MOVED.key: sum(move.moved for move in diff.moves.values()),
        names.MINIMUM.key: sum(move.minimum for move in diff.moves.values()),
        names.VIPS.key: tuple(islice(sorted(vips), _SHOWN)),
        names.VIP_COUNT.key: len(vips),
        names.POOLS.key: tuple(islice(sorted(pools), _SHOWN)),
        names.POOL_COUNT.key: len(pools),
        names.BACKEND_COUNT.key: sum(map(len, diff.backends)),
    }
