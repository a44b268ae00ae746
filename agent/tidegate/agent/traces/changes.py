# SPDX-License-Identifier: Apache-2.0
"""Makes the trace of each change, on the loop's thread, when the change is over.

Three classes do the work: `StageRecorder` has the moments at which stages ended, `UnappliedWrites`
the writes that are not in force, and `PendingTraces` the traces that wait for status and first
packet. Here it is decided which spans a change gets, when it is over.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

from tidegate.agent.operator.execute import Done
from tidegate.agent.operator.orders import Order
from tidegate.agent.outcome import Applied, Outcome
from tidegate.agent.stages import AGAIN, StageRecorder
from tidegate.agent.traces import change_facts as facts
from tidegate.agent.traces.pending import PendingTraces
from tidegate.agent.traces.unapplied import UnappliedWrites
from tidegate.http_server import Answer
from tidegate.model.generation import Generation
from tidegate.model.received_writes import ReceivedWrites
from tidegate.model.values import Rejection, View
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

_REMEMBERED: Final = 256


@dataclass(frozen=True, slots=True)
class Begun:
    """A change under way: its trace context, that of its parent, ns since 1970 when it began."""

    context: Context
    parent: Context | None
    began: int


@dataclass(frozen=True, slots=True)
class _Made:
    """A generation that came into force, its cause, and the context of its trace."""

    applied: Applied
    cause: str
    context: Context


class ChangeTraces:
    """Traces of changes and of operators' orders.

    Args:
        stages: has the moments at which stages ended.
        sink: gets the spans; None has none made.
        observe: gets the seconds that each stage of a generation took.
        clock: nanoseconds since 1970.
    """

    def __init__(
        self,
        stages: StageRecorder,
        sink: Sink | None,
        observe: Callable[[str, float], None] = lambda *_: None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._stages = stages
        self._clock = clock
        self._writes = UnappliedWrites()
        self._refused: frozenset[tuple[str, str, str, int]] = frozenset()
        self._contexts: OrderedDict[int, Context] = OrderedDict()
        self.pending = PendingTraces(sink, observe, clock)

    def received(self, view: View) -> None:
        """Take note of the writes in a view, before the change that works on them."""
        self._writes.received(view.writes)

    def begin(self) -> Begun:
        """Start on a change of what has arrived."""
        return self._begin(facts.parent_of(self._writes.all))

    def _begin(self, parent: Context | None) -> Begun:
        context = _child(parent)
        self._stages.begin()
        CURRENT.set(context)
        return Begun(context, parent, self._clock())

    def context_of(self, generation: int) -> Context | None:
        """Return the context of the change that brought a generation into force; any thread."""
        return self._contexts.get(generation)

    def end(
        self,
        begun: Begun,
        outcome: Outcome,
        view: View | None,
        in_force: Generation,
        cause: str,
        *,
        has_samples: bool,
    ) -> None:
        """Make the trace of a change that is over.

        Args:
            begun: what `begin` returned.
            outcome: of the change.
            view: that it was made of; None before etcd was read.
            in_force: the generation that is in force now.
            cause: of the generation that came into force, if one did.
            has_samples: whether sampled packets of it will be reported (`first_packet`).
        """
        marks = self._stages.end()
        CURRENT.set(None)
        at = _split(marks)
        own, again = self._made(begun, outcome.applied, cause)
        arrived = self._writes.take()
        fresh = self._fresh(outcome.rejections)
        kept = "" if arrived.total and facts.is_freeze(arrived) else outcome.kept
        result = facts.result(own.applied if own else None, outcome.rejections, fresh, kept)
        about = facts.seen(outcome, view, in_force)
        number = own.applied.generation.number if own else in_force.number
        if arrived.total or own or fresh or outcome.failed:
            change = self._change(begun, marks[:at], own, arrived, outcome, fresh, result)
            change = replace(change, attributes={**about, **change.attributes})
            self.pending.add(
                change,
                number,
                outcome.revision,
                for_status=own is not None or bool(arrived.total),
                for_packet=own is not None and _has_swap(change) and has_samples,
            )
        self._writes.settle(arrived, result, is_frozen=bool(outcome.kept))
        if again is not None:
            change = _of_itself(again, marks[at].at, marks[at + 1 :], about)
            self._await_generation(change, again, outcome.revision, has_samples=has_samples)

    def begin_order(self) -> Begun:
        """Start on an operator's order, in a trace of its own."""
        return self._begin(_child(None))

    def end_order(
        self, begun: Begun, order: Order, done: Done, cause: str, *, has_samples: bool
    ) -> None:
        """Make the trace of an order that is carried out, with its generation below it.

        Args:
            begun: what `begin_order` returned.
            order: what was ordered.
            done: what came of it.
            cause: of the generation that came into force, if one did.
            has_samples: whether sampled packets of it will be reported (`first_packet`).
        """
        marks = self._stages.end()
        CURRENT.set(None)
        own, again = self._made(begun, done.applied, cause)
        made = own or again
        if made is not None:
            in_force = made.applied.generation
            about = facts.seen(Outcome(in_force.revision), None, in_force)
            change = _of_itself(made, begun.began, marks, about)
            change = replace(change, parent=begun.parent)
            self._await_generation(change, made, in_force.revision, has_samples=has_samples)
        assert begun.parent is not None  # noqa: S101 - `begin_order` made it
        span = _order_span(order, done.answer, begun.parent, begun.began, self._clock())
        self.pending.emit([span])

    def close(self) -> None:
        """End all traces as they are."""
        self.pending.close()

    def _made(
        self, begun: Begun, applied: Sequence[Applied], cause: str
    ) -> tuple[_Made | None, _Made | None]:
        """Return the generation of what is wanted, and the one of what stays in force."""
        found: dict[bool, _Made] = {}
        for each in applied:
            context = _child(None) if each.is_kept else begun.context
            found[each.is_kept] = _Made(each, cause, context)
            self._contexts[each.generation.number] = context
        while len(self._contexts) > _REMEMBERED:
            self._contexts.popitem(last=False)
        return found.get(False), found.get(True)

    def _change(
        self,
        begun: Begun,
        marks: tuple[Mark, ...],
        own: _Made | None,
        arrived: ReceivedWrites,
        outcome: Outcome,
        fresh: tuple[Rejection, ...],
        result: facts.Result,
    ) -> Change:
        """Return what a change did with what is wanted."""
        whole = [] if own else [r for r in outcome.rejections if facts.is_whole(r)]
        refused = [*(r for r in fresh if not facts.is_whole(r)), *whole]
        is_in_force = result.outcome in facts.IN_FORCE
        in_it = self._writes.with_waiting(arrived) if is_in_force else arrived
        error, error_type = result.error, result.error_type
        origin = in_it.traced[-1] if in_it.traced else None
        first = facts.refused_of(origin, outcome.rejections) if origin and not error else None
        if first is not None:
            error, error_type = first.reason, first.stage
        made: Attributes = facts.changed(own.applied) if own else {}
        return Change(
            context=begun.context,
            parent=begun.parent,
            received=facts.received(arrived, begun.parent),
            began=begun.began,
            marks=marks,
            outcome=result.outcome,
            error=error,
            error_type=error_type,
            refusals=facts.refusals(refused, [mark.stage for mark in marks]),
            joined=facts.others(in_it, begun.parent, outcome.rejections),
            attributes={
                names.CAUSE.key: own.cause if own else "keys" if arrived.total else "retry",
                names.KEYS.key: arrived.keys,
                names.KEY_COUNT.key: arrived.total,
                names.REFUSED.key: len(refused),
                **made,
            },
        )

    def _await_generation(
        self, change: Change, made: _Made, revision: int, *, has_samples: bool
    ) -> None:
        self.pending.add(
            change,
            made.applied.generation.number,
            revision,
            for_status=True,
            for_packet=_has_swap(change) and has_samples,
        )

    def _fresh(self, rejections: tuple[Rejection, ...]) -> tuple[Rejection, ...]:
        """Return those that were not refused before."""
        now = {(r.key, r.field, r.stage, r.revision): r for r in rejections}
        before, self._refused = self._refused, frozenset(now)
        return tuple(each for identity, each in now.items() if identity not in before)


def _split(marks: Sequence[Mark]) -> int:
    """Return where the work on what is wanted ends, and that on what stays in force begins."""
    stages = [mark.stage for mark in marks]
    return stages.index(AGAIN) if AGAIN in stages else len(stages)


def _has_swap(change: Change) -> bool:
    return any(mark.stage == "swap" for mark in change.marks)


def _of_itself(made: _Made, began: int, marks: Sequence[Mark], about: Attributes) -> Change:
    """Return the change of a generation that time, health or an operator asked for, no write."""
    return Change(
        context=made.context,
        began=began,
        marks=tuple(marks),
        outcome="applied",
        attributes={**about, names.CAUSE.key: made.cause, **facts.changed(made.applied)},
    )


def _order_span(order: Order, answer: Answer, context: Context, began: int, ended: int) -> Span:
    sentence = ""
    attributes = {
        names.ORDER.key: type(order).__name__.lower(),
        names.USER.key: order.signature.user,
        names.REASON.key: order.signature.reason,
    }
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
