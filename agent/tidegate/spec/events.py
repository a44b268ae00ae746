# SPDX-License-Identifier: Apache-2.0
"""What is told of flows: which events a packet makes, and which of them are not told."""

from typing import Final, NamedTuple

from tidegate.model.constants import TABLE_SIZE
from tidegate.model.decision import Decision, EventKind, Reason
from tidegate.model.generation import Identity
from tidegate.spec.hash import slot_of
from tidegate.spec.limit import Bucket
from tidegate.spec.packet import Packet
from tidegate.spec.select import Choice
from tidegate.spec.state import Event, State, VipEntry

RATE: Final = 10_000
"""Events per second and CPU, floods aside."""
_FLOOD_RATE: Final = 1
"""Per second, VIP and CPU."""
_SAMPLED: Final = 0xFFFF
"""The bits of the flow hash that are held against the VIP's share."""


class Subject(NamedTuple):
    """What events are about: a packet, its VIP, its flow hash, and when (monotonic ns)."""

    packet: Packet
    vip: VipEntry
    hash: int
    now: int


def forwarded(state: State, about: Subject, choice: Choice, *, is_entered: bool | None) -> None:
    """Tells of a packet that was forwarded.

    `is_entered` says whether its entry was written, or the limit refused it; None: it needed none.
    """
    packet = about.packet
    if packet.is_error:
        return  # not a packet of its flow
    moved = choice.had_entry and choice.decision is not Decision.TRACKED
    first = choice.decision is Decision.DATAGRAM and choice.track and not moved
    happened = {
        EventKind.NEW: packet.is_syn or first,
        EventKind.MOVED: moved and not packet.is_syn,
        EventKind.PROMOTED: is_entered is True,
        EventKind.FINISHED: packet.is_fin,
        EventKind.RESET: packet.is_rst,
        EventKind.FLOOD: is_entered is False,
    }
    for kind, is_so in happened.items():
        if is_so:
            _tell(state, about, _event(about, kind, Reason.NONE, choice))


def dropped(state: State, about: Subject, reason: Reason, choice: Choice | None = None) -> None:
    """Tells of a packet of a flow that was dropped, and where it would have gone."""
    _tell(state, about, _event(about, EventKind.DROPPED, reason, choice))


def _event(about: Subject, kind: EventKind, reason: Reason, choice: Choice | None) -> Event:
    packet, backend, decision = about.packet, None, None
    if choice:
        backend = Identity(choice.backend, choice.entry.incarnation)
        decision = Decision.ERROR if packet.is_error else choice.decision
    return Event(
        kind=kind,
        vip=about.vip.identity,
        backend=backend,
        slot=slot_of(about.hash, TABLE_SIZE),
        generation=choice.generation if choice else 0,
        decision=decision,
        reason=reason,
        protocol=packet.protocol,
        source=packet.source,
        destination=packet.destination,
        source_port=packet.source_port,
        port=packet.port,
    )


def _tell(state: State, about: Subject, event: Event) -> None:
    """A flow is sampled by its hash, so that all of its events are told or none is."""
    share = about.vip.vip.flow_sampling
    if event.kind is EventKind.FLOOD:  # it is about the VIP, whatever the flow
        limit = state.flood_limits.setdefault(event.vip.id, Bucket())
        if share and limit.take(_FLOOD_RATE, about.now):
            state.events.append(event)
    elif about.hash & _SAMPLED < share:
        if state.event_limit.take(RATE, about.now):
            state.events.append(event)
        else:
            state.events_lost += 1
