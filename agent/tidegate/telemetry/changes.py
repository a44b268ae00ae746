# SPDX-License-Identifier: Apache-2.0
"""From the moments of a change to its spans. Pure: no clock, no kernel, no etcd.

Why the spans are right
-----------------------
The loop does one thing at a time, and notes the moment at which each stage ends. So a stage began
where the one before it ended: stages have neither gaps nor overlaps, and their sum is the whole.
What is done several times, table by table, is one stage from the first to the last, with the parts
in it that are worth a span of their own. Two things go on after the work, beside each other: etcd
gets the status, and packets arrive. The root begins with the receipt and ends with the last of all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tidegate.telemetry.names import changes as names
from tidegate.telemetry.span import NONE, Attributes, Context, Link, Span, Value, new_span_id

PARTS: Final = {"read_back": "fill"}
"""Stages that are part of another one."""
MOST_PARTS: Final = 8
MOST_REFUSALS: Final = 16
_SECOND: Final = 1e9


class Mark(NamedTuple):
    """A stage has ended, or a part of it, at this moment (ns since 1970)."""

    stage: str
    at: int


class Refusal(NamedTuple):
    """Something that was refused: by which check (`error_type`), and in which stage."""

    stage: str
    error_type: str
    key: str
    field: str
    reason: str
    revision: int


class Joined(NamedTuple):
    """Writes of another trace that the same change has in it.

    Attributes:
        parent: the trace context that they carry.
        error: why they are not in force, and its type; empty if they are.
    """

    parent: Context
    received: int
    revision: int
    keys: tuple[str, ...]
    total: int
    error: str = ""
    error_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change, when it is over. Times are nanoseconds since 1970.

    Attributes:
        context: of the root.
        received: when the first of its writes was; None if it is not of a write.
        began: when the loop took it up.
        marks: in the order of time.
        attributes: the root's.
        outcome, error, error_type: the last two are empty if it is in force.
        acknowledged: when etcd had the status; None if it has not.
        first_packet: None if none was seen.
    """

    context: Context
    parent: Context | None = None
    received: int | None = None
    began: int
    marks: tuple[Mark, ...]
    attributes: Attributes = field(default_factory=lambda: NONE)
    outcome: str
    error: str = ""
    error_type: str = ""
    refusals: Sequence[Refusal] = ()
    joined: Sequence[Joined] = ()
    acknowledged: int | None = None
    first_packet: int | None = None


@dataclass(slots=True)
class Stage:
    """A stage and its parts, as intervals in nanoseconds since 1970."""

    name: str
    began: int
    ended: int
    parts: list[tuple[str, int, int]]

    def seconds(self) -> dict[str, float]:
        """Return the seconds that it took without its parts, and those of its parts."""
        found = {self.name: (self.ended - self.began) / _SECOND}
        for name, began, ended in self.parts:
            found[name] = found.get(name, 0.0) + (ended - began) / _SECOND
            found[self.name] -= (ended - began) / _SECOND
        return found


def stages(began: int, marks: Sequence[Mark]) -> list[Stage]:
    """Return the stages, each beginning where the one before it ended.

    A clock that is set back while a change is under way makes a stage of no length, and not one
    that ends before it began.
    """
    found: list[Stage] = []
    at = began
    for mark in marks:
        ended = max(mark.at, at)
        name = PARTS.get(mark.stage, mark.stage)
        if not found or found[-1].name != name:
            found.append(Stage(name, at, ended, []))
        found[-1].ended = ended
        if mark.stage in PARTS:
            found[-1].parts.append((mark.stage, at, ended))
        at = ended
    return found


def durations(change: Change) -> dict[str, float]:
    """Return the seconds by stage; `total` is from the receipt to the end of the work."""
    found: dict[str, float] = {}
    work = stages(change.began, change.marks)
    start = _start(change)
    if start < change.began:
        found["receive"] = (change.began - start) / _SECOND
    for stage in work:
        for name, seconds in stage.seconds().items():
            found[name] = found.get(name, 0.0) + seconds
    found["total"] = (_end_of_work(change) - start) / _SECOND
    for name, began, ended in _late(change, work):
        found[name] = (ended - began) / _SECOND
    return found


