# SPDX-License-Identifier: Apache-2.0
"""Flows from events: which belong together, when they are over, and what is left out."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.packets.flow_events import SECOND, FlowEvent, records
from tidegate.model.decision import EventKind, Reason
from tidegate.telemetry.flows.follow import Flow, Flows
from tidegate.telemetry.flows.gate import Limits, keys_of

NEW, MOVED, PROMOTED = EventKind.NEW, EventKind.MOVED, EventKind.PROMOTED
FINISHED, RESET, DROPPED = EventKind.FINISHED, EventKind.RESET, EventKind.DROPPED
FLOOD = EventKind.FLOOD
IDLE = 300.0
LATER = round(2 * IDLE * SECOND)
NOTHING = records([])


def whole(happened: Sequence[FlowEvent], flows: Flows | None = None) -> list[Flow]:
    """Return the flows of these events, taken one by one as they happen, and of a long silence."""
    followed = flows or Flows(Limits(), 0)
    over: list[Flow] = []
    for each in happened:
        over += followed.take(records([each]), round(each.at * SECOND))
    return over + followed.take(NOTHING, round(happened[-1].at * SECOND) + LATER)


def kinds(flow: Flow) -> list[EventKind]:
    return [happening.kind for happening in flow.happenings]


LIVES = {
    "a FIN ends it": ([NEW, PROMOTED, FINISHED], ["finished"]),
    "a RST ends it": ([NEW, PROMOTED, RESET], ["reset"]),
    "a RST after a FIN is of the same flow": ([NEW, FINISHED, RESET], ["finished"]),
    "a FIN that is repeated is of the same flow": ([NEW, FINISHED, FINISHED], ["finished"]),
    "silence ends it": ([NEW, PROMOTED], ["idle"]),
    "a SYN that is repeated is of the same flow": ([NEW, NEW, PROMOTED], ["idle"]),
    "a SYN after the handshake is another flow's": ([NEW, PROMOTED, NEW], ["replaced", "idle"]),
    "a SYN after a FIN is another flow's": ([NEW, FINISHED, NEW], ["finished", "idle"]),
    "a flow that begins in the middle": ([PROMOTED, FINISHED], ["finished"]),
    "only drops": ([DROPPED, DROPPED], ["dropped"]),
    "a SYN that is dropped and repeated": ([DROPPED, NEW, FINISHED], ["finished"]),
    "a drop within a flow": ([NEW, PROMOTED, DROPPED, FINISHED], ["finished"]),
}


@pytest.mark.parametrize("name", LIVES)
def test_what_ends_a_flow(name: str) -> None:
    """One flow for one connection, with the reason why it is over."""
    happened, ends = LIVES[name]
    events = [
        FlowEvent(kind, i / 10, backend=0 if kind is DROPPED else 1)
        for i, kind in enumerate(happened)
    ]
    found = whole(events)
    assert [flow.end for flow in found] == ends
    assert [kind for flow in found for kind in kinds(flow)] == happened


def test_a_flow_is_reported_soon_after_its_fin_and_not_again() -> None:
    """What comes late for it is counted; a SYN is another connection whenever it comes."""
    flows = Flows(Limits(), 0)
    flows.take(records([FlowEvent(NEW), FlowEvent(FINISHED, 0.1)]), SECOND)
    assert flows.take(NOTHING, 2 * SECOND) == []
    (flow,) = flows.take(NOTHING, 3 * SECOND)
    assert (flow.began, flow.seen, flow.has_begin) == (0, SECOND // 10, True)
    assert flows.take(records([FlowEvent(FINISHED, 9)]), 9 * SECOND) == []
    assert flows.dropped == {"late": 1}
    flows.take(records([FlowEvent(NEW, 10)]), 10 * SECOND)
    assert flows.followed == 1


def test_a_move_is_known_by_the_backend_whatever_event_tells_it() -> None:
    """The backend before and the generation are kept; the first decision remains."""
    (flow,) = whole(
        [
            FlowEvent(NEW, backend=1, generation=3),
            FlowEvent(PROMOTED, 1, backend=2, generation=4),
            FlowEvent(MOVED, 2, backend=3, generation=6),
            FlowEvent(PROMOTED, 2, backend=3, generation=6),
        ]
    )
    assert flow.moves == 2
    assert [each.moved_from and each.moved_from.id for each in flow.happenings] == [
        None,
        1,
        2,
        None,
    ]
    assert (flow.first_generation, flow.generation) == (3, 6)
    assert flow.backend is not None
    assert flow.backend.id == 3


def test_the_backend_of_a_dropped_packet_is_no_move() -> None:
    """It never got there."""
    (flow,) = whole(
        [
            FlowEvent(NEW),
            FlowEvent(DROPPED, 1, backend=2, reason=Reason.TOO_BIG),
            FlowEvent(RESET, 2),
        ]
    )
    assert (flow.moves, flow.drops, flow.reason) == (0, 1, Reason.TOO_BIG)


def test_datagrams_that_begin_again_after_silence_were_idle() -> None:
    """No other connection has replaced the flow: UDP has none."""
    first, second = whole([FlowEvent(k, t, protocol=17) for t in (0, 99) for k in (NEW, PROMOTED)])
    assert (first.end, second.end) == ("idle", "idle")


def test_floods_are_of_no_flow() -> None:
    """They are counted."""
    flows = Flows(Limits(), 0)
    assert flows.take(records([FlowEvent(FLOOD), FlowEvent(FLOOD)]), SECOND) == []
    assert (flows.floods, flows.followed, flows.dropped) == (2, 0, {})


def test_a_flow_has_a_bounded_number_of_events() -> None:
    """A client may repeat its FIN for ever."""
    (flow,) = whole([FlowEvent(NEW), *(FlowEvent(FINISHED, i / 1000) for i in range(1, 50))])
    assert (len(flow.happenings), flow.untold) == (32, 18)


def test_stopping_tells_of_all_that_is_open() -> None:
    """An agent that ends must not keep to itself what it knows."""
    flows = Flows(Limits(), 0)
    flows.take(
        records([FlowEvent(NEW), FlowEvent(NEW, port=2), FlowEvent(RESET, 0.1, port=2)]), SECOND
    )
    assert sorted(str(flow.end) for flow in flows.stop()) == ["reset", "stopped"]
    assert (flows.stop(), flows.followed) == ([], 0)


# Limits


def many(count: int, kind: EventKind = NEW, at: float = 0.0) -> list[FlowEvent]:
    return [FlowEvent(kind, at, port=1000 + i) for i in range(count)]


def test_more_flows_than_the_rate_are_counted_and_left_out_whole() -> None:
    """What was let in is followed to its end; of the others nothing is followed."""
    flows = Flows(Limits(flows_per_second=10), 0)
    flows.take(records(many(50)), 0)
    assert (flows.followed, flows.refused, flows.dropped) == (10, 40, {"rate": 40})
    ended = flows.take(records(many(50, FINISHED, 0.001)), SECOND // 1000)
    assert ended == []
    assert len(flows.take(NOTHING, 3 * SECOND)) == 10
    assert (flows.refused, flows.dropped["rate"]) == (80, 80)


def test_ports_that_are_used_again_at_once_do_not_pass_the_rate() -> None:
    """A flow that follows on another is one more; if it may not begin, all of it is left out."""
    flows = Flows(Limits(flows_per_second=3), 0)
    happened = [FlowEvent(kind, i / 1000) for i, kind in enumerate([NEW, PROMOTED, FINISHED] * 6)]
    over = flows.take(records(happened), 0) + flows.stop()
    assert [kinds(flow) for flow in over] == [[NEW, PROMOTED, FINISHED]] * 3
    assert (flows.refused, flows.dropped) == (3, {"rate": 9})


def test_hosts_that_are_too_busy_choose_the_same_flows() -> None:
    """The order of arrival does not matter, so no span has half of a flow that shifts."""
    first, second = (Flows(Limits(flows_per_second=10), 0) for _ in range(2))
    first.take(records(many(50)), 0)
    second.take(records(reversed(many(50))), 0)
    chosen = [{flow.key for flow in flows.stop()} for flows in (first, second)]
    assert chosen[0] == chosen[1]


def test_the_table_is_bounded() -> None:
    """What does not fit is counted."""
    flows = Flows(Limits(open_flows=10), 0)
    flows.take(records(many(50)), 0)
    assert (flows.followed, flows.dropped) == (10, {"table": 40})


def test_one_flow_cannot_take_all_the_time() -> None:
    """Drops are counted together; of other events only so many per second are looked at."""
    flows = Flows(Limits(flows_per_second=10), 0)
    flows.take(records([FlowEvent(DROPPED, i / 1e6, backend=0) for i in range(1000)]), SECOND)
    (flow,) = flows.stop()
    assert (flow.drops, len(flow.happenings)) == (1000, 2)
    assert flow.seen == 999_000
    flows.take(records([FlowEvent(FINISHED, 1.0) for _ in range(1000)]), SECOND)
    (flow,) = flows.stop()
    assert flows.dropped["rate"] + len(flow.happenings) + flow.untold == 1000
    assert len(flow.happenings) + flow.untold <= 80


def test_drops_before_and_after_a_syn_belong_to_two_connections() -> None:
    """Drops are counted together, but not across what parts flows."""
    happened = [
        FlowEvent(PROMOTED),
        FlowEvent(DROPPED, 0.1, backend=0),
        FlowEvent(NEW, 0.2),
        FlowEvent(DROPPED, 0.3, backend=0),
        FlowEvent(DROPPED, 0.4, backend=0),
    ]
    flows = Flows(Limits(), 0)
    over = flows.take(records(happened), SECOND) + flows.stop()
    assert [flow.drops for flow in over] == [1, 2]


# Whatever the order


def lives() -> st.SearchStrategy[list[FlowEvent]]:
    """Return events of a few flows, at times of their own."""
    one = st.tuples(
        st.sampled_from(list(EventKind)), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9)
    )
    return st.lists(one, min_size=1, max_size=30).map(
        lambda all_: [
            FlowEvent(
                kind, i / 1000, port=port, backend=0 if kind is DROPPED else backend, generation=n
            )
            for i, (kind, port, backend, n) in enumerate(all_)
        ]
    )


def summary(flows: Iterable[Flow]) -> list[Any]:
    return sorted(
        (
            flow.key,
            flow.began,
            flow.seen,
            flow.has_begin,
            flow.backend,
            str(flow.end),
            flow.moves,
            flow.drops,
            flow.generation,
            flow.first_generation,
            [(each.kind, each.at) for each in flow.happenings if each.kind is not DROPPED],
        )
        for flow in flows
    )


@settings(deadline=None, max_examples=60)
@given(lives(), st.data())
def test_batches_and_the_order_within_them_make_no_difference(
    happened: list[FlowEvent], data: st.DataObject
) -> None:
    """A reader takes what there is when it comes by; flows are the same."""
    at_once = Flows(Limits(), 0)
    expected = at_once.take(records(happened), SECOND) + at_once.take(NOTHING, SECOND + LATER)
    in_parts, found, rest = Flows(Limits(), 0), [], happened
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        batch = data.draw(st.permutations(rest[:size]))
        found += in_parts.take(records(batch), SECOND)
        rest = rest[size:]
    found += in_parts.take(NOTHING, SECOND + LATER)
    assert summary(found) == summary(expected)


@settings(deadline=None, max_examples=60)
@given(lives())
def test_every_event_is_in_a_span_or_counted(happened: list[FlowEvent]) -> None:
    """In spans, as a flood, or as dropped for a reason."""
    flows = Flows(Limits(flows_per_second=5, open_flows=2), 0)
    found = flows.take(records(happened), SECOND) + flows.take(NOTHING, SECOND + LATER)
    in_spans = sum(each.times for flow in found for each in flow.happenings)
    untold = sum(flow.untold for flow in found)
    assert in_spans + untold + flows.floods + flows.dropped.total() == len(happened)
    assert flows.followed == 0


def test_keys_differ_where_flows_do() -> None:
    """In each part of what makes a flow."""
    some = [
        FlowEvent(NEW),
        FlowEvent(NEW, client="192.0.2.8"),
        FlowEvent(NEW, port=40001),
        FlowEvent(NEW, protocol=17),
        FlowEvent(NEW, vip="198.51.100.2"),
        FlowEvent(NEW, client="2001:db8::7"),
    ]
    assert len(set(keys_of(records(some)).tolist())) == len(some)
    assert len(np.unique(keys_of(records(many(5000))))) == 5000
