# SPDX-License-Identifier: Apache-2.0
"""Which backend a packet goes to."""

from dataclasses import dataclass, replace
from typing import Final

from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import Table
from tidegate.spec.hash import destination_digest, rehash, slot_of
from tidegate.spec.limit import SECOND, Bucket
from tidegate.spec.packet import Kind, Packet
from tidegate.spec.state import BackendEntry, Flow, FlowKey, State, VipEntry

REHASHES: Final = 8


@dataclass(frozen=True)
class Choice:
    """The backend that was chosen, and how."""

    backend: int
    entry: BackendEntry
    decision: Decision
    generation: int
    track: bool = False
    rehashed: str = ""
    """What the slot's owner was, if it was passed over: `quarantined` or `gone`."""
    had_entry: bool = False
    """The connection table named a backend, usable or not."""


def flow_key(packet: Packet, entry: VipEntry) -> FlowKey:
    """Return the key of a packet's flow in the connection table and the SYN table."""
    digest = destination_digest(packet.destination) if entry.vip.is_network else 0
    return FlowKey(packet.source, entry.identity.id | digest, packet.source_port, packet.port)


def usable(state: State, backend: int, incarnation: int | None) -> BackendEntry | None:
    """Return the entry of an id if packets may go to this incarnation (None: to any)."""
    entry = state.backends.get(backend)
    if entry is None or entry.quarantined:
        return None
    return entry if incarnation in (None, entry.incarnation) else None


def select(
    state: State, vip: VipEntry, packet: Packet, key: FlowKey, pool: int, hash_: int, now: int
) -> Choice | Reason:
    """Choose by connection table, SYN table and Maglev table, in this order."""
    tracking = vip.vip.tracking
    is_tcp = packet.kind is Kind.TCP
    flow = None
    if tracking == "full" or (tracking == "transition" and not is_tcp):
        flow = _entry(state, vip, packet, key, now)
        tracked = _tracked(state, flow, packet, key, now)
        if tracked:
            return tracked

    table = state.tables.get(pool)
    if table is None:
        return Reason.NO_TABLE
    slot = slot_of(hash_, len(table.current))
    if tracking == "transition" and is_tcp and table.tracked[slot]:
        flow = _entry(state, vip, packet, key, now)
        tracked = _tracked(state, flow, packet, key, now)
        if tracked:
            return tracked

    in_window = tracking != "none" and bool(table.window[slot])
    track = (
        tracking != "none"
        and (tracking == "full" or not is_tcp or in_window)
        and not (packet.is_syn or packet.is_rst or packet.is_error)
    )
    if is_tcp and not packet.is_syn and in_window:
        before = _from_before(state, vip, key, table, slot)
        if before:
            return replace(before, track=track, had_entry=flow is not None)

    choice = _current(state, table, slot, hash_, _decision(packet))
    if isinstance(choice, Reason):
        return choice
    if packet.is_syn and in_window:
        state.syns[key] = flow_of(vip, choice)
    return replace(choice, track=track, had_entry=flow is not None)


def _entry(state: State, vip: VipEntry, packet: Packet, key: FlowKey, now: int) -> Flow | None:
    """Return the flow's entry if it is of this VIP's incarnation and, in UDP, not idle too long."""
    flow = state.flows.get(key)
    if flow is None or flow.vip_incarnation != vip.identity.incarnation:
        return None
    idle = vip.vip.udp_idle_timeout * SECOND
    if packet.kind is Kind.UDP and idle and now - state.seen[key] > idle:
        return None
    return flow


def _tracked(
    state: State, flow: Flow | None, packet: Packet, key: FlowKey, now: int
) -> Choice | None:
    if flow is None:
        return None
    entry = usable(state, flow.backend, flow.backend_incarnation)
    if entry is None:
        return None
    if packet.kind is Kind.UDP and not packet.is_error:
        state.seen[key] = now
    return Choice(flow.backend, entry, Decision.TRACKED, flow.generation, had_entry=True)


def _from_before(
    state: State, vip: VipEntry, key: FlowKey, table: Table, slot: int
) -> Choice | None:
    """Choose for an untracked flow in a slot in transition: where its SYN went, or the fallback."""
    mark = state.syns.get(key)
    opened = table.windows[table.window[slot]].opened
    if mark and mark.vip_incarnation == vip.identity.incarnation and mark.generation >= opened:
        entry = usable(state, mark.backend, mark.backend_incarnation)
        if entry:
            return Choice(mark.backend, entry, Decision.FRESH, table.generation)
    owner = int(table.fallback[slot])
    entry = usable(state, owner, None)
    return Choice(owner, entry, Decision.FALLBACK, table.generation) if entry else None


def _decision(packet: Packet) -> Decision:
    if packet.kind is not Kind.TCP:
        return Decision.DATAGRAM
    return Decision.SYN if packet.is_syn else Decision.CURRENT


def _current(
    state: State, table: Table, slot: int, hash_: int, decision: Decision
) -> Choice | Reason:
    """Choose the slot's current owner or, if that is unusable, the owner of a re-hashed slot."""
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


def flow_of(vip: VipEntry, choice: Choice) -> Flow:
    """Return the entry that records a choice."""
    return Flow(
        choice.backend, choice.entry.incarnation, vip.identity.incarnation, choice.generation
    )


def track(state: State, vip: VipEntry, key: FlowKey, choice: Choice, now: int) -> bool:
    """Write an entry unless new ones come faster than the VIP allows; return whether it did."""
    id_ = vip.identity.id
    counters = state.counters(id_)
    bucket = state.insert_limits.setdefault(id_, Bucket())
    if not bucket.take(vip.vip.insert_limit, now):
        counters.untracked += 1
        return False
    state.flows[key] = flow_of(vip, choice)
    state.seen[key] = now
    counters.tracked += 1
    return True
