# SPDX-License-Identifier: Apache-2.0
"""What happens to a packet, from frame to verdict."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from tidegate.model.address import unpacked
from tidegate.model.decision import Decision, Reason
from tidegate.spec import answer, events, icmp_error
from tidegate.spec.answer import Answer
from tidegate.spec.clamp import clamp_mss
from tidegate.spec.client import is_denied, pool_for, syn_is_within_limit
from tidegate.spec.encapsulate import encapsulate, tunnel_to
from tidegate.spec.hash import flow_hash, fragment_key, slot_of, tracking_key
from tidegate.spec.limit import Bucket
from tidegate.spec.lines import state_of
from tidegate.spec.packet import ETHERNET, Kind, Packet, is_mapped, parse
from tidegate.spec.quic import server_id
from tidegate.spec.select import Choice, Subject, keep_alive, select, track, usable
from tidegate.spec.state import ICMP, ICMPV6, Service, State, VipEntry

NOON: Final = 1 << 40
"""A time, jiffies, for callers to whom the time does not matter."""
_REASSEMBLY_SECONDS: Final = 60


class Verdict(IntEnum):
    """The return values of an XDP program (include/uapi/linux/bpf.h)."""

    DROP = 1
    PASS = 2
    TX = 3


@dataclass(frozen=True)
class Result:
    """What became of a frame.

    Attributes:
        reason: why it was dropped; NONE if it was not.
        vip: id of the VIP that it was for; None if it was for none, or for an address alone.
        backend: id of the backend that it went to.
        decision: what named the backend; None for what was not forwarded.
    """

    verdict: Verdict
    frame: bytes
    reason: Reason = Reason.NONE
    vip: int | None = None
    backend: int | None = None
    slot: int | None = None
    generation: int | None = None
    decision: Decision | None = None


def process(state: State, frame: bytes, interface: int, now: int = NOON) -> Result:
    """Decide on one frame and change the state as the program would change its maps.

    Args:
        state: the maps.
        frame: from the Ethernet header on.
        interface: index of the interface that it came in on.
        now: the kernel's clock, jiffies.
    """
    if len(frame) < ETHERNET:
        return Result(Verdict.PASS, frame)  # no driver shows a program less than that
    result = _handle(state, frame, interface, now)
    state.verdicts[result.verdict] += 1
    return result


def _handle(state: State, frame: bytes, interface: int, now: int) -> Result:
    link, packet = state.links.get(interface), parse(frame)
    if packet is None or (link is not None and not link.takes(frame[:6])):
        return Result(Verdict.PASS, frame)
    vip = find_vip(state, packet)
    if vip is None:
        return _unserved(state, packet, frame, now)
    if packet.is_cut or packet.length < packet.l4 + packet.headers:
        return _drop_of_flow(state, _subject(state, vip, packet, now), frame, Reason.BAD_LENGTH)
    if packet.is_v6 and is_mapped(packet.source):
        return _drop_of_flow(state, _subject(state, vip, packet, now), frame, Reason.BAD_SOURCE)
    if packet.kind is Kind.ICMP:
        return _handle_icmp(state, vip, packet, frame, interface, now)
    return _forward(state, vip, packet, frame, interface, now)


def _handle_icmp(
    state: State, vip: VipEntry, packet: Packet, frame: bytes, interface: int, now: int
) -> Result:
    if answer.is_echo_request(packet, frame):
        return _answer_ping(state, vip, packet, frame, now)
    if not icmp_error.is_error(packet, frame):
        return Result(Verdict.PASS, frame)  # neighbour discovery, above all
    return _forward_error(state, vip, packet, frame, interface, now)


def _unserved(state: State, packet: Packet, frame: bytes, now: int) -> Result:
    """Decide on a packet that no VIP takes; one for a VIP's address is ours to answer for.

    It would circle where the host forwards: the route to the address leads back to us. What is for
    an address of this host's own is the host's all the same.
    """
    address = find_address(state, packet)
    if address is None or address.unserved == "pass" or packet.destination in state.own:
        return Result(Verdict.PASS, frame)
    if address.unserved == "reject" and answer.may_be_answered(packet):
        rejection = answer.rejection(packet, frame)
        if rejection and state.may_answer(Answer.REJECTION, now):
            return _answered(state, address, rejection)
    return _drop(state, address, frame, Reason.UNSERVED)


def _forward_error(
    state: State, vip: VipEntry, packet: Packet, frame: bytes, interface: int, now: int
) -> Result:
    if icmp_error.is_too_long(packet):
        return _drop(state, vip, frame, Reason.BAD_LENGTH)
    if icmp_error.mtu_is_absurd(packet, frame):
        return _drop(state, vip, frame, Reason.ICMP_MTU)
    quoted = icmp_error.quoted_flow(packet, frame)
    owner = find_vip(state, quoted) if quoted else None
    if quoted is None or owner is None:
        return _drop(state, vip, frame, Reason.ICMP_UNKNOWN)
    limit = state.error_limits.setdefault(owner.identity.id, Bucket())
    if not limit.take(icmp_error.RATE, now, state.settings.clock):
        return _drop_of_flow(state, _subject(state, owner, quoted, now), frame, Reason.ICMP_LIMIT)
    return _forward(state, owner, quoted, frame, interface, now)


def _subject(state: State, vip: VipEntry, packet: Packet, now: int) -> Subject:
    keys = state.settings.hash_keys
    hash_ = flow_hash(keys, packet, vip)
    return Subject(packet, vip, hash_, tracking_key(keys, packet, vip, hash_), now)


def find_vip(state: State, packet: Packet) -> VipEntry | None:
    """Find the VIP of a packet: address and port, any port, then networks, the longest first.

    ICMP and later fragments have no ports: they belong to the address. Networks leave out the
    addresses of this host's own interfaces.
    """
    if packet.kind is Kind.UNREADABLE:
        return None
    if packet.kind in (Kind.ICMP, Kind.LATER_FRAGMENT):
        return find_address(state, packet)
    return _find(state, packet, int.from_bytes(packet.port), packet.protocol)


def find_address(state: State, packet: Packet) -> VipEntry | None:
    """Find the entry of a VIP's address: every one has an entry of protocol ICMP and port 0."""
    return _find(state, packet, 0, ICMPV6 if packet.is_v6 else ICMP)


