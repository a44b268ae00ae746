# SPDX-License-Identifier: Apache-2.0
"""Which backend had a flow: the specification's own decisions, on a generation made again.

What only the connection table knew is not in the journal. So there are two answers while the flow's
slot is in transition: the owner for flows that began in the window, and the one for those from
before. Outside a window there is one, unless the flow was tracked earlier and is still alive.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from tidegate.agent.journal.replay import Rebuilt, Standing, rebuild
from tidegate.model.address import packed
from tidegate.model.decision import Decision, Reason
from tidegate.model.document_types import Protocol
from tidegate.model.generation import Generation
from tidegate.model.tag import PROTOCOLS
from tidegate.model.values import Address, BackendKey
from tidegate.spec import Settings, State
from tidegate.spec.balancer import NOON, find_vip
from tidegate.spec.client import pool_for
from tidegate.spec.hash import flow_hash, slot_of, tracking_key
from tidegate.spec.packet import Kind, Packet
from tidegate.spec.select import Choice, Subject, select
from tidegate.spec.state import VipEntry

History = Callable[[], Iterable[Standing]]
_TRANSPORT: Final = {"tcp": (Kind.TCP, 20), "udp": (Kind.UDP, 8)}


class Flow(NamedTuple):
    """A client's flow to a VIP."""

    protocol: Protocol
    source: Address
    source_port: int
    destination: Address
    port: int


@dataclass(frozen=True)
class Owner:
    """Who had a flow.

    Attributes:
        at: since when the generation was in force.
        pool: None if the client is denied; then there is no slot either.
        current: owner of flows that began then; None if nobody could take one.
        fallback: owner of flows from before the slot's window; None if it is not in transition.
        is_in_transition: whether the two may differ.
        is_certain: False if a window of before the journal's beginning may be open, which would
            have another fallback.
    """

    at: str
    generation: int
    vip: str
    pool: str | None = None
    slot: int | None = None
    current: BackendKey | None = None
    fallback: BackendKey | None = None
    is_in_transition: bool = False
    is_certain: bool = True


def owner(
    history: History, settings: Settings, hash_seed: str | None, flow: Flow, when: int
) -> Owner | None:
    """Return who had a flow under the last generation of a history; None if it was for no VIP.

    Args:
        history: gives the standings anew each time.
        settings: what the program was built with; the hash keys count.
        hash_seed: of the keyspace then.
        flow: the flow.
        when: wall-clock second that is asked for.
    """
    names = rebuild(history, hash_seed, ())
    if names is None:
        return None
    packet = _packet(flow)
    state = State(settings, {})
    state.install(names.generation)
    vip = find_vip(state, packet)
    if vip is None:
        return None
    id_ = pool_for(vip, packet)
    if id_ is None:
        return Owner(names.at, names.generation.number, vip.vip.name)
    pools = {placed.identity.id: name for name, placed in names.generation.pools.items()}
    whole = rebuild(history, hash_seed, {pools[id_]})
    assert whole is not None  # noqa: S101 - for the type checker: it is the same history
    state.install(whole.generation)
    return _decide(state, vip, packet, id_, whole, pools[id_], when)


def _decide(
    state: State, vip: VipEntry, packet: Packet, id_: int, rebuilt: Rebuilt, pool: str, when: int
) -> Owner:
    generation, table = rebuilt.generation, rebuilt.generation.pools[pool].table
    keys = state.settings.hash_keys
    value = flow_hash(keys, packet, vip)
    about = Subject(packet, vip, value, tracking_key(keys, packet, vip, value), NOON)
    slot = slot_of(value, len(table.current))
    # Selected first, since the SYN of a slot in transition leaves a mark.
    old = select(state, about, id_)
    is_tcp = packet.kind is Kind.TCP
    new = select(state, replace(about, packet=replace(packet, is_syn=is_tcp)), id_)
    falls_back = isinstance(old, Choice) and old.decision is Decision.FALLBACK
    return Owner(
        at=rebuilt.at,
        generation=generation.number,
        vip=vip.vip.name,
        pool=pool,
        slot=slot,
        current=_name(new, generation),
        fallback=_name(old, generation) if falls_back else None,
        is_in_transition=falls_back,
        is_certain=vip.vip.tracking == "none"
        or not is_tcp
        or int(rebuilt.unknown_until[pool][slot]) <= when,
    )


def _name(choice: Choice | Reason, generation: Generation) -> BackendKey | None:
    if isinstance(choice, Reason):
        return None
    ids = {placed.identity.id: key for key, placed in generation.backends.items()}
    return ids[choice.backend]


def _packet(flow: Flow) -> Packet:
    kind, headers = _TRANSPORT[flow.protocol]
    is_v6 = flow.source.version == 6  # noqa: PLR2004 - IP's own number
    l4 = 40 if is_v6 else 20
    return Packet(
        source=packed(flow.source),
        destination=packed(flow.destination),
        protocol=PROTOCOLS[flow.protocol],
        l3=14,
        l4=l4,
        length=l4 + headers,
        tos=0,
        is_v6=is_v6,
        is_cut=False,
        fragment_id=bytes(4),
        kind=kind,
        headers=headers,
        source_port=flow.source_port.to_bytes(2),
        port=flow.port.to_bytes(2),
    )
