# SPDX-License-Identifier: Apache-2.0
"""Spans of flows: the rule for trace ids, names, times and links."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.packets.flow_events import SECOND, FlowEvent, records
from tidegate.model.address import packed
from tidegate.model.decision import EventKind, Reason
from tidegate.model.generation import Identity
from tidegate.model.values import BackendKey
from tidegate.telemetry.flows.follow import Flows
from tidegate.telemetry.flows.gate import Limits
from tidegate.telemetry.flows.ids import BUCKET, FlowKey, flow_ids
from tidegate.telemetry.flows.spans import Naming, Roots, span_of
from tidegate.telemetry.names import flows as names
from tidegate.telemetry.span import Context, Span

NEW, MOVED, PROMOTED = EventKind.NEW, EventKind.MOVED, EventKind.PROMOTED
FINISHED, DROPPED = EventKind.FINISHED, EventKind.DROPPED
KEY: Final = FlowKey(
    6, packed(ip_address("192.0.2.7")), 40000, packed(ip_address("198.51.100.1")), 80
)
EPOCH: Final = 1_800_000_000 * SECOND
"""What lies between the monotonic clock of a test and 1970."""
NAMING: Final = Naming(
    vips={Identity(1, 1): "web"},
    backends={Identity(i, 1): BackendKey("pool", f"b{i}") for i in (1, 2)},
    change_of={generation: Context(generation, generation) for generation in (4, 5)}.get,
    left={Identity(1, 1): 5},
)
TIMES: Final = st.integers(EPOCH, EPOCH + 10**7 * SECOND)


def spans(
    happened: Sequence[FlowEvent],
    naming: Naming = NAMING,
    roots: Roots | None = None,
    offset: int = EPOCH,
) -> list[Span]:
    """Return the spans that one host makes of events."""
    flows = Flows(Limits(), 0)
    over = flows.take(records(happened), 0) + flows.take(records([]), 10**12)
    return [span_of(flow, naming, roots or Roots(), offset) for flow in over]


# Trace ids


def test_the_ids_are_those_of_the_rule() -> None:
    """Another program that follows the rule finds these; a change here parts a fleet's traces."""
    ids = flow_ids(KEY, EPOCH)
    assert f"{ids.root.trace_id:032x}-{ids.root.span_id:016x}" == (
        "f4c9149fdddf1d03dd34887baaf0fed5-b41b03b8617a27fa"
    )


@given(TIMES, st.integers(0, BUCKET * SECOND))
def test_hosts_agree_or_are_linked_for_the_length_of_a_bucket(at: int, age: int) -> None:
    """Whoever sees a flow in the middle has the SYN's trace as its own, or as that before."""
    syn, middle = flow_ids(KEY, at), flow_ids(KEY, at + age)
    assert syn.root in (middle.root, middle.before)


@given(TIMES)
def test_ports_used_again_after_two_buckets_are_in_another_trace(at: int) -> None:
    """Nothing leads from one to the other."""
    then, now = flow_ids(KEY, at), flow_ids(KEY, at + 2 * BUCKET * SECOND)
    assert then.root not in (now.root, now.before)


def test_flows_have_borders_of_their_own() -> None:
    """No moment parts many flows at once: one second has the borders of few flows."""
    some = [KEY._replace(source_port=port) for port in range(1000)]
    parted = [
        key for key in some if flow_ids(key, EPOCH).root != flow_ids(key, EPOCH + SECOND).root
    ]
    assert len(parted) < 12


@pytest.mark.parametrize("field", FlowKey._fields)
def test_each_part_of_a_flow_makes_another_trace(field: str) -> None:
    """Two flows never share one."""
    value = getattr(KEY, field)
    other = KEY._replace(**{field: value[:-1] + b"\x63" if isinstance(value, bytes) else 17})
    assert flow_ids(other, EPOCH).root.trace_id != flow_ids(KEY, EPOCH).root.trace_id


def test_a_flow_that_shifts_to_another_host_is_one_trace() -> None:
    """The host that saw the SYN has the root, and the other one a child of it."""
    (first,) = spans([FlowEvent(NEW), FlowEvent(PROMOTED, 0.1)])
    (second,) = spans([FlowEvent(PROMOTED, 1), FlowEvent(FINISHED, 2)], offset=EPOCH)
    assert first.parent is None
    assert second.parent == first.context
    assert second.context.trace_id == first.context.trace_id
    assert second.context.span_id != first.context.span_id
    assert [dict(link.attributes) for link in second.links] == [{"tidegate.link": "bucket_before"}]
    assert first.links == ()


