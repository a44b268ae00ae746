# SPDX-License-Identifier: Apache-2.0
"""Traces of changes on a real data plane: each change, whatever becomes of it, is one."""

import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import msgspec
import pytest

from support.agent.middle import Middle
from support.documents.keyspaces import WEB, Contents, vip
from tidegate.agent.operator.orders import Freeze, Order, Rollback, Signature
from tidegate.http_server import Answer
from tidegate.keyspace.status.document import StatusDocument
from tidegate.model.arrivals import Arrivals, Written, gathered
from tidegate.telemetry.names import changes as names
from tidegate.telemetry.span import Context, Link, Span, parse_traceparent

pytestmark = pytest.mark.root

B = "pools/web/backends/b"
MORE: Contents = WEB | {B: {"address": "198.51.100.2"}}
FIRST = "00-00000000000000000000000000000001-0000000000000001-01"
SECOND = "00-00000000000000000000000000000002-0000000000000002-01"
SILENT = "00-00000000000000000000000000000003-0000000000000003-00"
WORK = ["receive", "validate", "guard", "plan", "disruption", "program", "entries", "fill"]
LAST = ["swap", "vips", "record", "journal"]


@pytest.fixture
def middle(tmp_path: Path) -> Iterator[Middle]:
    built = Middle(tmp_path)
    built.want(WEB, 1)
    built.traces.close()
    built.spans.items.clear()
    yield built
    built.close()


def arrived(*writes: tuple[str, int, str]) -> Arrivals:
    return gathered([Written(*write) for write in writes], time.time_ns())


def acknowledge(middle: Middle) -> None:
    """As if etcd had taken the status of what is in force now."""
    status = msgspec.convert(
        {
            "version": "1",
            "host": "lb1",
            "track": "stable",
            "release": "live",
            "revision": middle.control.outcome.revision,
            "state": "synced",
            "generation": middle.plane.publisher.in_force.number,
            "digest": "",
            "started_at": "2026-01-31T12:00:00Z",
        },
        StatusDocument,
    )
    middle.traces.acknowledged(status)


def root(middle: Middle) -> Span:
    (found,) = middle.spans.named(names.CHANGE.name)
    return found


def stages(middle: Middle, parent: Context) -> list[str]:
    found = [span for span in middle.spans.items if span.parent == parent]
    return [span.name.removeprefix(names.PREFIX) for span in found]


def test_a_write_becomes_one_trace_with_every_stage(middle: Middle) -> None:
    """From its receipt to the status in etcd, below the writer's span, with what it did."""
    middle.want(MORE, 9, arrived((B, 9, FIRST)))
    assert middle.spans.items == []  # it waits for the status
    acknowledge(middle)
    change = root(middle)
    assert change.parent == parse_traceparent(FIRST)
    assert stages(middle, change.context) == [*WORK, *LAST, "acknowledge"]
    in_force = middle.plane.publisher.in_force
    told = {key.removeprefix("tidegate."): value for key, value in change.attributes.items()}
    assert told["generation"] == in_force.number
    assert (told["revision"], told["digest"]) == (9, in_force.digest)
    assert (told["change.cause"], told["change.outcome"]) == ("keys", "applied")
    assert (told["change.keys"], told["change.key_count"]) == ((B,), 1)
    assert (told["change.vips"], told["change.pools"]) == (("shop",), ("web",))
    assert told["change.backend_count"] == 1
    assert 0 < told["change.slots.minimum"] <= told["change.slots.moved"] < 65537  # type: ignore[operator]
    assert not change.error
    (fill,) = middle.spans.named("tidegate.change.fill")
    assert stages(middle, fill.context) == ["read_back"]
    assert fill.attributes["tidegate.change.tables"] == 1
    assert middle.traces.context_of(in_force.number) == change.context
    assert {"receive", "fill", "read_back", "swap", "acknowledge", "total"} <= set(middle.seconds)


def test_a_trace_context_alone_is_acknowledged_without_a_generation(middle: Middle) -> None:
    """The control system sees that its write is in force, as it was before."""
    before = middle.plane.publisher.in_force.number
    traced = WEB | {"pools/web": {"traceparent": FIRST}}
    middle.want(traced, 9, arrived(("pools/web", 9, FIRST)))
    acknowledge(middle)
    change = root(middle)
    assert (change.parent, change.error) == (parse_traceparent(FIRST), "")
    assert change.attributes["tidegate.change.outcome"] == "unchanged"
    assert change.attributes["tidegate.generation"] == before
    assert "swap" not in stages(middle, change.context)
    assert "acknowledge" in stages(middle, change.context)


