# SPDX-License-Identifier: Apache-2.0
"""What came of a change, as values: the generations that came into force, and what was refused."""

from dataclasses import dataclass
from typing import NamedTuple

from tidegate.model.generation import Generation
from tidegate.model.values import Desired, Rejection, Snapshot
from tidegate.planner.diff import Diff


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
