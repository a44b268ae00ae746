# SPDX-License-Identifier: Apache-2.0
"""Which backend a packet goes to."""

from dataclasses import dataclass, replace
from typing import Final

from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import Table
from tidegate.spec.flow import HANDSHAKE_BYTES, follow, keeps_backend
from tidegate.spec.hash import rehash, slot_of
from tidegate.spec.limit import Bucket
from tidegate.spec.lines import CONTESTED, ENDING, Entry, state_of
from tidegate.spec.packet import Kind, Packet
from tidegate.spec.state import BackendEntry, State, VipEntry

REHASHES: Final = 8


@dataclass(frozen=True)
class Choice:
    """The backend that was chosen, and how.

    Attributes:
        generation: of the table that chose it; 0 if none did.
        rehashed: what the slot's owner was, if it was passed over: `quarantined` or `gone`.
        had_entry: the connection table named a backend for this flow, usable or not.
    """

    backend: int
    entry: BackendEntry
    decision: Decision
    generation: int
    track: bool = False
    rehashed: str = ""
    had_entry: bool = False


@dataclass(frozen=True)
class Subject:
    """A packet, and what follows from it alone.

    Attributes:
        hash_: of its flow, which the slot follows from.
        key: of its flow in the connection table and among the marks.
        now: jiffies.
    """

    packet: Packet
    vip: VipEntry
    hash_: int
    key: int
    now: int


def usable(state: State, backend: int, incarnation: int | None) -> BackendEntry | None:
    """Return the entry of an id if packets may go to this incarnation (None: to any).

    Of the incarnation the lower 8 bits count: an id is used again only after an hour, so it takes
    ten days until a use has those of one before.
    """
    entry = state.backends.get(backend)
    if entry is None or entry.quarantined:
        return None
    return entry if incarnation is None or incarnation == entry.incarnation & 0xFF else None


def select(  # noqa: PLR0911 - one for each source of a choice
    state: State, about: Subject, pool: int
) -> Choice | Reason:
    """Choose by connection table, marks and Maglev table, in this order."""
    packet, vip = about.packet, about.vip
    tracking, is_tcp = vip.vip.tracking, packet.kind is Kind.TCP
    is_read_first = tracking == "full" or (tracking == "transition" and not is_tcp)
    found = None
    if is_read_first and not packet.is_syn:
        found = _entry(state, about)
        tracked = _tracked(state, about, found, pool)
        if tracked:
            return tracked

    table = state.tables.get(pool)
    if table is None:
        return Reason.NO_TABLE
    slot = slot_of(about.hash_, len(table.current))
    # Elsewhere an entry could only name the owner of the slot, which is where the packet goes.
    is_flagged = tracking != "none" and is_tcp and (bool(table.tracked[slot]) or vip.moved)
    if is_flagged and (packet.is_syn or not is_read_first):
        found = _entry(state, about)
        tracked = _tracked(state, about, found, pool)
        if tracked:
            return tracked

    in_window = tracking != "none" and bool(table.window[slot])
    if is_flagged and not packet.is_syn:
        before = _from_before(state, about, table, slot, in_window=in_window)
        if before:
            had_entry = found is not None and before.decision is not Decision.FRESH
            return replace(before, track=_is_worth(packet), had_entry=had_entry)
    choice = _current(state, table, slot, about)
    if isinstance(choice, Reason):
        return choice
    choice = replace(choice, had_entry=found is not None)
    if packet.is_syn:
        is_to_find = in_window or choice.had_entry or bool(choice.rehashed)
        return _mark(state, about, choice) if is_to_find and tracking != "none" else choice
    is_tracked = tracking == "full" or not is_tcp or in_window or bool(choice.rehashed)
    return replace(choice, track=is_tracked and tracking != "none" and _is_worth(packet))


def _is_worth(packet: Packet) -> bool:
    """Return whether a packet is worth an entry: a reset ends its flow, an error is not of it."""
    return not packet.is_rst and not packet.is_error


def _entry(state: State, about: Subject) -> Entry | None:
    """Return the flow's entry, unless it is of UDP and idle for too long."""
    place = state.flows.find(about.key)
    if place is None:
        return None
    entry, idle, clock = state.flows.entries[place], about.vip.idle, state.settings.clock
    is_udp = about.packet.kind is Kind.UDP
    if is_udp and idle and clock.age(entry.tick, about.now) > clock.limit(idle):
        return None
    return entry


