# SPDX-License-Identifier: Apache-2.0
"""Events: the kernel and the specification write the same of every packet, in the same order."""

import select
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from support.documents.roster import VIP4, VIP6, backend, desired, vip
from support.packets.both import Both
from support.packets.frames import CLIENT4, ip4, ip6, tcp, udp
from support.packets.kernel import BUILD, LINK, Kernel
from tidegate.dataplane.inspect import events
from tidegate.dataplane.kernel import layout
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.programs import compile_balancer
from tidegate.errors import DataplaneError
from tidegate.model.address import packed
from tidegate.model.decision import Decision, EventKind, Reason
from tidegate.model.features import ALL_FEATURES, Feature
from tidegate.model.generation import NOTHING, Identity
from tidegate.model.values import Backend, Desired
from tidegate.planner import plan
from tidegate.spec.events import RATE
from tidegate.spec.state import Event

pytestmark = pytest.mark.root

NEW, MOVED, PROMOTED = EventKind.NEW, EventKind.MOVED, EventKind.PROMOTED
FINISHED, RESET, DROPPED = EventKind.FINISHED, EventKind.RESET, EventKind.DROPPED
ALL, HALF = 65536, 32768
TWO = (backend("b1"), backend("b2", "fd01::2"))


def sampled(*backends: Backend, share: int = ALL, **options: Any) -> Desired:
    """Return TCP and UDP VIPs in both families, whose flows are sampled."""
    vips = [
        vip("web4", VIP4, flow_sampling=share, **options),
        vip("web6", VIP6, flow_sampling=share, **options),
        vip("dns4", VIP4, 53, "udp", flow_sampling=share, **options),
    ]
    return desired(vips, list(backends or TWO))


class EventRecorder:
    """The events of both engines, which must be the same."""

    def __init__(self, both: Both, reader: events.Reader) -> None:
        self.both = both
        self.reader = reader

    def of(self, *frames: bytes) -> list[Event]:
        """Send these frames and return their events."""
        before = len(self.both.state.events)
        for frame in frames:
            self.both.send(frame)
        expected = self.both.state.events[before:]
        assert list(events.named(self.reader.read())) == expected
        return expected

    def kinds(self, *frames: bytes) -> list[EventKind]:
        """Send these frames and return the kinds of their events."""
        return [event.kind for event in self.of(*frames)]


@pytest.fixture
def recorder(both: Both) -> Iterator[EventRecorder]:
    """Give both engines and a reader of the ring buffer, which must have lost nothing."""
    with events.Reader(both.kernel.maps["events"]) as reader:
        yield EventRecorder(both, reader)
        counted = events.counts(both.kernel.maps["event_counts"])
        assert counted == (len(both.state.events), both.state.events_lost)


LIVES = {
    "TCP that ends well": (
        [tcp(f) for f in ("S", "A", "PA", "FA", "A")],
        [NEW, PROMOTED, FINISHED],
    ),
    "TCP over IPv6": ([tcp(f, ip6()) for f in ("S", "A", "FA")], [NEW, PROMOTED, FINISHED]),
    "TCP that is reset": ([tcp(f) for f in ("S", "A", "R")], [NEW, PROMOTED, RESET]),
    "a reset of nothing": ([tcp("R")], [RESET]),
    "FIN and RST in one": ([tcp("FR")], [FINISHED, RESET]),
    "a flow from before": ([tcp("A"), tcp("A")], [PROMOTED]),
    "a port used again": ([tcp(f) for f in ("S", "A", "S")], [NEW, PROMOTED, NEW]),
    "UDP": ([udp(), udp()], [NEW, PROMOTED]),
    "a datagram whose length lies": ([udp(ip4(len=900))], [DROPPED]),
}
"""Name: frames of one flow, and its events."""


@pytest.mark.parametrize("name", LIVES)
def test_the_life_of_a_flow(recorder: EventRecorder, name: str) -> None:
    """Begin, entry and end are one event each; the packets in between are none."""
    recorder.both.want(sampled())
    frames, expected = LIVES[name]
    assert recorder.kinds(*frames) == expected


