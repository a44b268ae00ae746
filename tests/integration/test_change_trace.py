# SPDX-License-Identifier: Apache-2.0
"""Traces of changes on a real data plane: each change, whatever becomes of it, is one."""

import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import msgspec
import pytest

from support.agent.lifecycle import LifecycleHost
from support.documents.keyspaces import WEB, Contents, vip
from tidegate.agent.operator.orders import Rollback, Signature
from tidegate.keyspace.status.document import StatusDocument
from tidegate.model.received_writes import KeyWrite, ReceivedWrites, collect
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
def host(tmp_path: Path) -> Iterator[LifecycleHost]:
    built = LifecycleHost(tmp_path)
    built.want(WEB, 1)
    built.traces.close()
    built.spans.items.clear()
    yield built
    built.close()


def arrived(*writes: tuple[str, int, str]) -> ReceivedWrites:
    return collect([KeyWrite(*write) for write in writes], time.time_ns())


def acknowledge(host: LifecycleHost) -> None:
    """As if etcd had taken the status of what is in force now."""
    status = msgspec.convert(
        {
            "version": "1",
            "host": "lb1",
            "track": "stable",
            "release": "live",
            "revision": host.changes.outcome.revision,
            "state": "synced",
            "generation": host.plane.publisher.in_force.number,
            "digest": "",
            "started_at": "2026-01-31T12:00:00Z",
        },
        StatusDocument,
    )
    host.traces.pending.acknowledged(status)


def root(host: LifecycleHost) -> Span:
    (found,) = host.spans.named(names.CHANGE.name)
    return found


def stages(host: LifecycleHost, parent: Context) -> list[str]:
    found = [span for span in host.spans.items if span.parent == parent]
    return [span.name.removeprefix(names.PREFIX) for span in found]


def test_a_write_becomes_one_trace_with_every_stage(host: LifecycleHost) -> None:
    """From its receipt to the status in etcd, below the writer's span, with what it did."""
    host.want(MORE, 9, arrived((B, 9, FIRST)))
    assert host.spans.items == []  # it waits for the status
    acknowledge(host)
    change = root(host)
    assert change.parent == parse_traceparent(FIRST)
    assert stages(host, change.context) == [*WORK, *LAST, "acknowledge"]
    in_force = host.plane.publisher.in_force
    seen = {key.removeprefix("tidegate."): value for key, value in change.attributes.items()}
    assert seen["generation"] == in_force.number
    assert (seen["revision"], seen["digest"]) == (9, in_force.digest)
    assert (seen["change.cause"], seen["change.outcome"]) == ("keys", "applied")
    assert (seen["change.keys"], seen["change.key_count"]) == ((B,), 1)
    assert (seen["change.vips"], seen["change.pools"]) == (("shop",), ("web",))
    assert seen["change.backend_count"] == 1
    assert 0 < seen["change.slots.minimum"] <= seen["change.slots.moved"] < 65537  # type: ignore[operator]
    assert not change.error
    (fill,) = host.spans.named("tidegate.change.fill")
    assert stages(host, fill.context) == ["read_back"]
    assert fill.attributes["tidegate.change.tables"] == 1
    assert host.traces.context_of(in_force.number) == change.context
    assert {"receive", "fill", "read_back", "swap", "acknowledge", "total"} <= set(host.seconds)


def test_a_trace_context_alone_is_acknowledged_and_no_generation(host: LifecycleHost) -> None:
    """The control system sees that its write is in force, as it was before."""
    before = host.plane.publisher.in_force.number
    traced = WEB | {"pools/web": {"traceparent": FIRST}}
    host.want(traced, 9, arrived(("pools/web", 9, FIRST)))
    acknowledge(host)
    change = root(host)
    assert (change.parent, change.error) == (parse_traceparent(FIRST), "")
    assert change.attributes["tidegate.change.outcome"] == "unchanged"
    assert change.attributes["tidegate.generation"] == before
    assert "swap" not in stages(host, change.context)
    assert "acknowledge" in stages(host, change.context)


