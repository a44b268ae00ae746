# SPDX-License-Identifier: Apache-2.0
"""Gathers what a change trace is made of, while the loop works and after it.

While the loop works this appends moments to a list, and no more. When a step is over it waits,
without holding anything up, for what ends the trace: the status in etcd, and the first sampled
packet. Whoever brings the last of them has the spans made, on their own thread; what does not come
within `LIMIT` seconds is left out.

A write that is not in force when the loop is through with it (a guard refused it, the kernel did,
the host is frozen) is owed a second word: when it comes into force later, for whatever reason, its
trace is told so.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Final, NamedTuple

from tidegate.agent.operator.orders import Order
from tidegate.agent.reconciler import AGAIN, Applied, Outcome
from tidegate.agent.traces import change_facts as facts
from tidegate.dataplane.publish.steps import Step
from tidegate.http_server import Answer
from tidegate.keyspace.status.document import StatusDocument
from tidegate.model.arrivals import NO_ARRIVALS, Arrivals, joined
from tidegate.model.generation import Generation
from tidegate.model.values import Rejection, View
from tidegate.telemetry import changes
from tidegate.telemetry.changes import Change, Mark
from tidegate.telemetry.current import CURRENT
from tidegate.telemetry.names import changes as names
from tidegate.telemetry.span import (
    Attributes,
    Context,
    Sink,
    Span,
    new_span_id,
    new_trace_id,
)

LIMIT: Final = 30.0
"""Seconds for which a trace waits for its end."""
_REMEMBERED: Final = 256
_MOST_WAITING: Final = 64


class _Made(NamedTuple):
    """A generation that came into force in a step, and how many moments there were before."""

    applied: Applied
    cause: str
    context: Context


@dataclass(slots=True)
class _Step:
    """The step under way. Times are nanoseconds since 1970."""

    context: Context
    parent: Context | None
    began: int
    marks: list[Mark] = field(default_factory=list)
    own: _Made | None = None
    again: _Made | None = None

    def split(self) -> int:
        """Where the work on what is wanted ends, and that on what stays in force begins."""
        stages = [mark.stage for mark in self.marks]
        return stages.index(AGAIN) if AGAIN in stages else len(stages)


@dataclass(slots=True)
class _Waiting:
    """A change that is over, and what its trace waits for."""

    change: Change
    generation: int
    revision: int
    deadline: float
    for_status: bool
    for_packet: bool


class ChangeTraces:
    """Makes a trace of each change.

    Args:
        sink: gets the spans, on the loop's thread and on those that bring what ends a trace; None
            has none made.
        observe: gets the seconds that each stage of a generation took.
        has_samples: whether sampled packets of a generation are told of (`first_packet`).
        clock: nanoseconds since 1970.
    """

    def __init__(
        self,
        sink: Sink | None,
        observe: Callable[[str, float], None] = lambda *_: None,
        has_samples: Callable[[Generation], bool] = lambda _: False,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._sink = sink
        self._observe = observe
        self.has_samples = has_samples
        self._clock = clock
        self._arrived = NO_ARRIVALS
        self._owed = NO_ARRIVALS
        self._step: _Step | None = None
        self._marks: list[Mark] = []
        self._refused: frozenset[tuple[str, str, str, int]] = frozenset()
        self._contexts: OrderedDict[int, Context] = OrderedDict()
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._packets: deque[tuple[int, int]] = deque(maxlen=_MOST_WAITING)

    def received(self, view: View) -> None:
        """The loop has taken a view."""
        self._arrived = joined(self._arrived, view.arrivals)

    def begin(self, parent: Context | None = None) -> None:
        """A step begins; with a parent if it is not of what has arrived."""
        if parent is None:
            parent = facts.parent_of(joined(self._owed, self._arrived))
        context = _child(parent)
        self._step = _Step(context, parent, self._clock())
        self._marks = self._step.marks
        CURRENT.set(context)

    def mark(self, stage: str) -> None:
        """A stage has ended."""
        self._marks.append(Mark(stage, self._clock()))

    def reached(self, step: Step) -> None:
        """The publisher has reached a step."""
        stage = facts.STAGES.get(step)
        if stage is not None and self._step is not None:
            self._marks.append(Mark(stage, self._clock()))

    def applied(self, applied: Applied, cause: str) -> None:
        """A generation has come into force, for this cause."""
        step = self._step
        if step is None:
            return
        if step.split() == len(step.marks):
            step.own = _Made(applied, cause, step.context)
            context = step.context
        else:
            context = _child(None)
            step.again = _Made(applied, cause, context)
        self._contexts[applied.generation.number] = context
        while len(self._contexts) > _REMEMBERED:
            self._contexts.popitem(last=False)

    def context_of(self, generation: int) -> Context | None:
        """The context of the change that brought a generation into force. For any thread."""
        return self._contexts.get(generation)

    def end(self, outcome: Outcome, view: View | None, in_force: Generation, frozen: str) -> None:
        """The step is over: what came of it.

        Args:
            outcome: of the step.
            view: that it was made of; None before etcd was read.
            in_force: the generation that is in force now.
            frozen: why the host keeps what it has; empty if it does not.
        """
        step, self._step = self._step, None
        CURRENT.set(None)
        arrived, self._arrived = self._arrived, NO_ARRIVALS
        fresh = self._fresh(outcome.rejections)
        if step is None:
            return
        kept = "" if arrived.total and facts.is_freeze(arrived) else frozen
        own = step.own.applied if step.own else None
        result = facts.result(own, outcome.rejections, fresh, kept)
        about = facts.seen(outcome, view, in_force)
        if arrived.total or step.own or fresh or outcome.failed:
            change = self._change(step, arrived, outcome, fresh, result)
            change = replace(change, attributes={**about, **change.attributes})
            self._await(change, step.own, outcome.revision, in_force, is_new=bool(arrived.total))
        if result.outcome in facts.IN_FORCE and not frozen:
            self._owed = NO_ARRIVALS
        elif result.error_type in ("guard", "build", "publish", "frozen"):
            self._owed = joined(self._owed, arrived)
        if step.again is not None:
            at = step.split()
            again = _of_itself(step.again, step.marks[at].at, step.marks[at + 1 :], about)
            self._await(again, step.again, outcome.revision, in_force)

    def ordered(self, order: Order, carry_out: Callable[[Order], Answer]) -> Answer:
        """Has an operator's order carried out, and returns what came of it."""
        context, began = _child(None), self._clock()
        self.begin(context)
        answer = carry_out(order)
        step, self._step = self._step, None
        CURRENT.set(None)
        made = (step.own or step.again) if step is not None else None
        if step is not None and made is not None:
            in_force = made.applied.generation
            about = facts.seen(Outcome(in_force.revision), None, in_force)
            change = _of_itself(made, step.began, step.marks, about)
            self._await(replace(change, parent=step.parent), made, in_force.revision, in_force)
        self._emit_all([_order_span(order, answer, context, began, self._clock())])
        return answer

    def acknowledged(self, status: StatusDocument) -> None:
        """Etcd has this status. For any thread."""
        now = self._clock()
        with self._lock:
            for each in self._waiting:
                is_told = each.revision <= status.revision and each.generation <= status.generation
                if each.for_status and is_told:
                    each.for_status = False
                    each.change = replace(each.change, acknowledged=now)
        self.look(time.monotonic())

    def first_packet(self, generation: int, at: int) -> None:
        """A sampled packet met a table of this generation at this moment. For any thread."""
        with self._lock:
            self._packets.append((generation, at))
            for each in self._waiting:
                self._meet(each)
        self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Ends the traces that have what they wait for, or have waited for long enough."""
        with self._lock:
            over = [w for w in self._waiting if _is_over(w, now)]
            self._waiting = [w for w in self._waiting if not _is_over(w, now)]
        for each in over:
            self._emit(each.change)

    @property
    def next_look(self) -> float | None:
        """Monotonic second at which a trace has waited for long enough; None if none waits."""
        with self._lock:
            return min((each.deadline for each in self._waiting), default=None)

    def close(self) -> None:
        """Ends all traces as they are."""
        self.look(float("inf"))

    def _change(
        self,
        step: _Step,
        arrived: Arrivals,
        outcome: Outcome,
        fresh: tuple[Rejection, ...],
        result: facts.Result,
    ) -> Change:
        """What a step did with what is wanted."""
        marks = tuple(step.marks[: step.split()])
        whole = [] if step.own else [r for r in outcome.rejections if facts.is_whole(r)]
        told = [*(r for r in fresh if not facts.is_whole(r)), *whole]
        in_it = arrived
        if result.outcome in facts.IN_FORCE:
            in_it = joined(self._owed, arrived)
        error, error_type = result.error, result.error_type
        own = in_it.origins[-1] if in_it.origins else None
        refused = facts.refused_of(own, outcome.rejections) if own and not error else None
        if refused is not None:
            error, error_type = refused.reason, refused.stage
        cause = step.own.cause if step.own else "keys" if arrived.total else "retry"
        made: Attributes = facts.changed(step.own.applied) if step.own else {}
        return Change(
            context=step.context,
            parent=step.parent,
            received=facts.received(arrived, step.parent),
            began=step.began,
            marks=marks,
            outcome=result.outcome,
            error=error,
            error_type=error_type,
            refusals=facts.refusals(told, [mark.stage for mark in marks]),
            joined=facts.others(in_it, step.parent, outcome.rejections),
            attributes={
                names.CAUSE.key: cause,
                names.KEYS.key: arrived.keys,
                names.KEY_COUNT.key: arrived.total,
                names.REFUSED.key: len(told),
                **made,
            },
        )

    def _await(
        self,
        change: Change,
        made: _Made | None,
        revision: int,
        in_force: Generation,
        *,
        is_new: bool = True,
    ) -> None:
        """Lets a change's trace wait for its end."""
        has_swap = any(mark.stage == "swap" for mark in change.marks)
        waiting = _Waiting(
            change,
            made.applied.generation.number if made else in_force.number,
            revision,
            time.monotonic() + LIMIT,
            for_status=made is not None or is_new,
            for_packet=made is not None and has_swap and self.has_samples(in_force),
        )
        with self._lock:
            self._meet(waiting)
            self._waiting.append(waiting)
            too_many = self._waiting[:-_MOST_WAITING]
            for each in too_many:
                each.deadline = float("-inf")

    def _meet(self, waiting: _Waiting) -> None:
        """Gives it the first packet that met its tables or later ones, if there was one."""
        met = [at for number, at in self._packets if number >= waiting.generation]
        if waiting.for_packet and met:
            waiting.for_packet = False
            waiting.change = replace(waiting.change, first_packet=min(met))

    def _fresh(self, rejections: tuple[Rejection, ...]) -> tuple[Rejection, ...]:
        """Those that were not refused before."""
        now = {(r.key, r.field, r.stage, r.revision): r for r in rejections}
        before, self._refused = self._refused, frozenset(now)
        return tuple(each for identity, each in now.items() if identity not in before)

    def _emit_all(self, spans: Iterable[Span]) -> None:
        if self._sink is not None:
            for span in spans:
                if span.context.is_sampled:
                    self._sink.emit(span)

    def _emit(self, change: Change) -> None:
        self._emit_all(changes.spans(change))
        if change.outcome == "applied":
            for stage, seconds in changes.durations(change).items():
                self._observe(stage, seconds)