def test_an_event_says_who_where_and_why(recorder: EventRecorder) -> None:
    """Everything that a trace of the flow needs."""
    generation = recorder.both.want(sampled())
    result = recorder.both.send(tcp("S"))
    assert result.backend is not None
    (event,) = events.named(recorder.reader.read())
    assert event == Event(
        kind=NEW,
        vip=generation.vips["web4"].identity,
        backend=Identity(result.backend, 1),
        slot=result.slot or 0,
        generation=generation.number,
        decision=Decision.SYN,
        reason=Reason.NONE,
        protocol=6,
        source=packed(ip_address(CLIENT4)),
        destination=packed(ip_address(VIP4)),
        source_port=(40000).to_bytes(2),
        port=(80).to_bytes(2),
    )
    assert recorder.both.state.events == [event]


def test_the_time_is_that_of_the_monotonic_clock(recorder: EventRecorder) -> None:
    """Whoever joins events with other traces needs one clock."""
    recorder.both.want(sampled())
    before = time.monotonic_ns()
    recorder.both.send(tcp("S"))
    (record,) = recorder.reader.read()
    assert before <= record["time"] <= time.monotonic_ns()


def _without(both: Both, entered: Event, backends: Iterable[Backend]) -> list[Backend]:
    """Return the same roster with the backend that an event names in quarantine."""
    assert entered.backend is not None
    return [
        replace(each, state="quarantine") if both.id_of(each.name) == entered.backend.id else each
        for each in backends
    ]


@pytest.mark.parametrize("frame", [tcp("A"), udp()], ids=["TCP", "UDP"])
def test_a_flow_that_loses_its_backend_is_moved(recorder: EventRecorder, frame: bytes) -> None:
    """Quarantine moves tracked flows; where the flow is from is in its earlier events."""
    both = recorder.both
    three = [backend(f"b{i}") for i in range(1, 4)]
    both.want(sampled(*three))
    entered = recorder.of(frame)[-1]
    both.want(sampled(*_without(both, entered, three)))

    moved, again = recorder.of(frame, frame)
    assert (moved.kind, again.kind) == (MOVED, PROMOTED)
    assert moved.backend == again.backend != entered.backend


def test_a_syn_that_finds_an_entry_of_a_lost_backend_is_new(recorder: EventRecorder) -> None:
    """It begins another connection, which never was elsewhere."""
    both = recorder.both
    both.want(sampled())
    entered = recorder.of(tcp("A"))[-1]
    both.want(sampled(*_without(both, entered, TWO)))
    assert recorder.kinds(tcp("S")) == [NEW]


def test_in_transition_mode_steady_flows_are_not_promoted(recorder: EventRecorder) -> None:
    """No entry is written for a slot that never changed, so there is no event of one."""
    recorder.both.want(sampled(tracking="transition"))
    assert recorder.kinds(tcp("S"), tcp("A"), tcp("FA")) == [NEW, FINISHED]


def test_without_tracking_no_datagram_is_the_first(recorder: EventRecorder) -> None:
    """Nothing is remembered by which it could be recognised."""
    recorder.both.want(sampled(tracking="none"))
    assert recorder.kinds(udp(), udp(), tcp("S"), tcp("A")) == [NEW]


def test_a_drop_has_its_reason_and_the_backend_that_was_chosen(recorder: EventRecorder) -> None:
    """Before a choice there is no backend; behind it there is one."""
    both = recorder.both
    denied = sampled(deny=(ip_network("10.77.0.128/25"),))
    both.want(denied)
    (event,) = recorder.of(tcp("S", ip4("10.77.0.200")))
    assert (event.reason, event.backend, event.decision) == (Reason.DENIED, None, None)
    both.link(LINK._replace(gateway4=None, gateway6=None))
    (event,) = recorder.of(tcp("S"))
    assert (event.reason, event.decision) == (Reason.NO_GATEWAY, Decision.SYN)
    assert event.backend is not None
    both.want(sampled(backend("b1", state="quarantine")))
    (event,) = recorder.of(tcp("S"))
    assert (event.reason, event.backend) == (Reason.NO_BACKEND, None)


def test_a_share_of_the_flows_is_sampled_completely(recorder: EventRecorder) -> None:
    """A flow is in or out by its hash: all of its events are written, or none."""
    recorder.both.want(sampled(share=HALF))
    lives = [
        recorder.kinds(*(tcp(f, sport=p) for f in ("S", "A", "FA"))) for p in range(40000, 40100)
    ]
    assert all(kinds in ([], [NEW, PROMOTED, FINISHED]) for kinds in lives)
    assert 30 < len([kinds for kinds in lives if kinds]) < 70