def test_a_guard_that_refuses_is_an_error_and_so_is_its_end(
    host: LifecycleHost,
) -> None:
    """The refused write's trace has the refusal, and later that it came into force after all."""
    host.want(MORE, 2)
    acknowledge(host)
    host.spans.items.clear()
    drained = MORE | {f"{B[:-1]}a": {"address": "198.51.100.1", "state": "drain"}}
    drained |= {B: {"address": "198.51.100.2", "state": "drain"}}
    (reason,) = host.want(drained, 9, arrived((B, 9, FIRST)))
    acknowledge(host)
    change = root(host)
    assert (change.error, change.attributes["error.type"]) == (reason, "guard")
    assert change.attributes["tidegate.change.outcome"] == "refused"
    assert stages(host, change.context) == ["receive", "validate", "guard", "acknowledge"]
    (guard,) = host.spans.named("tidegate.change.guard")
    (refusal,) = host.spans.named("tidegate.change.refusal")
    assert (guard.error, refusal.error, refusal.parent) == (reason, reason, guard.context)
    host.spans.items.clear()
    host.reconcile()  # nothing new: nothing to tell
    assert host.spans.items == []
    less = drained | {B: {"address": "198.51.100.2"}}
    assert host.want(less, 10, arrived((B, 10, SECOND))) == []
    acknowledge(host)
    (late,) = host.spans.named(names.JOINED.name)
    assert (late.parent, late.error) == (parse_traceparent(FIRST), "")
    assert late.links == (Link(root(host).context),)


def test_a_refused_document_is_traced_while_the_rest_goes_on(host: LifecycleHost) -> None:
    """Its writer's trace has the error; the generation's has the other write's."""
    broken = MORE | {"vips/bad": {"port": 1}}
    host.want(broken, 9, arrived(("vips/bad", 8, FIRST), (B, 9, SECOND)))
    acknowledge(host)
    change = root(host)
    assert (change.parent, change.error) == (parse_traceparent(SECOND), "")
    assert change.attributes["tidegate.change.outcome"] == "applied"
    assert change.attributes["tidegate.change.refused"] == 3  # address, protocol, pool
    refused = host.spans.named(names.REFUSAL.name)
    assert {span.attributes["tidegate.key"] for span in refused} == {"vips/bad"}
    (validate,) = host.spans.named("tidegate.change.validate")
    assert {span.parent for span in refused} == {validate.context}
    assert validate.error
    (other,) = host.spans.named(names.JOINED.name)
    assert (other.parent, other.attributes["error.type"]) == (parse_traceparent(FIRST), "schema")
    host.spans.items.clear()
    host.want(broken | {"vips/v": vip(last=2)}, 10, arrived(("vips/v", 10, "")))
    acknowledge(host)
    assert host.spans.named(names.REFUSAL.name) == []  # reported already
    assert root(host).parent is None


def test_a_kernel_that_refuses_and_the_next_try_share_a_trace(
    host: LifecycleHost,
) -> None:
    """What is put back meanwhile is a trace of its own; the write is in force in the end."""
    host.refusals = 1
    (reason,) = host.want(MORE, 9, arrived((B, 9, FIRST)))
    host.traces.close()
    failed, back = host.spans.named(names.CHANGE.name)
    assert (failed.error, failed.attributes["error.type"]) == (reason, "publish")
    assert stages(host, failed.context)[-1] == "publish"
    assert (back.parent, back.attributes["tidegate.change.cause"]) == (None, "rollback")
    host.spans.items.clear()
    assert host.reconcile() == []
    acknowledge(host)
    again = root(host)
    assert again.parent == failed.parent == parse_traceparent(FIRST)
    assert again.attributes["tidegate.change.outcome"] == "applied"
    assert host.spans.named(names.JOINED.name) == []