def test_a_guard_that_refuses_is_an_error_and_what_lifts_it_is_told_too(middle: Middle) -> None:
    """The refused write's trace has the refusal, and later that it came into force after all."""
    middle.want(MORE, 2)
    acknowledge(middle)
    middle.spans.items.clear()
    drained = MORE | {f"{B[:-1]}a": {"address": "198.51.100.1", "state": "drain"}}
    drained |= {B: {"address": "198.51.100.2", "state": "drain"}}
    (reason,) = middle.want(drained, 9, arrived((B, 9, FIRST)))
    acknowledge(middle)
    change = root(middle)
    assert (change.error, change.attributes["error.type"]) == (reason, "guard")
    assert change.attributes["tidegate.change.outcome"] == "refused"
    assert stages(middle, change.context) == ["receive", "validate", "guard", "acknowledge"]
    (guard,) = middle.spans.named("tidegate.change.guard")
    (refusal,) = middle.spans.named("tidegate.change.refusal")
    assert (guard.error, refusal.error, refusal.parent) == (reason, reason, guard.context)
    middle.spans.items.clear()
    middle.step()  # nothing new: nothing to tell
    assert middle.spans.items == []
    less = drained | {B: {"address": "198.51.100.2"}}
    assert middle.want(less, 10, arrived((B, 10, SECOND))) == []
    acknowledge(middle)
    (late,) = middle.spans.named(names.JOINED.name)
    assert (late.parent, late.error) == (parse_traceparent(FIRST), "")
    assert late.links == (Link(root(middle).context),)


def test_a_refused_document_is_told_while_the_rest_goes_on(middle: Middle) -> None:
    """Its writer's trace has the error; the generation's has the other write's."""
    broken = MORE | {"vips/bad": {"port": 1}}
    middle.want(broken, 9, arrived(("vips/bad", 8, FIRST), (B, 9, SECOND)))
    acknowledge(middle)
    change = root(middle)
    assert (change.parent, change.error) == (parse_traceparent(SECOND), "")
    assert change.attributes["tidegate.change.outcome"] == "applied"
    assert change.attributes["tidegate.change.refused"] == 3  # address, protocol, pool
    refused = middle.spans.named(names.REFUSAL.name)
    assert {span.attributes["tidegate.key"] for span in refused} == {"vips/bad"}
    (validate,) = middle.spans.named("tidegate.change.validate")
    assert {span.parent for span in refused} == {validate.context}
    assert validate.error
    (other,) = middle.spans.named(names.JOINED.name)
    assert (other.parent, other.attributes["error.type"]) == (parse_traceparent(FIRST), "schema")
    middle.spans.items.clear()
    middle.want(broken | {"vips/v": vip(last=2)}, 10, arrived(("vips/v", 10, "")))
    acknowledge(middle)
    assert middle.spans.named(names.REFUSAL.name) == []  # told already
    assert root(middle).parent is None


def test_a_kernel_that_refuses_is_an_error_and_the_next_attempt_is_in_the_same_trace(
    middle: Middle,
) -> None:
    """What is put back meanwhile is a trace of its own; the write is in force in the end."""
    middle.refusals = 1
    (reason,) = middle.want(MORE, 9, arrived((B, 9, FIRST)))
    middle.traces.close()
    failed, back = middle.spans.named(names.CHANGE.name)
    assert (failed.error, failed.attributes["error.type"]) == (reason, "publish")
    assert stages(middle, failed.context)[-1] == "publish"
    assert (back.parent, back.attributes["tidegate.change.cause"]) == (None, "rollback")
    middle.spans.items.clear()
    assert middle.step() == []
    acknowledge(middle)
    again = root(middle)
    assert again.parent == failed.parent == parse_traceparent(FIRST)
    assert again.attributes["tidegate.change.outcome"] == "applied"
    assert middle.spans.named(names.JOINED.name) == []