def test_a_vip_that_samples_nothing_causes_no_events(recorder: EventRecorder) -> None:
    """Not even of a flood."""
    recorder.both.want(sampled(share=0, insert_limit=1))
    assert recorder.of(tcp("S"), tcp("A"), *(tcp("A", sport=p) for p in range(41000, 41010))) == []


@pytest.mark.parametrize("share", [ALL, 1])
def test_a_flood_is_one_event_a_second(recorder: EventRecorder, share: int) -> None:
    """It is about the VIP: entries are refused, which counters count and one event announces."""
    recorder.both.want(sampled(share=share, insert_limit=1))
    kinds = recorder.kinds(*(tcp("A", sport=p) for p in range(41000, 41020)))
    assert kinds.count(EventKind.FLOOD) == 1
    assert set(kinds) <= {PROMOTED, EventKind.FLOOD}
    web4 = recorder.both.generation.vips["web4"].identity.id
    assert recorder.both.state.vip_counters[web4].untracked == 19


def test_the_rate_is_limited_and_loss_is_counted() -> None:
    """A burst of one second's worth is written; what is above it is counted as lost."""
    frame, packets = tcp("S", ip4("10.77.0.200")), 3 * RATE
    with Kernel() as kernel, events.Reader(kernel.maps["events"]) as reader:
        kernel.install(plan(sampled(deny=(ip_network("10.77.0.128/25"),)), NOTHING, 1000))
        begin = time.monotonic()
        bpf.run(kernel.program, frame, repeat=packets)  # dropped frames stay as they are
        seconds = time.monotonic() - begin
        found = reader.read()
        sent, lost = events.counts(kernel.maps["event_counts"])
    assert sent + lost == packets
    assert RATE <= sent <= RATE * (1.01 + seconds)
    assert len(found) == sent
    assert set(found["reason"].tolist()) == {Reason.DENIED}


def test_a_full_ring_buffer_loses_what_is_newest() -> None:
    """What is not read in time does not hold up a packet, and is counted."""
    record = layout.EVENT.itemsize + 8
    frame = tcp("S", ip4("10.77.0.200"))
    with Kernel() as kernel, events.Reader(kernel.maps["events"]) as reader:
        kernel.install(plan(sampled(deny=(ip_network("10.77.0.128/25"),)), NOTHING, 1000))
        room = bpf.map_info(kernel.maps["events"]).max_entries // record
        for _ in range(2):
            bpf.run(kernel.program, frame, repeat=RATE)
            time.sleep(1)  # the limit is refilled, the ring buffer is not
        sent, lost = events.counts(kernel.maps["event_counts"])
        assert sent + lost == 2 * RATE
        assert room - 1 <= sent <= room
        assert len(reader.read()) == sent
        kernel.run(frame)
        assert len(reader.read()) == 1


def test_the_descriptor_wakes_whoever_waits() -> None:
    """Events can be waited for beside other descriptors, and by `read` itself."""
    with Kernel() as kernel, events.Reader(kernel.maps["events"]) as reader:
        kernel.install(plan(sampled(), NOTHING, 1000))
        assert select.select([reader], [], [], 0)[0] == []
        assert len(reader.read(wait=0.01)) == 0
        kernel.run(tcp("S"))
        assert select.select([reader], [], [], 0)[0] == [reader]
        assert len(reader.read()) == 1
        late = threading.Timer(0.2, kernel.run, [tcp("A")])
        late.start()
        begin = time.monotonic()
        assert len(reader.read(wait=30)) == 1
        assert time.monotonic() - begin < 10
        late.join()


def test_what_is_no_ring_buffer_is_refused() -> None:
    """The error has the kernel's reason."""
    with Kernel() as kernel, pytest.raises(DataplaneError, match="ring buffer"):
        events.Reader(kernel.maps["backends"]).__enter__()


def test_a_program_without_events_has_nothing_of_them() -> None:
    """What no VIP samples costs no instruction, and has no map."""
    lean = replace(BUILD, features=ALL_FEATURES - {Feature.EVENTS})
    whole, without = compile_balancer(BUILD), compile_balancer(lean)
    assert "events" in whole.tables.values()
    assert not any(name.startswith("event") for name in without.tables.values())
    assert len(without.code) < len(whole.code)
