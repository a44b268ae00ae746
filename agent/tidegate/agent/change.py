# SPDX-License-Identifier: Apache-2.0
"""The life of a change, from a view of etcd to all that follows from it.

    accept_view    a view of etcd arrives; its writes are remembered for the trace
    reconcile      validate → guard → plan → publish (`reconciler`), then
                   history, refusals, the trace, and when to try again
    carry_out      the same for what an operator of this host orders (`operator`)

Each returns what came into force, and calls nothing back. What depends on that (probes, sampled
flows, the status) is for the caller. There is no thread and no timer here: one thread calls it, so
changes become generations strictly one after another.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from tidegate.agent.beside import Beside
from tidegate.agent.dead_man import DEAD_MAN, Contact, DeadMan
from tidegate.agent.history import History
from tidegate.agent.operator.execute import Done, Operator
from tidegate.agent.operator.orders import Order
from tidegate.agent.outcome import Applied, Outcome
from tidegate.agent.reconciler import Reconciler
from tidegate.agent.refusals import RefusalLog
from tidegate.agent.rollback_states import State
from tidegate.agent.stages import StageRecorder
from tidegate.agent.traces.changes import Begun, ChangeTraces
from tidegate.dataplane.plane import DataPlane
from tidegate.dataplane.publish.aside import NOTHING_ASIDE, Aside
from tidegate.errors import FenceError
from tidegate.event_log import EventLog
from tidegate.model.generation import Generation
from tidegate.model.values import BackendKey, Fitness, Override, View
from tidegate.planner.guards import Limits

log = EventLog(__name__)

_RETRY_SECONDS: Final = 2.5
"""Doubled after each failure of a row, up to the maximum: 5 s, 10 s …"""
_MAX_RETRY_SECONDS: Final = 60.0


class ChangeLifecycle:
    """Carries changes from one view of etcd to the next.

    Args:
        plane: opened.
        limits: what guards hold changes to.
        history: of the same data plane.
        stages: records when stages end; the plane's steps are reported to it.
        traces: made from what `stages` has.
        has_samples: whether sampled packets of a generation will be reported to the traces.
        clock: wall clock, s.
        aside: does what may take long (`long_work`).
        confirm_delay: seconds after which an answer of etcd confirms a change of VIPs; 0: at once.
        beside: does what may fail: the history, traces, the log.
    """

    def __init__(
        self,
        plane: DataPlane,
        limits: Limits,
        history: History,
        stages: StageRecorder,
        traces: ChangeTraces,
        has_samples: Callable[[Generation], bool] = lambda _: False,
        clock: Callable[[], float] = time.time,
        aside: Aside = NOTHING_ASIDE,
        confirm_delay: float = 0.0,
        beside: Beside | None = None,
    ) -> None:
        self._beside = beside or Beside()
        self._aside = aside
        self._publisher = plane.publisher
        self._reconciler = Reconciler(plane, limits, stages, clock, aside)
        self._history = history
        self._operator = Operator(self._reconciler, plane.publisher, history.states)
        self._stages = stages
        self._traces = traces
        self._has_samples = has_samples
        self._clock = clock
        self._refusals = RefusalLog()
        self.dead_man = DeadMan(confirm_delay, self.in_force, history.states)
        self._retry_at: float | None = None
        self._retry_seconds = _RETRY_SECONDS
        self.outcome = Outcome(self.in_force.revision)
        """Of the last reconciliation."""
        self.applied_at: float | None = None
        """Wall-clock second at which the last generation came into force; None if none did."""

    @property
    def in_force(self) -> Generation:
        """The generation in force."""
        return self._publisher.in_force

    @property
    def view(self) -> View | None:
        """The view of etcd that counts; None until it has been read."""
        return self._reconciler.view

    @property
    def frozen(self) -> str:
        """Why nothing new is published; empty if it is."""
        return self._reconciler.frozen

    @property
    def overrides(self) -> tuple[Override, ...]:
        """Overrides that lift a guard now."""
        return self._reconciler.overrides

    def set_limits(self, limits: Limits) -> None:
        """Hold changes to other limits from now on."""
        self._reconciler.set_limits(limits)

    def accept_view(self, view: View) -> None:
        """Take a new view; the next reconciliation works on it."""
        frozen = self.frozen
        self._beside.once("traces", lambda: self._traces.received(view))
        self._reconciler.accept_view(view)
        if self.frozen and self.frozen != frozen:
            log.warning("frozen", reason=self.frozen)
        elif frozen and not self.frozen:
            log.warning("thawed", was=frozen)

    def flag_unhealthy(self, fitness: Mapping[BackendKey, Fitness] | None) -> bool:
        """Flag what health has taken out at once; return whether there is more to change."""
        return self._reconciler.flag_unhealthy(fitness)

    def is_due(self, now: float) -> bool:
        """Return whether time asks for a change at this monotonic second.

        While a retry is due later, so is what time does: it would fail in the same way.
        """
        return self._reconciler.is_due() if self._retry_at is None else now >= self._retry_at

    def next_due(self) -> float | None:
        """Return the monotonic second at which `is_due` will be true, or None."""
        if self._retry_at is not None:
            return self._retry_at
        moment = self._reconciler.next_moment()
        return None if moment is None else time.monotonic() + moment - self._clock()

    def reconcile(self) -> Outcome:
        """Make one change, and all that follows from it."""
        begun = self._beside.once("traces", self._traces.begin)
        outcome = self._reconciled()
        self._record(outcome.applied)
        self._schedule_retry(failed=outcome.failed)
        in_force = self.in_force
        self._beside.once(
            "refusals", lambda: self._refusals.write(outcome.rejections, time.monotonic())
        )
        if begun is not None:
            self._beside.once("traces", lambda: self._end_trace(begun, outcome, in_force))
        self._beside.once(
            "journal",
            lambda: self._history.refused(outcome.rejections, in_force, outcome.revision),
        )
        self.outcome = outcome
        return outcome

    def _reconciled(self) -> Outcome:
        """Reconcile; what nobody expected is a failure of this change, and tried again later.

        Raises:
            FenceError: the data plane is another agent's now.
        """
        try:
            return self._reconciler.reconcile()
        except FenceError:
            raise
        except Exception as error:
            log.exception("change_failed")
            return self._reconciler.failed(error)

    def _end_trace(self, begun: Begun, outcome: Outcome, in_force: Generation) -> None:
        self._traces.end(
            begun,
            outcome,
            self.view,
            in_force,
            self._history.cause.kind,
            has_samples=self._has_samples(in_force),
        )

    def carry_out(self, order: Order) -> Done:
        """Carry out an operator's order, and all that follows from it."""
        begun = self._beside.once("traces", self._traces.begin_order)
        done = self._operator.carry_out(order)
        noted = done.noted
        if noted:
            self._beside.once("journal", lambda: self._history.ordered(noted, order.signature))
        self._record(done.applied)
        if begun is not None:
            self._beside.once("traces", lambda: self._end_order(begun, order, done))
        return done

    def _end_order(self, begun: Begun, order: Order, done: Done) -> None:
        self._traces.end_order(
            begun,
            order,
            done,
            self._history.cause.kind,
            has_samples=self._has_samples(self.in_force),
        )

    def take_back(self, to: State, contact: Contact) -> tuple[Applied, ...]:
        """Go back to these documents as etcd was lost, and hold; return what came into force."""
        number, now = self.in_force.number, f"to generation {to.last}, as etcd was lost after"
        outcome = self._reconciler.restore(to.desired, f"{now} generation {number}")
        if outcome.rejections:
            log.error("take_back_failed", to=to.last, reason=outcome.rejections[0].reason)
        else:
            reason = self.dead_man.took_back(contact)
            self._reconciler.freeze(DEAD_MAN, reason)
            log.error("taken_back", to=to.last, generation=self.in_force.number, reason=reason)
        self._record(outcome.applied)
        return outcome.applied

    def ends_hold(self, contact: Contact) -> bool:
        """End the hold after a change was taken back, if it is time; return whether it was."""
        if not self.dead_man.ends_hold(contact, is_held=self._reconciler.is_frozen_by(DEAD_MAN)):
            return False
        self._reconciler.freeze(DEAD_MAN, "")
        log.warning("thawed", by=DEAD_MAN)
        return True

    def _record(self, applied: tuple[Applied, ...]) -> None:
        """Write what came into force to the history."""
        for each in applied:
            self.applied_at = self._clock()
            self._beside.once("journal", partial(self._history.applied, each))
            self.dead_man.note(each)
            self._stages.mark("journal")
            self._aside.between()

    def _schedule_retry(self, *, failed: bool) -> None:
        self._retry_seconds = min(2 * self._retry_seconds, _MAX_RETRY_SECONDS)
        if not failed:
            self._retry_seconds = _RETRY_SECONDS
        self._retry_at = time.monotonic() + self._retry_seconds if failed else None