def _tracked(state: State, about: Subject, found: Entry | None, pool: int) -> Choice | None:
    """Choose the backend of the flow's entry, or of the mark that is to take the entry's place."""
    if found is None:
        return None
    packet, clock = about.packet, state.settings.clock
    entry = usable(state, found.backend, found.incarnation)
    if packet.is_syn:
        is_kept = entry is not None and keeps_backend(
            found, about.vip, entry, pool, about.now, clock
        )
        if entry is None or not is_kept:
            return None
        return Choice(found.backend, entry, Decision.TRACKED, 0, had_entry=True)
    if found.flags & CONTESTED and not packet.is_error:
        fresh = _marked(state, about)
        if fresh:
            return replace(fresh, track=_is_worth(packet))
    if entry is None:
        return None
    if not packet.is_error:
        follow(state.flows, about.key, about.vip.identity.id, packet, clock.tick(about.now))
    return Choice(found.backend, entry, Decision.TRACKED, 0, had_entry=True)


def _mark_of(state: State, about: Subject) -> Entry | None:
    place = state.syns.find(about.key)
    return None if place is None else state.syns.entries[place]


def _marked(state: State, about: Subject) -> Choice | None:
    """Choose the backend of the SYN that this packet follows.

    It does if its sequence number is in the window that a SYN-ACK, whose window is never scaled,
    gave the client. An error does not have the client's number.
    """
    mark = _mark_of(state, about)
    if mark is None:
        return None
    ahead = (about.packet.sequence - mark.state - 1) & 0xFFFFFFFF
    if not about.packet.is_error and ahead > HANDSHAKE_BYTES:
        return None
    entry = usable(state, mark.backend, mark.incarnation)
    return Choice(mark.backend, entry, Decision.FRESH, 0) if entry else None


def _from_before(
    state: State, about: Subject, table: Table, slot: int, *, in_window: bool
) -> Choice | None:
    """Choose for an untracked flow in a slot that changed: where its SYN went, or the fallback."""
    fresh = _marked(state, about)
    if fresh or not in_window:
        return fresh
    owner = int(table.fallback[slot])
    entry = usable(state, owner, None)
    return Choice(owner, entry, Decision.FALLBACK, table.generation) if entry else None


def _decision(packet: Packet) -> Decision:
    if packet.kind is not Kind.TCP:
        return Decision.DATAGRAM
    return Decision.SYN if packet.is_syn else Decision.CURRENT


def _current(state: State, table: Table, slot: int, about: Subject) -> Choice | Reason:
    """Choose the slot's current owner or, if that is unusable, the owner of a re-hashed slot."""
    decision, hash_ = _decision(about.packet), about.hash_
    owner = int(table.current[slot])
    entry = usable(state, owner, None)
    if entry:
        return Choice(owner, entry, decision, table.generation)
    passed_over = "quarantined" if owner in state.backends else "gone"
    for _ in range(REHASHES):
        hash_ = rehash(hash_)
        owner = int(table.current[slot_of(hash_, len(table.current))])
        entry = usable(state, owner, None)
        if entry:
            return Choice(owner, entry, decision, table.generation, rehashed=passed_over)
    return Reason.NO_BACKEND


def _mark(state: State, about: Subject, choice: Choice) -> Choice:
    """Leave a mark of a new flow, so that the packets that follow its SYN find its backend.

    A SYN that is sent again goes where it went before, also when the slot has moved since.
    """
    syns, sequence = state.syns, about.packet.sequence
    place = syns.find(about.key)
    if place is not None and syns.entries[place].state == sequence:
        mark = syns.entries[place]
        entry = usable(state, mark.backend, mark.incarnation)
        if entry:
            choice = replace(choice, backend=mark.backend, entry=entry, rehashed="")
    if place is None:
        place = syns.mark_place(about.key)
    syns.put(place, about.key, choice.entry.incarnation, choice.backend, sequence)
    if choice.had_entry:
        _contest(state, about)
    return choice


def _contest(state: State, about: Subject) -> None:
    place = state.flows.find(about.key)
    if place is not None:
        entry = state.flows.entries[place]
        state.flows.entries[place] = entry._replace(state=entry.state | CONTESTED)


def track(state: State, about: Subject, choice: Choice) -> bool:
    """Write an entry, and return whether there was room and new ones do not come too fast."""
    id_, key, clock = about.vip.identity.id, about.key, state.settings.clock
    counters = state.counters(id_)
    bucket = state.insert_limits.setdefault(id_, Bucket())
    tick = clock.tick(about.now)
    place = None
    if bucket.take(about.vip.vip.insert_limit, about.now, clock):
        place = state.flows.find(key)
        if place is None:
            place = state.flows.room(key, tick)
    if place is None:
        counters.untracked += 1
        return False
    entry_state = state_of(tick, id_, ENDING if about.packet.is_fin else 0)
    state.flows.put(place, key, choice.entry.incarnation, choice.backend, entry_state)
    counters.tracked += 1
    return True
