# SPDX-License-Identifier: Apache-2.0
"""A flow as a span: names for ids, wall-clock times, the trace it belongs to, and what it links to.

Ids are named when the flow is over, by id and incarnation, so a name is never that of an id's next
owner. Whatever is called something here is defined in names/flows.py.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tidegate.model.address import unpacked
from tidegate.model.decision import EventKind, Reason
from tidegate.model.generation import Identity
from tidegate.model.tag import PROTOCOLS
from tidegate.model.values import BackendKey
from tidegate.telemetry.flows.follow import Flow, Happening
from tidegate.telemetry.flows.ids import FlowIds, flow_ids
from tidegate.telemetry.names import flows as names
from tidegate.telemetry.registry import EventType
from tidegate.telemetry.span import Context, Link, Moment, Span, Value, new_span_id

_MOST_ROOTS: Final = 65_536
_TRANSPORTS: Final = {number: name for name, number in PROTOCOLS.items()}
_EVENTS: Final[Mapping[EventKind, EventType]] = {
    EventKind.NEW: names.NEW,
    EventKind.MOVED: names.MOVED,
    EventKind.PROMOTED: names.PROMOTED,
    EventKind.FINISHED: names.FINISHED,
    EventKind.RESET: names.RESET,
    EventKind.DROPPED: names.DROPPED,
}


@dataclass(frozen=True)
class Naming:
    """What ids and numbers stand for.

    Attributes:
        vips, backends: by id and incarnation.
        change_of: context of the change trace of a generation, if it has one.
        left: by backend, the generation that took it away from its flows.
    """

    vips: Mapping[Identity, str] = field(default_factory=dict)
    backends: Mapping[Identity, BackendKey] = field(default_factory=dict)
    change_of: Callable[[int], Context | None] = lambda _: None
    left: Mapping[Identity, int] = field(default_factory=dict)


class Roots:
    """The traces that have a root from this host, the latest ones: a trace has one root."""

    def __init__(self) -> None:
        self._taken: dict[int, None] = {}

    def take(self, trace_id: int) -> bool:
        """Return whether it had none yet."""
        if trace_id in self._taken:
            return False
        if len(self._taken) >= _MOST_ROOTS:
            del self._taken[next(iter(self._taken))]
        self._taken[trace_id] = None
        return True


def span_of(flow: Flow, naming: Naming, roots: Roots, offset: int) -> Span:
    """Return the span of a flow.

    Args:
        flow: which is over.
        naming: of the generations that it lived in.
        roots: those that were given out, to which this flow's may be added.
        offset: ns to add to monotonic times for those since 1970.
    """
    ids = flow_ids(flow.key, flow.began + offset)
    is_root = flow.has_begin and roots.take(ids.root.trace_id)
    own = ids.root if is_root else Context(ids.root.trace_id, new_span_id())
    return Span(
        name=names.FLOW.name,
        context=own,
        parent=None if is_root else ids.root,
        began=flow.began + offset,
        ended=flow.seen + offset,
        attributes=dict(_attributes(flow, naming)),
        events=tuple(_moments(flow, naming, offset)),
        links=tuple(_links(flow, naming, ids)),
        error=_error(flow),
        kind="internal",
    )


def _attributes(flow: Flow, naming: Naming) -> Iterator[tuple[str, Value]]:
    protocol, source, source_port, destination, port = flow.key
    client = unpacked(source)
    yield names.SOURCE_ADDRESS.key, str(client)
    yield names.SOURCE_PORT.key, source_port
    yield names.DESTINATION_ADDRESS.key, str(unpacked(destination))
    yield names.DESTINATION_PORT.key, port
    yield names.TRANSPORT.key, _TRANSPORTS.get(protocol, str(protocol))
    yield names.NETWORK_TYPE.key, f"ipv{client.version}"
    yield names.VIP.key, naming.vips.get(flow.vip, f"#{flow.vip.id}")
    yield from _where(flow.backend, naming)
    yield names.SLOT.key, flow.slot
    yield names.END.key, flow.end or "idle"
    yield names.HAS_BEGIN.key, flow.has_begin
    yield names.MOVES.key, flow.moves
    if flow.decision is not None:
        yield names.DECISION.key, flow.decision.name.lower()
    if flow.reason is not Reason.NONE:
        yield names.REASON.key, flow.reason.name.lower()
        yield names.ERROR_TYPE.key, flow.reason.name.lower()
    yield from (
        (attribute.key, number)
        for attribute, number, least in (
            (names.FIRST_GENERATION, flow.first_generation, 1),
            (names.GENERATION, flow.generation, 1),
            (names.DROPS, flow.drops, 1),
            (names.BEGINS, flow.begins, 2),
            (names.UNTOLD, flow.untold, 1),
        )
        if number >= least
    )


def _where(backend: Identity | None, naming: Naming) -> Iterator[tuple[str, Value]]:
    if backend is None:
        return
    key = naming.backends.get(backend)
    if key is not None:
        yield names.POOL.key, key.pool
    yield names.BACKEND.key, key.name if key else f"#{backend.id}"


def _moments(flow: Flow, naming: Naming, offset: int) -> Iterator[Moment]:
    """Return each event; a move that another event implies comes before it."""
    for happening in flow.happenings:
        details = dict(_details(happening, naming))
        if happening.moved_from is not None:
            before = naming.backends.get(happening.moved_from)
            left = before.name if before else f"#{happening.moved_from.id}"
            moved = {**details, names.BACKEND_BEFORE.key: left}
            yield Moment(names.MOVED.name, happening.at + offset, moved)
            if happening.kind is EventKind.MOVED:
                continue
        yield Moment(_EVENTS[happening.kind].name, happening.at + offset, details)


def _details(happening: Happening, naming: Naming) -> Iterator[tuple[str, Value]]:
    yield from _where(happening.backend, naming)
    if happening.generation:
        yield names.GENERATION.key, happening.generation
    if happening.decision is not None:
        yield names.DECISION.key, happening.decision.name.lower()
    if happening.reason is not Reason.NONE:
        yield names.REASON.key, happening.reason.name.lower()
    if happening.times > 1:
        yield names.TIMES.key, happening.times


def _links(flow: Flow, naming: Naming, ids: FlowIds) -> Iterator[Link]:
    moved = [each for each in flow.happenings if each.moved_from is not None]
    causes = [
        naming.left.get(each.moved_from, each.generation) for each in moved if each.moved_from
    ]
    for generation in dict.fromkeys(causes):
        context = naming.change_of(generation)
        if context is not None:
            yield Link(context, {names.LINK.key: "change", names.GENERATION.key: generation})
    if not flow.has_begin:
        yield Link(ids.before, {names.LINK.key: "bucket_before"})


def _error(flow: Flow) -> str:
    if flow.end != "dropped":
        return ""
    return f"All packets were dropped: {flow.reason.name.lower().replace('_', ' ')}."
