# SPDX-License-Identifier: Apache-2.0
"""Which backend a packet goes to."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import Table
from tidegate.spec.flow import HANDSHAKE_BYTES, follow, keeps_backend
from tidegate.spec.hash import prefix_hash, rehash, slot_of
from tidegate.spec.limit import Bucket
from tidegate.spec.lines import CONTESTED, ENDING, SPOKE, Entry, mark_state, state_of
from tidegate.spec.packet import Kind, Packet
from tidegate.spec.state import BackendEntry, State, VipEntry

REHASHES: Final = 16
_STAND_INS: Final = 16
_STAND_IN_SHIFT: Final = 60
MARK_PREFIX4: Final = 24
MARK_PREFIX6: Final = 48
"""Bits of a source prefix whose marks have a limit: the most that one site has (RFC 6177)."""
_SPARE_PLACES: Final = 6
"""Places of a pair that have to be left for one more mark of a prefix above its limit."""


@dataclass(frozen=True)
class Choice:
    """The backend that was chosen, and how.

    Attributes:
        generation: of the table that chose it; 0 if none did.
        rehashed: what the slot's owner was, if it was passed over: `quarantined` or `gone`.
        vip: id of the VIP that a later fragment is of; 0: the packet names its VIP itself.
        refused: why the packet is dropped all the same.
        continues: it follows the mark of its SYN.
        had_entry: the connection table named a backend for this flow, usable or not.
    """

    backend: int
    entry: BackendEntry
    decision: Decision
    generation: int
    track: bool = False
    rehashed: str = ""
    had_entry: bool = False
    continues: bool = False
    vip: int = 0
    refused: Reason = Reason.NONE


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


def select(state: State, about: Subject, pool: int) -> Choice | Reason:
    """Choose by connection table, marks and Maglev table, in this order."""
    packet, tracking = about.packet, about.vip.vip.tracking
    is_tcp = packet.kind is Kind.TCP
    table = state.tables.get(pool)
    slot = 0 if table is None else slot_of(about.hash_, len(table.current))
    looks = is_tcp and table is not None and _may_be_elsewhere(state, about, table, slot)
    found = mark = None
    if tracking != "none":
        is_read = looks or not is_tcp or (tracking == "full" and not packet.is_syn)
        found = _entry(state, about) if is_read else None
        mark = _followed_mark(state, about, found, looks=looks)
    known = _known(state, about, found, mark, pool)
    if known:
        return known
    if table is None:
        return Reason.NO_TABLE

    in_window = tracking != "none" and bool(table.window[slot])
    choice: Choice | Reason | None = None
    if in_window and is_tcp and not packet.is_syn:
        choice = _fallback(state, table, slot)
    if choice is None:
        choice = _current(state, table, slot, about, pool)
    if isinstance(choice, Reason) or tracking == "none":
        return choice
    choice = replace(choice, had_entry=found is not None)
    if packet.is_syn:
        is_to_find = in_window or choice.had_entry or bool(choice.rehashed)
        return _mark(state, about, choice, pool) if is_to_find else choice
    # A flow whose entry or mark names a backend that is out has another one for good.
    is_moved = choice.had_entry or mark is not None or bool(choice.rehashed)
    is_tracked = tracking == "full" or not is_tcp or in_window or is_moved
    return replace(choice, track=is_tracked and _is_worth(packet), continues=mark is not None)


def _may_be_elsewhere(state: State, about: Subject, table: Table, slot: int) -> bool:
    """Return whether an entry or a mark may name another backend than the slot's owner.

    In a slot that has changed, for a VIP that had other pools, and where the owner is out and
    others stand in for it.
    """
    is_out = usable(state, int(table.current[slot]), None) is None
    return bool(table.tracked[slot]) or about.vip.moved or is_out


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


def keep_alive(state: State, about: Subject) -> None:
    """Note in the flow's entry, if it has one, that a packet went another way than by it.

    What comes later on these ports and has no server id still follows the entry.
    """
    if about.vip.vip.tracking != "none" and _entry(state, about) is not None:
        tick = state.settings.clock.tick(about.now)
        follow(state.flows, about.key, about.vip.identity.id, about.packet, tick)


def _followed_mark(
    state: State, about: Subject, found: Entry | None, *, looks: bool
) -> Entry | None:
    """Return the mark of the SYN that this packet follows, or is again.

    A mark counts where there is no entry, or for one that it contests. A packet follows if its
    sequence number is in the window that a SYN-ACK, whose window is never scaled, gave the client.
    An error does not have the client's number.
    """
    packet = about.packet
    is_contested = found is not None and found.flags & CONTESTED and not packet.is_error
    if not is_contested and (found is not None or not looks):
        return None
    place = state.syns.find(about.key)
    if place is None:
        return None
    mark = state.syns.entries[place]
    ahead = (packet.sequence - mark.sequence) & 0xFFFFFFFF
    follows = ahead == 0 if packet.is_syn else packet.is_error or 0 < ahead <= HANDSHAKE_BYTES + 1
    return mark if follows else None


def _known(
    state: State, about: Subject, found: Entry | None, mark: Entry | None, pool: int
) -> Choice | None:
    """Choose the backend of the mark that the packet follows, or else of the flow's entry."""
    packet, clock = about.packet, state.settings.clock
    if mark is not None:
        entry = usable(state, mark.backend, mark.incarnation)
        decision = Decision.SYN if packet.is_syn else Decision.FRESH
        is_tracked = not packet.is_syn and _is_worth(packet)
        if entry is None:
            return None
        return Choice(mark.backend, entry, decision, 0, track=is_tracked, continues=True)
    if found is None:
        return None
    entry = usable(state, found.backend, found.incarnation)
    if entry is None:
        return None
    if packet.is_syn and not keeps_backend(found, about.vip, entry, pool, about.now, clock):
        return None
    if not packet.is_syn and not packet.is_error:
        follow(state.flows, about.key, about.vip.identity.id, packet, clock.tick(about.now))
    return Choice(found.backend, entry, Decision.TRACKED, 0, had_entry=True)


