# SPDX-License-Identifier: Apache-2.0
"""From a snapshot to the generation in force: validate, guard, plan, publish, one after another.

This is the middle of the agent without its clockwork: no thread, no timer, no etcd. Whatever is
refused on the way is kept as a list of reasons, and the last good generation stays in force.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from tidegate.dataplane.host import DataPlane
from tidegate.errors import CompileError, DataplaneError, GenerationRefused
from tidegate.keyspace.readings import Memo
from tidegate.keyspace.validate import validate
from tidegate.model.generation import Generation
from tidegate.model.values import Desired, Rejection, Snapshot, Stage
from tidegate.planner import guards, next_moment, plan
from tidegate.planner.diff import difference

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What came of the last step.

    Attributes:
        revision: latest etcd revision that was looked at.
        rejections: everything that is refused now.
        failed: the generation could not be published; it is worth trying again.
    """

    revision: int
    rejections: tuple[Rejection, ...] = ()
    failed: bool = False


class Control:
    """Owns what is wanted and brings the data plane to it.

    Args:
        plane: opened, so that its publisher's generation is what the kernel holds.
        allow_empty: switches the guards against emptied prefixes off.
        clock: wall clock, s.
    """

    def __init__(
        self, plane: DataPlane, *, allow_empty: bool, clock: Callable[[], float] = time.time
    ) -> None:
        self._plane = plane
        self._publisher = publisher = plane.publisher
        self._clock = clock
        self._snapshot: Snapshot | None = None
        self._memo = Memo()
        self._last_good = in_force_as_desired(publisher.in_force)
        self.allow_empty = allow_empty
        self.outcome = Outcome(publisher.in_force.revision)

    def take(self, snapshot: Snapshot) -> None:
        """A new snapshot; the next step works on it."""
        self._snapshot = snapshot

    def due(self) -> bool:
        """Whether time alone changes what is in force."""
        moment = next_moment(self._publisher.in_force)
        return moment is not None and moment <= self._clock()

    def step(self) -> Outcome:
        """One change from end to end; never raises for what a document or the kernel refuses."""
        desired, rejections = self._last_good, self.outcome.rejections
        if self._snapshot is not None:
            validation = validate(self._snapshot, self._last_good, self._memo)
            desired, rejections = validation.desired, validation.rejections
        refused: tuple[Rejection, ...] = ()
        if not self.allow_empty:
            refused = guards.refusals(desired, self._publisher.in_force)
        failure = None
        if not refused:
            failure = self._apply(desired)
        self.outcome = Outcome(
            desired.revision,
            (*rejections, *refused, *([failure] if failure else ())),
            failed=failure is not None,
        )
        return self.outcome

    def _apply(self, desired: Desired) -> Rejection | None:
        previous = self._publisher.in_force
        started = time.monotonic()
        try:
            generation = plan(desired, previous, int(self._clock()))
            planned = time.monotonic()
            # What the new generation needs must be there before it, what the old one needed after.
            self._plane.serve(previous, generation)
            self._publisher.publish(generation, time.monotonic())
            self._plane.serve(generation)
        except (GenerationRefused, CompileError) as error:
            return _whole("build", error, desired.revision)
        except DataplaneError as error:
            return _whole("publish", error, desired.revision)
        self._last_good = desired
        if generation.number != previous.number:
            diff = difference(previous, generation)
            log.info(
                "generation number=%d revision=%d digest=%s %s plan_ms=%.1f publish_ms=%.1f",
                *(generation.number, generation.revision, generation.digest, diff),
                (planned - started) * 1e3,
                (time.monotonic() - planned) * 1e3,
            )
        return None


def _whole(stage: Stage, error: Exception, revision: int) -> Rejection:
    return Rejection("", "", str(error), stage, revision)


def in_force_as_desired(generation: Generation) -> Desired:
    """What the documents said that a generation was made of: last good values after a restart."""
    return Desired(
        revision=generation.revision,
        vips={name: placed.vip for name, placed in generation.vips.items()},
        pools={name: placed.pool for name, placed in generation.pools.items()},
        backends={
            key: placed.backend
            for key, placed in generation.backends.items()
            if placed.retire_at is None
        },
        hash_seed=generation.hash_seed,
    )