def spans(change: Change) -> Iterator[Span]:
    """Return the spans of a change, the root first."""
    work, root = stages(change.began, change.marks), change.context
    start, late = _start(change), list(_late(change, work))
    others = [(joined, _child(joined.parent)) for joined in change.joined]
    yield Span(
        name=names.CHANGE.name,
        context=root,
        parent=change.parent,
        began=start,
        ended=max([_end_of_work(change), *(ended for _, _, ended in late)]),
        attributes=_failed(
            {**change.attributes, names.OUTCOME.key: change.outcome}, change.error_type
        ),
        links=tuple(Link(context) for _, context in others),
        error=change.error,
        kind="consumer",
    )
    if start < change.began:
        yield _stage("receive", root, start, change.began)
    for stage in work:
        yield from _stage_spans(change, stage)
    for name, began, ended in late:
        yield _stage(name, root, began, ended)
    for joined, context in others:
        yield _joined_span(change, joined, context)


def _start(change: Change) -> int:
    return change.began if change.received is None else min(change.received, change.began)


def _end_of_work(change: Change) -> int:
    return max([change.began, *(mark.at for mark in change.marks)])


def _late(change: Change, work: Sequence[Stage]) -> Iterator[tuple[str, int, int]]:
    """Return what ended after the work; each begins where it could at the earliest."""
    if change.acknowledged is not None:
        began = _end_of_work(change)
        yield "acknowledge", began, max(began, change.acknowledged)
    swaps = [stage.began for stage in work if stage.name == "swap"]
    if change.first_packet is not None and swaps:
        yield "first_packet", swaps[0], max(swaps[0], change.first_packet)


def _stage_spans(change: Change, stage: Stage) -> Iterator[Span]:
    context = _child(change.context)
    refusals = [each for each in change.refusals if each.stage == stage.name]
    attributes: dict[str, str | int | float] = {}
    if stage.parts:
        attributes[names.TABLES.key] = len(stage.parts)
        attributes[names.READ_BACK.key] = round(stage.seconds()["read_back"], 9)
    error, error_type = (refusals[0].reason, refusals[0].error_type) if refusals else ("", "")
    yield Span(
        name=names.PREFIX + stage.name,
        context=context,
        parent=change.context,
        began=stage.began,
        ended=stage.ended,
        attributes=_failed(attributes, error_type),
        error=error,
    )
    for name, began, ended in stage.parts[:MOST_PARTS]:
        yield _stage(name, context, began, ended)
    for refusal in refusals[:MOST_REFUSALS]:
        yield Span(
            name=names.REFUSAL.name,
            context=_child(context),
            parent=context,
            began=stage.began,
            ended=stage.ended,
            attributes={
                names.KEY.key: refusal.key,
                names.FIELD.key: refusal.field,
                names.REVISION.key: refusal.revision,
                names.ERROR_TYPE.key: refusal.error_type,
            },
            error=refusal.reason,
        )


def _joined_span(change: Change, joined: Joined, context: Context) -> Span:
    """Return what became of writes, in their own trace."""
    error = joined.error or change.error
    attributes: dict[str, Value] = {
        names.REVISION.key: joined.revision,
        names.OUTCOME.key: change.outcome,
        names.KEYS.key: joined.keys,
        names.KEY_COUNT.key: joined.total,
    }
    if names.NUMBER.key in change.attributes:
        attributes[names.NUMBER.key] = change.attributes[names.NUMBER.key]
    ended = _end_of_work(change)
    return Span(
        name=names.JOINED.name,
        context=context,
        parent=joined.parent,
        began=min(joined.received, ended),
        ended=ended,
        attributes=_failed(attributes, joined.error_type or change.error_type),
        links=(Link(change.context),),
        error=error,
        kind="consumer",
    )


def _stage(name: str, parent: Context, began: int, ended: int) -> Span:
    return Span(
        name=names.PREFIX + name, context=_child(parent), parent=parent, began=began, ended=ended
    )


def _child(parent: Context) -> Context:
    return Context(parent.trace_id, new_span_id(), parent.is_sampled)


def _failed(attributes: Attributes, error_type: str) -> Attributes:
    return {**attributes, names.ERROR_TYPE.key: error_type} if error_type else attributes