def test_coalesced_writes_are_each_in_their_own_trace(host: LifecycleHost) -> None:
    """The latest is the parent, the others are linked; one that is not sampled is left alone."""
    writes = [("pools/web", 7, SILENT), ("vips/shop", 8, FIRST), (B, 9, SECOND)]
    host.want(MORE, 9, arrived(*writes))
    acknowledge(host)
    change = root(host)
    assert change.parent == parse_traceparent(SECOND)
    (other,) = host.spans.named(names.JOINED.name)
    assert (other.parent, other.links) == (parse_traceparent(FIRST), (Link(change.context),))
    assert Link(other.context) in change.links
    assert other.began <= other.ended <= change.ended
    assert all(span.context.is_sampled for span in host.spans.items)


def test_a_frozen_host_says_that_it_keeps_what_it_has(host: LifecycleHost) -> None:
    """The write is not in force, and why; the freeze itself is no error; the thaw ends that."""
    host.want(WEB, 5, arrived(("hosts/lb1", 5, FIRST)), freeze="moving house")
    acknowledge(host)
    assert (root(host).error, root(host).parent) == ("", parse_traceparent(FIRST))
    host.spans.items.clear()
    host.want(MORE, 9, arrived((B, 9, SECOND)), freeze="moving house")
    acknowledge(host)
    kept = root(host)
    assert (kept.error, kept.attributes["error.type"]) == ("moving house", "frozen")
    host.spans.items.clear()
    host.want(MORE, 10, arrived(("hosts/lb1", 10, FIRST)))
    acknowledge(host)
    assert root(host).attributes["tidegate.change.outcome"] == "applied"
    (late,) = host.spans.named(names.JOINED.name)
    assert late.parent == parse_traceparent(SECOND)


def test_an_operators_order_is_a_trace_with_its_change_below(host: LifecycleHost) -> None:
    """Who ordered what, why, and what the host did; one that cannot be is an error."""
    host.want(MORE, 9)
    host.traces.close()
    host.spans.items.clear()
    signature = Signature("ann", time.time(), "incident 4711")
    assert host.order(Rollback(signature, None)).status is HTTPStatus.OK
    assert host.order(Rollback(signature, 99)).status is HTTPStatus.NOT_FOUND
    acknowledge(host)
    rollback, unknown = host.spans.named(names.ORDERED.name)
    assert rollback.attributes == {
        "tidegate.order": "rollback",
        "user.name": "ann",
        "tidegate.order.reason": "incident 4711",
    }
    assert rollback.error == ""
    assert "no generation number 99 is known" in unknown.error
    change = root(host)
    assert change.parent == rollback.context
    assert change.context.trace_id == rollback.context.trace_id
    assert change.attributes["tidegate.change.cause"] == "rollback"
    assert "swap" in stages(host, change.context)


def test_the_first_packet_ends_a_trace_that_waits_for_one(host: LifecycleHost) -> None:
    """One of an older generation does not; who brings the last of what is missing ends it."""
    host.has_samples = True
    host.want(MORE, 9, arrived((B, 9, FIRST)))
    number = host.plane.publisher.in_force.number
    acknowledge(host)
    host.traces.pending.first_packet(number - 1, time.time_ns())
    assert host.spans.items == []
    met = time.time_ns()
    host.traces.pending.first_packet(number, met)
    change = root(host)
    (packet,) = host.spans.named("tidegate.change.first_packet")
    assert packet.ended == met <= change.ended
    assert stages(host, change.context)[-2:] == ["acknowledge", "first_packet"]


def test_what_never_comes_is_left_out(host: LifecycleHost) -> None:
    """After a while, or at the end of the agent, a trace is sent without it."""
    host.has_samples = True
    host.want(MORE, 9, arrived((B, 9, FIRST)))
    due = host.traces.pending.next_due()
    assert due is not None
    host.traces.pending.complete(due - 1)
    assert host.spans.items == []
    host.traces.pending.complete(due)
    assert "first_packet" not in stages(host, root(host).context)
    assert host.traces.pending.next_due() is None