def _fallback(state: State, table: Table, slot: int) -> Choice | None:
    """Choose the owner from before the slot's window, for a flow from before it."""
    owner = int(table.fallback[slot])
    entry = usable(state, owner, None)
    return Choice(owner, entry, Decision.FALLBACK, table.generation) if entry else None


def _decision(packet: Packet) -> Decision:
    if packet.kind is not Kind.TCP:
        return Decision.DATAGRAM
    return Decision.SYN if packet.is_syn else Decision.CURRENT


def _current(state: State, table: Table, slot: int, about: Subject, pool: int) -> Choice | Reason:
    """Choose the slot's current owner or, if that is unusable, the owner of a re-hashed slot.

    If these are all unusable, one of the pool's stand-ins: they serve, if anybody does.
    """
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
    for owner in _in_turn(state.stand_ins.get(pool, ()), hash_):
        entry = usable(state, owner, None)
        if entry and entry.pool == pool:
            return Choice(owner, entry, decision, table.generation, rehashed=passed_over)
    return Reason.NO_BACKEND


def _in_turn(ids: Sequence[int], hash_: int) -> Sequence[int]:
    """Return ids from the one on that a hash draws; fewer than 16 are listed again and again."""
    listed = [*itertools.islice(itertools.cycle(ids), _STAND_INS)]
    first = hash_ >> _STAND_IN_SHIFT
    return [*listed[first:], *listed[:first]]


def _mark(state: State, about: Subject, choice: Choice, pool: int) -> Choice:
    """Leave a mark of a new flow, by which what follows its SYN, or the SYN again, is found.

    Where there is no room for it, the flow goes to the owner from before the window: what follows
    its SYN goes there without a mark. Where that cannot be, the mark takes a place by lot. A source
    prefix whose marks come too fast has room in pairs of which less than half is taken, and draws
    no lot: its handshakes may then be split, and nobody else's.
    """
    syns, moment = state.syns, state.settings.clock.moment(about.now)
    place = syns.find(about.key)
    if place is None:
        is_within = _mark_is_within_limit(state, about)
        place = syns.mark_room(about.key, moment, least=1 if is_within else _SPARE_PLACES)
        if place is None:
            back = None if choice.had_entry else _step_back(state, about, choice, pool)
            if back is not None or not is_within:
                return back or choice
            place = syns.mark_lot(about.key)
    mark = mark_state(about.packet.sequence, moment)
    syns.put(place, about.key, choice.entry.incarnation, choice.backend, mark)
    if choice.had_entry:
        _contest(state, about)
    return choice


def _mark_is_within_limit(state: State, about: Subject) -> bool:
    """Take a mark from the share of the client's prefix; return False if it is used up."""
    settings, prefix = state.settings, (MARK_PREFIX4, MARK_PREFIX6)
    hash_ = prefix_hash(settings.hash_keys, about.packet, prefix, 0)
    return state.mark_limits.take(hash_, settings.mark_rate, about.now, settings.clock)


def _step_back(state: State, about: Subject, choice: Choice, pool: int) -> Choice | None:
    """Choose the owner from before the slot's window, if it takes new flows."""
    table = state.tables[pool]
    slot = slot_of(about.hash_, len(table.current))
    before = _fallback(state, table, slot) if table.window[slot] else None
    if before is None or before.entry.draining or before.entry.pool != pool:
        return None
    return replace(choice, backend=before.backend, entry=before.entry, rehashed="")


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
            place = state.flows.room(key, tick, id_)
    if place is None:
        counters.untracked += 1
        return False
    flags = (ENDING if about.packet.is_fin else 0) | (SPOKE if choice.continues else 0)
    entry_state = state_of(tick, id_, flags)
    state.flows.put(place, key, choice.entry.incarnation, choice.backend, entry_state)
    counters.tracked += 1
    return True