def test_coalesced_writes_are_each_told_in_their_own_trace(middle: Middle) -> None:
    """The latest is the parent, the others are linked; one that is not sampled is left alone."""
    writes = [("pools/web", 7, SILENT), ("vips/shop", 8, FIRST), (B, 9, SECOND)]
    middle.want(MORE, 9, arrived(*writes))
    acknowledge(middle)
    change = root(middle)
    assert change.parent == parse_traceparent(SECOND)
    (other,) = middle.spans.named(names.JOINED.name)
    assert (other.parent, other.links) == (parse_traceparent(FIRST), (Link(change.context),))
    assert Link(other.context) in change.links
    assert other.began <= other.ended <= change.ended
    assert all(span.context.is_sampled for span in middle.spans.items)


def test_a_frozen_host_says_that_it_keeps_what_it_has(middle: Middle) -> None:
    """The write is not in force, and why; the freeze itself is no error; the thaw ends that."""
    middle.want(WEB, 5, arrived(("hosts/lb1", 5, FIRST)), freeze="moving house")
    acknowledge(middle)
    assert (root(middle).error, root(middle).parent) == ("", parse_traceparent(FIRST))
    middle.spans.items.clear()
    middle.want(MORE, 9, arrived((B, 9, SECOND)), freeze="moving house")
    acknowledge(middle)
    kept = root(middle)
    assert (kept.error, kept.attributes["error.type"]) == ("moving house", "frozen")
    middle.spans.items.clear()
    middle.want(MORE, 10, arrived(("hosts/lb1", 10, FIRST)))
    acknowledge(middle)
    assert root(middle).attributes["tidegate.change.outcome"] == "applied"
    (late,) = middle.spans.named(names.JOINED.name)
    assert late.parent == parse_traceparent(SECOND)


def test_an_operators_order_is_a_trace_with_its_change_below(middle: Middle) -> None:
    """Who ordered what, why, and what the host did; one that cannot be is an error."""
    desired = middle.heard[0].desired
    middle.want(MORE, 9)
    middle.traces.close()
    middle.spans.items.clear()

    def carry_out(order: Order) -> Answer:
        if isinstance(order, Freeze):
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "no."})
        assert middle.control.put_back(desired, "to generation 1") == ()
        return Answer(HTTPStatus.OK, {})

    signature = Signature("ann", time.time(), "incident 4711")
    middle.traces.ordered(Rollback(signature, None), carry_out)
    middle.traces.ordered(Freeze(signature), carry_out)
    acknowledge(middle)
    rollback, freeze = middle.spans.named(names.ORDERED.name)
    assert rollback.attributes == {
        "tidegate.order": "rollback",
        "user.name": "ann",
        "tidegate.order.reason": "incident 4711",
    }
    assert (rollback.error, freeze.error) == ("", "no.")
    change = root(middle)
    assert (change.parent, change.context.trace_id) == (
        *(rollback.context, rollback.context.trace_id),
    )
    assert change.attributes["tidegate.change.cause"] == "rollback"
    assert "swap" in stages(middle, change.context)


def test_the_first_packet_ends_a_trace_that_waits_for_one(middle: Middle) -> None:
    """One of an older generation does not; who brings the last of what is missing ends it."""
    middle.has_samples = True
    middle.want(MORE, 9, arrived((B, 9, FIRST)))
    number = middle.plane.publisher.in_force.number
    acknowledge(middle)
    middle.traces.first_packet(number - 1, time.time_ns())
    assert middle.spans.items == []
    met = time.time_ns()
    middle.traces.first_packet(number, met)
    change = root(middle)
    (packet,) = middle.spans.named("tidegate.change.first_packet")
    assert packet.ended == met <= change.ended
    assert stages(middle, change.context)[-2:] == ["acknowledge", "first_packet"]


def test_what_never_comes_is_left_out(middle: Middle) -> None:
    """After a while, or at the end of the agent, a trace is told without it."""
    middle.has_samples = True
    middle.want(MORE, 9, arrived((B, 9, FIRST)))
    due = middle.traces.next_look
    assert due is not None
    middle.traces.look(due - 1)
    assert middle.spans.items == []
    middle.traces.look(due)
    assert "first_packet" not in stages(middle, root(middle).context)
    assert middle.traces.next_look is None
