# SPDX-License-Identifier: Apache-2.0
"""Events of sampled flows: which of them a packet causes, and which of these are written."""

from typing import Final

from tidegate.model.constants import TABLE_SIZE
from tidegate.model.decision import Decision, EventKind, Reason
from tidegate.model.generation import Identity
from tidegate.spec.hash import slot_of
from tidegate.spec.limit import Bucket
from tidegate.spec.select import Choice, Subject
from tidegate.spec.state import Event, State

RATE: Final = 10_000
"""Events per second and CPU, floods aside."""
_FLOOD_RATE: Final = 1
"""Per second, VIP and CPU."""
_SAMPLED: Final = 0xFFFF
"""The bits of the flow hash that are compared with the VIP's share."""


def report_forwarded(
    state: State, about: Subject, choice: Choice, *, is_entered: bool | None
) -> None:
    """Report a packet that was forwarded.

    Args:
        state: gets the events.
        about: the packet.
        choice: where it went.
        is_entered: whether its entry was written (False: refused by the limit); None: it needed
            none.
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
            _report(state, about, _event(about, kind, Reason.NONE, choice))


def report_dropped(
    state: State, about: Subject, reason: Reason, choice: Choice | None = None
) -> None:
    """Report a packet of a flow that was dropped, and where it would have gone."""
    _report(state, about, _event(about, EventKind.DROPPED, reason, choice))


def _event(about: Subject, kind: EventKind, reason: Reason, choice: Choice | None) -> Event:
    packet, backend, decision = about.packet, None, None
    if choice:
        backend = Identity(choice.backend, choice.entry.incarnation)
        decision = Decision.ERROR if packet.is_error else choice.decision
    return Event(
        kind=kind,
        vip=about.vip.identity,
        backend=backend,
        slot=slot_of(about.hash_, TABLE_SIZE),
        generation=choice.generation if choice else 0,
        decision=decision,
        reason=reason,
        protocol=packet.protocol,
        source=packet.source,
        destination=packet.destination,
        source_port=packet.source_port,
        port=packet.port,
    )


def _report(state: State, about: Subject, event: Event) -> None:
    """Write an event if its flow is sampled: by its hash, so all of its events are, or none."""
    share = about.vip.vip.flow_sampling
    if event.kind is EventKind.FLOOD:  # an event of the VIP, whatever the flow
        limit = state.flood_limits.setdefault(event.vip.id, Bucket())
        if share and limit.take(_FLOOD_RATE, about.now, state.settings.clock):
            state.events.append(event)
    elif about.hash_ & _SAMPLED < share:
        if state.event_limit.take(RATE, about.now, state.settings.clock):
            state.events.append(event)
        else:
            state.events_lost += 1