def _find(state: State, packet: Packet, port: int, protocol: int) -> VipEntry | None:
    ports = (port, 0) if port else (0,)
    for each in ports:
        entry = state.vips.get(Service(packet.destination, each, protocol))
        if entry:
            return entry
    if packet.destination in state.own:
        return None
    address = unpacked(packet.destination)
    for each in ports:
        for network, service, entry in state.networks:
            same_family = network.version == address.version
            if (service.port, service.protocol) == (each, protocol) and (
                same_family and address in network
            ):
                return entry
    return None


def _drop(state: State, vip: VipEntry, frame: bytes, reason: Reason) -> Result:
    state.ends(vip).drops[reason] += 1
    return Result(Verdict.DROP, frame, reason, _service_id(vip))


def _drop_of_flow(
    state: State,
    about: Subject,
    frame: bytes,
    reason: Reason,
    choice: Choice | None = None,
) -> Result:
    events.report_dropped(state, about, reason, choice)
    if choice is not None and choice.vip:  # a later fragment: found by its address alone
        state.counters(choice.vip).drops[reason] += 1
        return Result(Verdict.DROP, frame, reason, choice.vip)
    return _drop(state, about.vip, frame, reason)


def _answered(state: State, vip: VipEntry, frame: bytes) -> Result:
    state.ends(vip).answered += 1
    return Result(Verdict.TX, frame, vip=_service_id(vip))


def _service_id(vip: VipEntry) -> int | None:
    return None if vip.is_address else vip.identity.id


def _answer_ping(state: State, vip: VipEntry, packet: Packet, frame: bytes, now: int) -> Result:
    if not vip.echo:
        return Result(Verdict.PASS, frame)  # the host may want to answer itself
    if packet.is_first_fragment:
        return _drop(state, vip, frame, Reason.FRAGMENT)
    if not answer.may_be_answered(packet):
        return _drop(state, vip, frame, Reason.BAD_SOURCE)
    if not state.may_answer(Answer.PING, now):
        return _drop(state, vip, frame, Reason.ECHO_LIMIT)
    return _answered(state, vip, answer.echo_reply(packet, frame))


def _forward(
    state: State, vip: VipEntry, packet: Packet, frame: bytes, interface: int, now: int
) -> Result:
    about = _subject(state, vip, packet, now)
    choice = _decide(state, about, frame)
    if isinstance(choice, Reason) or choice.refused:
        return _refuse(state, about, frame, choice)
    tunnel = tunnel_to(choice.entry, state.links.get(interface))
    if isinstance(tunnel, Reason):
        return _drop_of_flow(state, about, frame, tunnel, choice)
    if packet.length > tunnel.link.mtu and not packet.is_error:
        # No sender of it would learn anything from an answer but to send ever smaller ones.
        return _drop_of_flow(state, about, frame, Reason.MERGED, choice)
    if packet.length > tunnel.limit:
        error = _too_big(state, packet, frame, tunnel.limit, now)
        if error is None:
            return _drop_of_flow(state, about, frame, Reason.TOO_BIG, choice)
        return _answered(state, vip, error)
    if packet.is_syn and vip.vip.mss_clamp:
        at = packet.l3 + packet.l4
        frame = frame[:at] + clamp_mss(frame[at:], vip.vip.mss_clamp)
    out = encapsulate(state.settings, packet, frame, tunnel, about.hash_)
    if packet.is_first_fragment and not packet.is_error:
        _remember_fragment(state, about, choice)
    is_entered = track(state, about, choice) if choice.track else None
    events.report_forwarded(state, about, choice, is_entered=is_entered)
    return _count(state, about, choice, out)