def _of_itself(made: _Made, began: int, marks: Sequence[Mark], about: Attributes) -> Change:
    """A generation that no write asked for: time, health or an operator did."""
    return Change(
        context=made.context,
        began=began,
        marks=tuple(marks),
        outcome="applied",
        attributes={**about, names.CAUSE.key: made.cause, **facts.changed(made.applied)},
    )


def _order_span(order: Order, answer: Answer, context: Context, began: int, ended: int) -> Span:
    sentence, attributes = (
        "",
        {
            names.ORDER.key: type(order).__name__.lower(),
            names.USER.key: order.signature.user,
            names.REASON.key: order.signature.reason,
        },
    )
    if answer.status != HTTPStatus.OK:
        sentence = str(answer.value.get("error", answer.status.phrase))
        attributes[names.ERROR_TYPE.key] = "order"
    return Span(
        name=names.ORDERED.name,
        context=context,
        began=began,
        ended=max(began, ended),
        attributes=attributes,
        error=sentence,
    )


def _child(parent: Context | None) -> Context:
    if parent is None:
        return Context(new_trace_id(), new_span_id())
    return Context(parent.trace_id, new_span_id(), parent.is_sampled)


def _is_over(waiting: _Waiting, now: float) -> bool:
    return waiting.deadline <= now or not (waiting.for_status or waiting.for_packet)
