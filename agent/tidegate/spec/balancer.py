# SPDX-License-Identifier: Apache-2.0
"""What happens to a packet, from frame to verdict."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import Table
from tidegate.spec.encapsulate import encapsulate
from tidegate.spec.hash import flow_hash, rehash, slot_of
from tidegate.spec.packet import Packet, parse
from tidegate.spec.state import BackendEntry, Flow, FlowKey, Service, State, VipEntry

REHASHES: Final = 8
_UDP: Final = 17


class Verdict(IntEnum):
    """The return values of an XDP program (include/uapi/linux/bpf.h)."""

    DROP = 1
    PASS = 2
    TX = 3


@dataclass(frozen=True)
class Result:
    """What became of a frame; the last three are None unless a backend was chosen."""

    verdict: Verdict
    frame: bytes
    reason: Reason = Reason.NONE
    backend: int | None = None
    slot: int | None = None
    decision: Decision | None = None


@dataclass(frozen=True)
class _Choice:
    backend: int
    entry: BackendEntry
    decision: Decision
    generation: int
    track: bool
    is_rehashed: bool = False


def process(state: State, frame: bytes, interface: int) -> Result:
    """Decides on one frame and changes the state as the program would change its maps."""
    packet = parse(frame)
    if packet is None:
        return Result(Verdict.PASS, frame)
    service = Service(packet.destination, int.from_bytes(packet.port), packet.protocol)
    vip = state.vips.get(service)
    if vip is None:
        return Result(Verdict.PASS, frame)
    result = _forward(state, vip, packet, frame, interface)
    if result.reason:
        state.drops[result.reason] += 1
    return result


def _forward(state: State, vip: VipEntry, packet: Packet, frame: bytes, interface: int) -> Result:
    if packet.length > packet.available or packet.length < packet.headers:
        return Result(Verdict.DROP, frame, Reason.BAD_LENGTH)
    if packet.is_fragment:
        return Result(Verdict.DROP, frame, Reason.FRAGMENT)
    key = FlowKey(packet.source, vip.identity.id, packet.source_port, packet.port)
    value = flow_hash(
        state.settings.hash_keys,
        *(packet.source, packet.source_port, packet.port, vip.tag),
        is_v6=packet.is_v6,
    )
    choice = _select(state, vip, packet, key, value)
    if isinstance(choice, Reason):
        return Result(Verdict.DROP, frame, choice)
    out = encapsulate(state, packet, frame, choice.entry.address, value, interface)
    if isinstance(out, Reason):
        return Result(Verdict.DROP, frame, out)
    if choice.track:
        state.flows[key] = _flow(vip, choice)
    _count(state, vip, packet, choice)
    slot = _slot(state, vip, value)
    return Result(Verdict.TX, out, backend=choice.backend, slot=slot, decision=choice.decision)


def _slot(state: State, vip: VipEntry, value: int) -> int | None:
    table = state.tables.get(vip.pool)
    return None if table is None else slot_of(value, len(table.current))


def _usable(state: State, backend: int, incarnation: int | None) -> BackendEntry | None:
    """The entry of an id, if packets may go to this use of it (None: to any use)."""
    entry = state.backends.get(backend)
    if entry is None or entry.quarantined:
        return None
    return entry if incarnation in (None, entry.incarnation) else None


def _select(
    state: State, vip: VipEntry, packet: Packet, key: FlowKey, value: int
) -> _Choice | Reason:
    flow = state.flows.get(key)
    if flow and flow.vip_incarnation == vip.identity.incarnation:
        entry = _usable(state, flow.backend, flow.backend_incarnation)
        if entry:
            return _Choice(flow.backend, entry, Decision.TRACKED, flow.generation, track=False)

    table = state.tables.get(vip.pool)
    if table is None:
        return Reason.NO_TABLE
    slot = slot_of(value, len(table.current))
    in_window = bool(table.window[slot])
    track = not packet.is_syn and not packet.is_rst

    if in_window and packet.protocol != _UDP and not packet.is_syn:
        mark = state.syns.get(key)
        if mark and _is_of_this_window(mark, vip, table, slot):
            entry = _usable(state, mark.backend, mark.backend_incarnation)
            if entry:
                fresh = Decision.FRESH
                return _Choice(mark.backend, entry, fresh, table.generation, track)
        owner = int(table.fallback[slot])
        entry = _usable(state, owner, None)
        if entry:
            return _Choice(owner, entry, Decision.FALLBACK, table.generation, track)

    choice = _current(state, table, slot, value, _decision(packet), track=track)
    if packet.is_syn and in_window and isinstance(choice, _Choice):
        state.syns[key] = _flow(vip, choice)
    return choice


def _decision(packet: Packet) -> Decision:
    if packet.protocol == _UDP:
        return Decision.DATAGRAM
    return Decision.SYN if packet.is_syn else Decision.CURRENT


def _is_of_this_window(mark: Flow, vip: VipEntry, table: Table, slot: int) -> bool:
    opened = table.windows[table.window[slot]].opened
    return mark.vip_incarnation == vip.identity.incarnation and mark.generation >= opened


def _current(
    state: State, table: Table, slot: int, value: int, decision: Decision, *, track: bool
) -> _Choice | Reason:
    """The slot's current owner; if it is unusable, the owner of another slot of the same hash."""
    owner = int(table.current[slot])
    entry = _usable(state, owner, None)
    if entry:
        return _Choice(owner, entry, decision, table.generation, track)
    for _ in range(REHASHES):
        value = rehash(value)
        owner = int(table.current[slot_of(value, len(table.current))])
        entry = _usable(state, owner, None)
        if entry:
            return _Choice(owner, entry, decision, table.generation, track, is_rehashed=True)
    return Reason.NO_BACKEND


def _flow(vip: VipEntry, choice: _Choice) -> Flow:
    return Flow(
        choice.backend, choice.entry.incarnation, vip.identity.incarnation, choice.generation
    )


def _count(state: State, vip: VipEntry, packet: Packet, choice: _Choice) -> None:
    id_ = vip.identity.id
    state.vip_packets[id_] += 1
    state.vip_bytes[id_] += packet.length
    state.decisions[id_, choice.decision] += 1
    state.rehashed[id_] += choice.is_rehashed
    state.backend_packets[choice.backend] += 1
    state.backend_bytes[choice.backend] += packet.length