def _refuse(state: State, about: Subject, frame: bytes, choice: Choice | Reason) -> Result:
    """Drop what has no backend, or may not go there.

    A later fragment has no port: where the address passes what no VIP takes, its first fragment may
    have passed too, so it does.
    """
    if not isinstance(choice, Reason):
        return _drop_of_flow(state, about, frame, choice.refused, choice)
    if choice is Reason.FRAGMENT and about.vip.unserved == "pass":
        return Result(Verdict.PASS, frame)
    return _drop_of_flow(state, about, frame, choice)


def _too_big(state: State, packet: Packet, frame: bytes, limit: int, now: int) -> bytes | None:
    """Return the answer to a packet that does not fit; None if none is due or there were too many.

    Only who asked for no fragments is told (RFC 792); to make them is beyond XDP.
    """
    is_due = not packet.allows_fragments and answer.may_be_answered(packet)
    if not is_due or not state.may_answer(Answer.TOO_BIG, now):
        return None
    return answer.too_big(packet, frame, limit)


def _decide(state: State, about: Subject, frame: bytes) -> Choice | Reason:
    packet, vip, now = about.packet, about.vip, about.now
    if packet.kind is Kind.LATER_FRAGMENT:
        return _follow_fragment(state, packet, now)
    pool = pool_for(vip, packet)
    if pool is None or (packet.is_error and is_denied(vip, packet.sender)):
        return Reason.DENIED
    if packet.is_syn and not syn_is_within_limit(state, vip, packet, now):
        return Reason.SYN_LIMIT
    if packet.kind is Kind.UDP and vip.vip.quic and not packet.is_error:
        id_ = server_id(frame[packet.l3 + packet.l4 + 8 :], vip.vip.quic)
        backend, incarnation = state.quic_servers.get((pool, id_ or b""), (0, 0))
        entry = usable(state, backend, incarnation & 0xFF)
        if id_ and entry:
            keep_alive(state, about)
            return Choice(backend, entry, Decision.QUIC, 0)
    return select(state, about, pool)


def _remember_fragment(state: State, about: Subject, choice: Choice) -> None:
    """Note where a first fragment went, for the later ones."""
    fragments, tick = state.fragments, state.settings.clock.tick(about.now)
    key = fragment_key(state.settings.hash_keys, about.packet)
    place = fragments.find(key)
    if place is None:
        place = fragments.room(key, tick, about.vip.identity.id)
    if place is not None:
        entry_state = state_of(tick, about.vip.identity.id, 0)
        fragments.put(place, key, choice.entry.incarnation, choice.backend, entry_state)


def _follow_fragment(state: State, packet: Packet, now: int) -> Choice | Reason:
    """Choose the backend of the first fragment, within the time that reassembly has."""
    clock = state.settings.clock
    place = state.fragments.find(fragment_key(state.settings.hash_keys, packet))
    if place is None:
        return Reason.FRAGMENT
    first = state.fragments.entries[place]
    entry = usable(state, first.backend, first.incarnation)
    if entry is None or clock.age(first.tick, now) > clock.limit(_REASSEMBLY_SECONDS):
        return Reason.FRAGMENT
    vip = state.service(first.vip)
    is_refused = vip is not None and is_denied(vip, packet.source)
    refused = Reason.DENIED if is_refused else Reason.NONE
    return Choice(first.backend, entry, Decision.FRAGMENT, 0, vip=first.vip, refused=refused)


def _count(state: State, about: Subject, choice: Choice, out: bytes) -> Result:
    packet, vip = about.packet, about.vip
    decision = Decision.ERROR if packet.is_error else choice.decision
    vip_id = choice.vip or vip.identity.id
    counters = state.counters(vip_id)
    counters.packets += 1
    counters.bytes += packet.length
    counters.decisions[decision] += 1
    counters.rehashed_quarantined += choice.rehashed == "quarantined"
    counters.rehashed_gone += choice.rehashed == "gone"
    state.backend_packets[choice.backend] += 1
    state.backend_bytes[choice.backend] += packet.length
    table = state.tables.get(vip.pool)
    return Result(
        Verdict.TX,
        out,
        vip=vip_id,
        backend=choice.backend,
        slot=slot_of(about.hash_, len(table.current)) if table else None,
        generation=choice.generation or None,
        decision=decision,
    )
