# SPDX-License-Identifier: Apache-2.0
"""What came of a change, as values: the generations that came into force, and what was refused."""

import time
from dataclasses import dataclass
from typing import NamedTuple

from tidegate.event_log import EventLog
from tidegate.model.generation import Generation
from tidegate.model.values import Desired, Rejection, Snapshot
from tidegate.planner.diff import Diff

log = EventLog(__name__)


class Applied(NamedTuple):
    """A generation that came into force, and how.

    Attributes:
        now: the wall-clock second that it was planned for.
        stepped: s by which the clock was stepped before; moments of `previous` moved with it.
        snapshot: the keys that it was made of; None if they had no part in it.
        refused: keys of it that are refused.
        order: the order that it carries out, in words; empty if there is none.
        is_kept: it is of what was in force before, not of what is wanted.
    """

    previous: Generation
    generation: Generation
    diff: Diff
    desired: Desired
    now: int
    stepped: int
    snapshot: Snapshot | None
    refused: frozenset[str]
    order: str = ""
    is_kept: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a reconciliation.

    Attributes:
        revision: latest etcd revision that was looked at.
        rejections: everything that is refused now.
        failed: the generation could not be published; it is worth trying again.
        applied: what came into force, in this order.
        kept: why the host keeps what it has, whatever is wanted; empty if it does not.
    """

    revision: int
    rejections: tuple[Rejection, ...] = ()
    failed: bool = False
    applied: tuple[Applied, ...] = ()
    kept: str = ""


def log_applied(applied: Applied, started: float, planned: float) -> None:
    """Log a generation that has come into force.

    Args:
        applied: the generation.
        started: monotonic clock, s, when planning began.
        planned: the same, when publishing began.
    """
    generation = applied.generation
    log.info(
        "generation",
        number=generation.number,
        release=generation.release or "unknown",
        revision=generation.revision,
        digest=generation.digest,
        **applied.diff.log_fields(),
        plan_ms=round((planned - started) * 1e3, 1),
        publish_ms=round((time.monotonic() - planned) * 1e3, 1),
    )
    if generation.on_sorry_pool != applied.previous.on_sorry_pool:
        log.warning("sorry_pool", vips=generation.on_sorry_pool)
