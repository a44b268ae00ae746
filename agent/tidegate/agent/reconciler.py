# SPDX-License-Identifier: Apache-2.0
"""Brings the data plane to what is wanted: validate, guard, plan, publish, in this order.

No thread, no timer, no etcd: it is given a view of etcd, and works when it is asked to. Whatever is
refused on the way is kept as a list of reasons, and the last good generation stays in force.

What must not be published (a guard refuses it, or an operator has frozen the host) is still read
and validated, so that its faults show; and what time alone does to the generation in force goes on:
windows close, drains end, weights ramp.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from tidegate.agent.clock import StepWatch
from tidegate.agent.outcome import Applied, Outcome, log_applied
from tidegate.agent.rollback_states import in_force_as_desired
from tidegate.agent.stages import AGAIN, StageRecorder
from tidegate.dataplane.kernel.compiler import LONGEST_COMPILATION
from tidegate.dataplane.plane import DataPlane
from tidegate.dataplane.publish.aside import NOTHING_ASIDE, Aside
from tidegate.errors import CapabilityError, CompileError, DataplaneError, GenerationRefused
from tidegate.event_log import EventLog
from tidegate.keyspace.documents.capacity import RETRY_SECONDS, Places
from tidegate.keyspace.documents.decode import shortened
from tidegate.keyspace.documents.host_rules import HostAddresses
from tidegate.keyspace.documents.parse_cache import ParseCache
from tidegate.keyspace.documents.validate import validate
from tidegate.model.generation import Generation
from tidegate.model.values import (
    Address,
    BackendKey,
    Desired,
    Fitness,
    Override,
    Rejection,
    Stage,
    View,
)
from tidegate.planner import after_step, guards, next_moment, plan
from tidegate.planner.diff import Diff, difference
from tidegate.planner.guards import Limits

log = EventLog(__name__)

_KEYSPACE: Final = "keyspace"
_LONGEST_REASON: Final = 2000


class Reconciler:
    """Owns what is wanted and brings the data plane to it.

    Args:
        plane: opened, so that its publisher's generation is what the kernel holds.
        limits: what guards hold changes to.
        stages: records when each stage has ended (docs/telemetry.md).
        clock: wall clock, s.
        aside: does what may take long; backends may be flagged meanwhile.
    """

    def __init__(
        self,
        plane: DataPlane,
        limits: Limits,
        stages: StageRecorder,
        clock: Callable[[], float] = time.time,
        aside: Aside = NOTHING_ASIDE,
    ) -> None:
        self._plane = plane
        self._aside = aside
        self._publisher = publisher = plane.publisher
        self._stages = stages
        self._clock = clock
        self._parse_cache = ParseCache()
        self._freezes: dict[str, str] = {}
        self._last_reconciled = clock()
        self._steps = StepWatch(clock)
        self._stepped = 0
        self._refused: frozenset[str] = frozenset()
        self._last_good = in_force_as_desired(publisher.in_force)
        self._revision = publisher.in_force.revision
        self._applied: list[Applied] = []
        self._view: View | None = None
        self._limits = limits
        self._is_guarded = self._awaits_room = False
        self._checked_against: frozenset[Address] | None = None
        self._fitness: Mapping[BackendKey, Fitness] | None = None

    def accept_view(self, view: View) -> None:
        """Take a new view; the next reconciliation works on it."""
        self._view = view
        self.freeze(_KEYSPACE, view.steering.freeze)

    def set_limits(self, limits: Limits) -> None:
        """Hold changes to other limits from now on."""
        self._limits = limits

    def freeze(self, by: str, reason: str) -> None:
        """Keep what is in force from now on, until the reason is empty.

        Args:
            by: who asks for it. Each has a reason of its own, and all must be lifted.
            reason: a sentence; empty lifts this one's freeze.
        """
        self._freezes.pop(by, None)
        if reason:
            self._freezes[by] = reason

    @property
    def view(self) -> View | None:
        """The view of etcd that counts; None until it has been read."""
        return self._view

    @property
    def frozen(self) -> str:
        """Why nothing new is published; empty if it is."""
        return "; ".join(self._freezes.values())

    def is_frozen_by(self, by: str) -> bool:
        """Return whether one of those who may ask for it has frozen the host."""
        return by in self._freezes

    @property
    def kept(self) -> str:
        """Why the host keeps what it has; empty if it takes what is wanted.

        A host that has nothing in force has nothing to keep: frozen like that it would drop its
        share of the fleet's traffic, so it takes what there is, once.
        """
        return self.frozen if self._publisher.in_force.number else ""

    @property
    def overrides(self) -> tuple[Override, ...]:
        """Overrides that lift a guard now."""
        steering = self._view.steering if self._view else None
        now = self._clock()
        return tuple(o for o in steering.overrides if o.expires_at > now) if steering else ()

    def next_moment(self) -> int | None:
        """Return the wall-clock second at which time alone asks for a change, or None."""
        moments = [next_moment(self._publisher.in_force)]
        last = self._last_reconciled
        if self._view is not None:
            moments.append(guards.next_expiry(self._view.steering.overrides, last))
        if self._is_guarded:
            moments.append(guards.next_relief(self._publisher.in_force, int(last)))
        moments += [int(last) + RETRY_SECONDS] * self._awaits_room
        return min((moment for moment in moments if moment is not None), default=None)

    def is_due(self) -> bool:
        """Return whether that second has come, the clock was stepped, or the host has moved."""
        self._follow_clock()
        moment = self.next_moment()
        is_time = moment is not None and moment <= self._clock()
        return bool(self._stepped) or is_time or self._has_moved()

    def _has_moved(self) -> bool:
        """Return whether the host has other addresses than documents were checked against."""
        own = self._plane.own_addresses.addresses
        return self._view is not None and own != self._checked_against

    def _follow_clock(self) -> None:
        step = self._steps.seconds_stepped()
        if step:
            log.warning("clock_stepped", seconds=step)
            self._stepped += step

    def reconcile(self) -> Outcome:
        """Make one change from end to end; what is refused is in the outcome."""
        self._follow_clock()
        self._last_reconciled = self._clock()
        now, kept = int(self._last_reconciled), self.kept
        desired, rejections = self._wanted()
        self._stages.mark("validate")
        refused: tuple[Rejection, ...] = ()
        if not kept:
            refused = self._guard(desired, now) or self._apply(desired, now)
        if kept or any(rejection.stage in ("guard", "build") for rejection in refused):
            self._stages.mark(AGAIN)
            # Time goes on for what stays in force.
            again = self._apply(self._last_good, now, is_kept=True)
            refused += tuple(rejection for rejection in again if rejection not in refused)
        return self._outcome((*rejections, *refused), refused, kept)

    def failed(self, error: Exception) -> Outcome:
        """Return the outcome of a reconciliation that ended in an error which nobody expected."""
        reason = f"an error in the agent, {type(error).__name__}: {error}"
        refused = (_whole("publish", reason, self._revision),)
        return self._outcome(refused, refused, "")

    def restore(self, desired: Desired, order: str) -> Outcome:
        """Bring other documents into force, past all guards, as an operator ordered.

        Args:
            desired: the documents.
            order: what was ordered, in words.

        Returns:
            Its rejections say why it could not be; then what was in force stays.
        """
        refused = self._apply(desired, int(self._clock()), order)
        return self._outcome(refused, refused, "")

    def _outcome(
        self, rejections: tuple[Rejection, ...], refused: tuple[Rejection, ...], kept: str
    ) -> Outcome:
        failed = any(rejection.stage != "guard" for rejection in refused)
        applied, self._applied = tuple(self._applied), []
        return Outcome(self._revision, rejections, failed=failed, applied=applied, kept=kept)

    def flag_unhealthy(self, fitness: Mapping[BackendKey, Fitness] | None) -> bool:
        """Flag backends that health has taken out at once; the next change does all the rest.

        Args:
            fitness: what health makes of backends; None while that is not known, which leaves each
                as it is.

        Returns:
            Whether there is anything for a change to do.
        """
        is_new, self._fitness = fitness != self._fitness, fitness
        try:
            self._publisher.flag_unhealthy(_out_of(fitness))
        except DataplaneError as error:
            log.warning("flag_unhealthy_failed", reason=error)
        return is_new

    def _wanted(self) -> tuple[Desired, tuple[Rejection, ...]]:
        """Return what the documents ask for, and what of them is refused."""
        if self._view is None:
            return self._last_good, ()
        steering, snapshot = self._view.steering, self._view.snapshot
        host, places = self._host(), Places(self._publisher.in_force)
        desired, rejections = self._aside.run(
            lambda: validate(snapshot, self._last_good, self._parse_cache, host, places)
        )
        self._awaits_room = any(rejection.stage == "build" for rejection in rejections)
        self._refused = frozenset(rejection.key for rejection in rejections)
        desired = replace(
            desired,
            release=steering.release,
            pointer=steering.pointer,
            hash_seed=desired.hash_seed or steering.hash_seed,
        )
        self._revision = max(steering.revision, snapshot.revision)
        return desired, (*steering.rejections, *rejections)

    def _host(self) -> HostAddresses:
        """Return the addresses that documents may not have here."""
        view, build = self._view, self._plane.default_build
        allowed = view.steering.allowed_addresses if view is not None else ()
        try:  # an address that came this moment counts: the documents may take it
            self._plane.own_addresses.follow()
        except DataplaneError as error:
            log.error("own_addresses", reason=error)
        self._checked_against = own = self._plane.own_addresses.addresses
        return HostAddresses(own, build.source4, build.source6, frozenset(allowed))

    def _guard(self, desired: Desired, now: int) -> tuple[Rejection, ...]:
        in_force = self._publisher.in_force
        overrides = self.overrides
        refused = self._aside.run(
            lambda: guards.refusals(desired, in_force, self._limits, overrides, now)
        )
        self._is_guarded = bool(refused)
        self._stages.mark("guard")
        return refused

    def _apply(
        self, desired: Desired, now: int, order: str = "", *, is_kept: bool = False
    ) -> tuple[Rejection, ...]:
        """Plan and publish; return why it may not, or could not, be."""
        previous = self._publisher.in_force
        started, early = time.monotonic(), self._publisher.early
        flagged, fitness = early.keys, self._fitness
        try:
            base = self._publisher.standing
            base = after_step(base, self._stepped) if self._stepped else base
            generation, diff = self._plan(desired, base, now)
            self._stages.mark("plan")
            refused = () if order else self._check(diff, desired, now)
            self._stages.mark("disruption")
            if refused:
                return refused
            planned = time.monotonic()
            # What the new generation needs must be there before it, what the old one needed after.
            self._stages.expect(LONGEST_COMPILATION)
            self._plane.serve(previous, generation)
            self._stages.mark("program")
            # Who was flagged while this was planned stays out; the next one is planned without.
            out = () if self._fitness is fitness else _out_of(self._fitness)
            flagged_too = early.added_to(generation, flagged, out)
            if flagged_too is not generation and generation.number == base.number:
                return self._apply(desired, now, order, is_kept=is_kept)  # there is a change now
            generation = flagged_too
            self._publisher.publish(generation, time.monotonic())
            generation = self._publisher.in_force
        except (GenerationRefused, CompileError, CapabilityError) as error:
            self._stages.mark("build")
            return (_whole("build", str(error), desired.revision),)
        except DataplaneError as error:
            self._stages.mark("publish")
            return (_whole("publish", f"{error}{self._put_back(previous)}", desired.revision),)
        is_own = desired is not self._last_good and not order
        stepped, self._stepped = self._stepped, 0
        self._last_good = desired
        if generation.number != previous.number:
            applied = Applied(
                previous=previous,
                generation=generation,
                diff=diff,
                desired=desired,
                now=now,
                stepped=stepped,
                snapshot=self._view.snapshot if self._view and is_own else None,
                refused=self._refused,
                order=order,
                is_kept=is_kept,
            )
            self._came_into_force(applied, started, planned)
        try:
            self._stages.expect(LONGEST_COMPILATION)
            self._plane.serve(generation)
            self._stages.expect(0.0)
        except (DataplaneError, CapabilityError) as error:
            reason = f"the generation is in force, but its program does more than it needs: {error}"
            return (_whole("build", reason, desired.revision),)
        return ()

    def _plan(self, desired: Desired, base: Generation, now: int) -> tuple[Generation, Diff]:
        """Return what follows on a generation, and how it differs from the one in force."""
        fitness, previous = self._fitness, self._publisher.in_force

        def both() -> tuple[Generation, Diff]:
            generation = plan(desired, base, now, fitness)
            return generation, difference(previous, generation)

        return self._aside.run(both)

    def _came_into_force(self, applied: Applied, started: float, planned: float) -> None:
        """Take note of a generation that has come into force; moments as in `log_applied`."""
        self._applied.append(applied)
        log_applied(applied, started, planned)

    def _check(self, diff: Diff, desired: Desired, now: int) -> tuple[Rejection, ...]:
        """Hold a plan to the guard over tables; what is in force already is not held up by it."""
        if desired is self._last_good:
            return ()
        return guards.disruption_refusals(diff, desired.revision, self.overrides, now)

    def _put_back(self, last: Generation) -> str:
        """Bring the last good documents back where a failure left a mixture; say what came of it.

        They are planned over what was found in force, so that no flow that began meanwhile moves.
        """
        publisher = self._publisher
        if publisher.is_certain:
            return ""
        self._stages.mark(AGAIN)
        found, started, now = publisher.in_force, time.monotonic(), int(self._clock())
        try:
            base = after_step(found, self._stepped, last) if self._stepped else found
            generation = plan(self._last_good, base, now, self._fitness)
            diff, planned = difference(found, generation), time.monotonic()
            publisher.publish(generation, planned)
        except (GenerationRefused, DataplaneError, CapabilityError) as error:
            return f"; going back failed too: {error}"
        stepped, self._stepped = self._stepped, 0
        # No key changed and no time passed that would explain it: it is an order of its own.
        applied = Applied(
            previous=found,
            generation=generation,
            diff=diff,
            desired=self._last_good,
            now=now,
            stepped=stepped,
            snapshot=None,
            refused=self._refused,
            order="put back, as publishing had failed half way",
            is_kept=True,
        )
        self._came_into_force(applied, started, planned)
        return f"; generation {generation.number} is what was in force before"


def _out_of(fitness: Mapping[BackendKey, Fitness] | None) -> list[BackendKey]:
    """Return the backends that health has taken out."""
    return [key for key, fit in (fitness or {}).items() if fit.is_out]


def _whole(stage: Stage, reason: str, revision: int) -> Rejection:
    # A compiler or a verifier may have a lot to say, and a status goes into one key of etcd.
    return Rejection("", "", shortened(reason, _LONGEST_REASON), stage, revision)
