# SPDX-License-Identifier: Apache-2.0
"""From a view of etcd to the generation in force: validate, guard, plan, publish, in this order.

This is the middle of the agent without its clockwork: no thread, no timer, no etcd. Whatever is
refused on the way is kept as a list of reasons, and the last good generation stays in force.

Whatever must not be published (a guard refuses it, or somebody has frozen the host) is still read
and validated, so that its faults show; and what time alone does to the generation in force goes on:
windows close, drains end, weights ramp.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from tidegate.agent.clock import StepWatch
from tidegate.dataplane.plane import DataPlane
from tidegate.errors import CapabilityError, CompileError, DataplaneError, GenerationRefused
from tidegate.keyspace.documents.decode import shortened
from tidegate.keyspace.documents.memo import Memo
from tidegate.keyspace.documents.validate import validate
from tidegate.model.generation import Generation
from tidegate.model.values import (
    BackendKey,
    Desired,
    Fitness,
    Override,
    Rejection,
    Snapshot,
    Stage,
    View,
)
from tidegate.planner import after_step, guards, next_moment, plan
from tidegate.planner.diff import Diff, difference
from tidegate.planner.guards import Limits

log = logging.getLogger(__name__)

_KEYSPACE: Final = "keyspace"
AGAIN: Final = "again"
"""Mark at which the work on what is wanted ends, and that on what stays in force begins."""
_LONGEST_REASON: Final = 2000


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


class Applied(NamedTuple):
    """A generation that came into force, and how.

    Attributes:
        now: the wall-clock second that it was planned for.
        stepped: s by which the clock was stepped before; moments of `previous` moved with it.
        snapshot: the keys that it was made of; None if they had no part in it.
        refused: keys of it that are refused.
        order: the order that it obeys, in words; empty if it obeys none.
    """

    previous: Generation
    generation: Generation
    diff: Diff
    desired: Desired
    now: int
    stepped: int
    snapshot: Snapshot | None
    refused: frozenset[str]
    order: str


class Control:
    """Owns what is wanted and brings the data plane to it.

    Args:
        plane: opened, so that its publisher's generation is what the kernel holds.
        limits: what guards hold changes to.
        clock: wall clock, s.

    Attributes:
        applied: hears of each generation that comes into force.
        mark: hears of each stage that has ended, by name (docs/telemetry.md).
    """

    def __init__(
        self, plane: DataPlane, limits: Limits, clock: Callable[[], float] = time.time
    ) -> None:
        self._plane = plane
        self._publisher = publisher = plane.publisher
        self._clock = clock
        self._memo = Memo()
        self._freezes: dict[str, str] = {}
        self._looked = clock()
        self._steps = StepWatch(clock)
        self._stepped = 0
        self._refused: frozenset[str] = frozenset()
        self._last_good = in_force_as_desired(publisher.in_force)
        self.view: View | None = None
        self.limits = limits
        self.fitness: Mapping[BackendKey, Fitness] | None = None
        """What health makes of backends; None while it is not known, which leaves each as it is."""
        self.applied: Callable[[Applied], None] = lambda _: None
        self.mark: Callable[[str], None] = lambda _: None
        self.outcome = Outcome(publisher.in_force.revision)

    def take(self, view: View) -> None:
        """A new view; the next step works on it."""
        self.view = view
        self.freeze(_KEYSPACE, view.steering.freeze)

    def freeze(self, by: str, reason: str) -> None:
        """Keeps what is in force from the next step on, until the reason is empty.

        Args:
            by: who says so. Each has a reason of its own, and all must be lifted.
            reason: a sentence; empty lifts this one's freeze.
        """
        self._freezes.pop(by, None)
        if reason:
            self._freezes[by] = reason

    @property
    def frozen(self) -> str:
        """Why nothing new is published; empty if it is."""
        return "; ".join(self._freezes.values())

    @property
    def overrides(self) -> tuple[Override, ...]:
        """Orders that lift a guard now."""
        steering = self.view.steering if self.view else None
        now = self._clock()
        return tuple(o for o in steering.overrides if o.expires_at > now) if steering else ()

    def next_moment(self) -> int | None:
        """The wall-clock second at which time alone asks for a step, or None."""
        moments = [next_moment(self._publisher.in_force)]
        if self.view is not None:
            moments.append(guards.next_expiry(self.view.steering.overrides, self._looked))
        return min((moment for moment in moments if moment is not None), default=None)

    def due(self) -> bool:
        """Whether that second has come, or the clock was stepped."""
        self._look_at_clock()
        moment = self.next_moment()
        return bool(self._stepped) or (moment is not None and moment <= self._clock())

    def _look_at_clock(self) -> None:
        step = self._steps.look()
        if step:
            log.warning("clock stepped=%+d: what began on this host goes on for as long", step)
            self._stepped += step

    def step(self) -> Outcome:
        """One change from end to end; never raises for what a document or the kernel refuses."""
        self._look_at_clock()
        self._looked = self._clock()
        now = int(self._looked)
        desired, rejections, revision = self._wanted()
        self.mark("validate")
        refused: tuple[Rejection, ...] = ()
        # A host that has nothing in force has nothing to keep: frozen like that it would drop
        # its share of the fleet's traffic, so it takes what there is, once.
        kept = bool(self.frozen) and self._publisher.in_force.number > 0
        if not kept:
            refused = self._guard(desired, now) or self._apply(desired, now)
        if kept or any(rejection.stage in ("guard", "build") for rejection in refused):
            self.mark(AGAIN)
            again = self._apply(self._last_good, now)  # time goes on for what stays in force
            refused += tuple(rejection for rejection in again if rejection not in refused)
        failed = any(rejection.stage != "guard" for rejection in refused)
        self.outcome = Outcome(revision, (*rejections, *refused), failed=failed)
        return self.outcome

    def hasten(self) -> None:
        """Flags backends that health has taken out; the step that follows does all the rest."""
        out = (key for key, fit in (self.fitness or {}).items() if fit.is_out)
        try:
            self._publisher.quarantine(out)
        except DataplaneError as error:
            log.warning("quarantine %s; the next step tries again", error)

    def _wanted(self) -> tuple[Desired, tuple[Rejection, ...], int]:
        """What the documents ask for, what of them is refused, and the latest revision seen."""
        if self.view is None:
            return self._last_good, (), self.outcome.revision
        steering, snapshot = self.view.steering, self.view.snapshot
        desired, rejections = validate(snapshot, self._last_good, self._memo)
        self._refused = frozenset(rejection.key for rejection in rejections)
        desired = replace(desired, release=steering.release, pointer=steering.pointer)
        seen = max(steering.revision, snapshot.revision)
        return desired, (*steering.rejections, *rejections), seen

    def put_back(self, desired: Desired, order: str) -> tuple[Rejection, ...]:
        """Brings other documents into force, past all guards, as somebody has ordered.

        Returns:
            Why it could not be; then what was in force stays.
        """
        return self._apply(desired, int(self._clock()), order)

    def _guard(self, desired: Desired, now: int) -> tuple[Rejection, ...]:
        in_force = self._publisher.in_force
        refused = guards.refusals(desired, in_force, self.limits, self.overrides, now)
        self.mark("guard")
        return refused

    def _apply(self, desired: Desired, now: int, order: str = "") -> tuple[Rejection, ...]:
        """Plans and publishes; why it may not, or could not, be."""
        previous = self._publisher.in_force
        started = time.monotonic()
        try:
            base = after_step(previous, self._stepped) if self._stepped else previous
            generation = plan(desired, base, now, self.fitness)
            diff = difference(previous, generation)
            self.mark("plan")
            refused = () if order else self._check(diff, desired, now)
            self.mark("disruption")
            if refused:
                return refused
            planned = time.monotonic()
            # What the new generation needs must be there before it, what the old one needed after.
            self._plane.serve(previous, generation)
            self.mark("program")
            self._publisher.publish(generation, time.monotonic())
        except (GenerationRefused, CompileError, CapabilityError) as error:
            self.mark("build")
            return (_whole("build", str(error), desired.revision),)
        except DataplaneError as error:
            self.mark("publish")
            return (_whole("publish", f"{error}{self._put_back(previous)}", desired.revision),)
        own = desired is not self._last_good and not order
        stepped, self._stepped = self._stepped, 0
        self._last_good = desired
        if generation.number != previous.number:
            snapshot = self.view.snapshot if self.view and own else None
            how = (now, stepped, snapshot, self._refused, order)
            self._tell(Applied(previous, generation, diff, desired, *how), started, planned)
        try:
            self._plane.serve(generation)
        except (DataplaneError, CapabilityError) as error:
            reason = f"the generation is in force, but its program does more than it needs: {error}"
            return (_whole("build", reason, desired.revision),)
        return ()

    def _tell(self, applied: Applied, started: float, planned: float) -> None:
        """Logs a generation that has come into force, and says it to those who listen.

        Args:
            applied: the generation.
            started: monotonic clock, s, when planning began.
            planned: the same, when publishing began.
        """
        generation = applied.generation
        log.info(
            "generation number=%d release=%s revision=%d digest=%s %s plan_ms=%.1f publish_ms=%.1f",
            *(generation.number, generation.release or "unknown", generation.revision),
            *(generation.digest, applied.diff, (planned - started) * 1e3),
            (time.monotonic() - planned) * 1e3,
        )
        if generation.on_sorry_pool != applied.previous.on_sorry_pool:
            log.warning("sorry vips=%s", ",".join(generation.on_sorry_pool) or "none")
        self.applied(applied)
        self.mark("journal")

    def _check(self, diff: Diff, desired: Desired, now: int) -> tuple[Rejection, ...]:
        """The guard over tables; what is in force already is not held up by it."""
        if desired is self._last_good:
            return ()
        return guards.disruption_refusals(diff, desired.revision, self.overrides, now)

    def _put_back(self, last: Generation) -> str:
        """Brings the last good documents back where a failure left a mixture; says what came of it.

        They are planned over what was found in force, so that no flow that began meanwhile moves.
        """
        publisher = self._publisher
        if publisher.is_certain:
            return ""
        self.mark(AGAIN)
        found, started, now = publisher.in_force, time.monotonic(), int(self._clock())
        try:
            base = after_step(found, self._stepped, last) if self._stepped else found
            generation = plan(self._last_good, base, now, self.fitness)
            diff, planned = difference(found, generation), time.monotonic()
            publisher.publish(generation, planned)
        except (GenerationRefused, DataplaneError, CapabilityError) as error:
            return f"; going back failed too: {error}"
        stepped, self._stepped = self._stepped, 0
        # No key changed and no time passed that would explain it: it is an order of its own.
        how = (now, stepped, None, self._refused, "put back, as publishing had failed half way")
        self._tell(Applied(found, generation, diff, self._last_good, *how), started, planned)
        return f"; generation {generation.number} is what was in force before"


def _whole(stage: Stage, reason: str, revision: int) -> Rejection:
    # A compiler or a verifier may have a lot to say, and a status goes into one key of etcd.
    return Rejection("", "", shortened(reason, _LONGEST_REASON), stage, revision)


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
        release=generation.release,
        pointer=generation.pointer,
    )