def test_a_trace_has_one_root() -> None:
    """Another connection of the same ports in the same bucket is a child of the first."""
    roots = Roots()
    (first,) = spans([FlowEvent(NEW), FlowEvent(FINISHED, 0.1)], roots=roots)
    (second,) = spans([FlowEvent(NEW, 1), FlowEvent(FINISHED, 2)], roots=roots)
    assert second.parent == first.context != second.context


# What a span says


def test_a_span_says_who_where_and_why() -> None:
    """Names for ids, and wall-clock times."""
    (span,) = spans(
        [
            FlowEvent(NEW, 1, generation=3),
            FlowEvent(PROMOTED, 1.5, generation=3),
            FlowEvent(FINISHED, 2),
        ]
    )
    assert span.attributes == {
        "source.address": "192.0.2.7",
        "source.port": 40000,
        "destination.address": "198.51.100.1",
        "destination.port": 80,
        "network.transport": "tcp",
        "network.type": "ipv4",
        "tidegate.vip": "web",
        "tidegate.pool": "pool",
        "tidegate.backend": "b1",
        "tidegate.slot": 7,
        "tidegate.generation.first": 3,
        "tidegate.generation": 3,
        "tidegate.decision": "current",
        "tidegate.flow.end": "finished",
        "tidegate.flow.has_begin": True,
        "tidegate.flow.moves": 0,
    }
    assert (span.began, span.ended) == (EPOCH + SECOND, EPOCH + 2 * SECOND)
    assert [(m.name, m.at - EPOCH) for m in span.events] == [
        ("tidegate.flow.new", SECOND),
        ("tidegate.flow.promoted", 1_500_000_000),
        ("tidegate.flow.finished", 2 * SECOND),
    ]
    assert span.error == ""


def test_a_move_links_to_the_change_that_took_the_backend_away() -> None:
    """The table that chose the new one may be older, since quarantine comes before any table."""
    (span,) = spans([FlowEvent(NEW, generation=4), FlowEvent(MOVED, 1, backend=2, generation=4)])
    (link,) = span.links
    assert link.context == NAMING.change_of(5)
    assert link.attributes == {"tidegate.link": "change", "tidegate.generation": 5}
    moved = span.events[-1]
    assert (moved.name, moved.attributes["tidegate.backend"]) == ("tidegate.flow.moved", "b2")
    assert moved.attributes["tidegate.backend.before"] == "b1"


def test_any_other_move_is_linked_to_the_change_of_its_table() -> None:
    """Another table is what else can move a flow, and it has the number of its generation."""
    (span,) = spans([FlowEvent(NEW, backend=2), FlowEvent(PROMOTED, 1, backend=1, generation=4)])
    assert [link.context for link in span.links] == [NAMING.change_of(4)]
    assert [m.name for m in span.events] == [
        "tidegate.flow.new",
        "tidegate.flow.moved",
        "tidegate.flow.promoted",
    ]


def test_ids_without_a_name_remain_ids() -> None:
    """A number is better than the name of the id's next owner, or than none."""
    (span,) = spans([FlowEvent(NEW)], Naming())
    assert (span.attributes["tidegate.vip"], span.attributes["tidegate.backend"]) == ("#1", "#1")
    assert "tidegate.pool" not in span.attributes


def test_a_flow_that_never_got_through_is_an_error_with_a_reason() -> None:
    """Its drops are counted."""
    drops = [FlowEvent(DROPPED, i / 10, backend=0, reason=Reason.NO_BACKEND) for i in range(3)]
    (span,) = spans(drops)
    assert span.error == "All packets were dropped: no backend."
    assert span.attributes["error.type"] == "no_backend"
    assert span.attributes["tidegate.flow.drops"] == 3
    assert span.events[0].attributes == {
        "tidegate.drop.reason": "no_backend",
        "tidegate.times": 2,
    }


KINDS = st.sampled_from([kind for kind in EventKind if kind is not EventKind.FLOOD])


@given(st.lists(st.tuples(KINDS, st.integers(0, 2), st.sampled_from(list(Reason))), min_size=1))
def test_nothing_is_exported_that_is_not_defined(all_: list[tuple[EventKind, int, Reason]]) -> None:
    """Every attribute and event of every span is in the registry, with the type it has there."""
    types = {"string": str, "int": int, "boolean": bool}
    allowed = {each.key: types[each.type] for each in names.FLOW.attributes}
    events = {each.name: {a.key for a in each.attributes} for each in names.FLOW.events}
    happened = [
        FlowEvent(k, i / 10, backend=b, reason=r if k is DROPPED else Reason.NONE)
        for i, (k, b, r) in enumerate(all_)
    ]
    for span in spans(happened):
        assert span.name == names.FLOW.name
        assert {
            key: type(value) for key, value in span.attributes.items()
        }.items() <= allowed.items()
        for moment in span.events:
            assert set(moment.attributes) <= events[moment.name]
