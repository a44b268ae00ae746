# SPDX-License-Identifier: Apache-2.0
"""The maps of the data plane as plain values."""

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import NamedTuple
from zlib import crc32

from tidegate.model.address import packed, unpacked
from tidegate.model.decision import Decision, EventKind, Reason
from tidegate.model.document_types import UNSERVED, Unserved
from tidegate.model.generation import Generation, Identity, PlacedVip, Table
from tidegate.model.tag import PROTOCOLS, flow_salt, vip_tag
from tidegate.model.ticks import Clock
from tidegate.model.values import Address, BackendKey, Network, Vip
from tidegate.spec.answer import RATE, Answer
from tidegate.spec.limit import Bucket, SharedLimits
from tidegate.spec.lines import Lines

ICMP, ICMPV6 = 1, 58
_STAND_INS = 16


class Service(NamedTuple):
    """Key of the VIP map: 16 bytes of address (IPv4 mapped), port (0: any), protocol number."""

    address: bytes
    port: int
    protocol: int


class Route(NamedTuple):
    """Where packets of a client network go: to a pool, or nowhere (None)."""

    network: Network
    pool: int | None


class VipEntry(NamedTuple):
    """Value of the VIP map: a service.

    Attributes:
        identity: id and incarnation.
        pool: id of its pool.
        tag: stands for the service in the flow hash.
        salt: makes keys of flows differ from those of other uses of the id.
        vip: its options; of an address entry, defaults.
        echo: whether pings are answered; address entries alone have it.
        routes: client networks, the longest first.
        unserved: of an address: what becomes of packets that no VIP takes.
        moved: its flows may have entries of other pools.
        is_address: it is of an address and not of a service.
        idle: seconds of silence after which a UDP flow is forgotten; 0: never.
        tcp_idle: the same, after which a SYN begins a new TCP flow.
    """

    identity: Identity
    pool: int
    tag: int
    salt: int
    vip: Vip
    echo: bool = False
    routes: tuple[Route, ...] = ()
    moved: bool = False
    unserved: Unserved = "drop"
    idle: int = 0
    tcp_idle: int = 0
    is_address: bool = False


class BackendEntry(NamedTuple):
    """Value of the backend map; `gue_port` 0 is IP in IP, `mtu` 0 that of the link.

    Attributes:
        draining: it takes no new flows.
        pool: id of its pool; 0 if that is gone.
    """

    incarnation: int
    address: Address
    quarantined: bool
    draining: bool = False
    gue_port: int = 0
    mtu: int = 0
    pool: int = 0


class Event(NamedTuple):
    """An event of a flow, without its time; ports are 2 bytes in network order.

    Attributes:
        vip: id and incarnation.
        backend: id and incarnation; None if none was chosen, and then so is the decision.
        generation: of the table that chose the backend; 0 if none did.
    """

    kind: EventKind
    vip: Identity
    backend: Identity | None
    slot: int
    generation: int
    decision: Decision | None
    reason: Reason
    protocol: int
    source: bytes
    destination: bytes
    source_port: bytes
    port: bytes


class Link(NamedTuple):
    """An interface; a gateway without MAC is None.

    Attributes:
        others: addresses beside its own whose frames are ours, five at most; None: any.
    """

    mac: bytes
    gateway4: bytes | None
    gateway6: bytes | None
    mtu: int
    others: tuple[bytes, ...] | None = ()

    def takes(self, destination: bytes) -> bool:
        """Return whether a frame is ours: none to a group is, or to everybody."""
        if destination[0] & 1:
            return False
        return self.others is None or destination in (self.mac, *self.others)


@dataclass
class VipCounters:
    """The counters of a VIP."""

    packets: int = 0
    bytes: int = 0
    decisions: Counter[Decision] = field(default_factory=Counter)
    rehashed_quarantined: int = 0
    rehashed_gone: int = 0
    tracked: int = 0
    untracked: int = 0
    answered: int = 0
    drops: Counter[Reason] = field(default_factory=Counter)


@dataclass
class AddressCounters:
    """The counters of a VIP's address: of what is for none of its flows."""

    answered: int = 0
    drops: Counter[Reason] = field(default_factory=Counter)


@dataclass(frozen=True)
class Settings:
    """The build constants of a program.

    Attributes:
        flow_pairs: pairs of lines of the connection table; likewise of SYN marks and fragments.
        mark_rate: marks of SYNs per second of one source prefix, above which it has no share in
            the second half of a pair.
    """

    hash_keys: tuple[int, int]
    source4: IPv4Network
    source6: IPv6Network
    clock: Clock
    flow_pairs: int
    syn_pairs: int
    fragment_pairs: int
    mark_rate: int


@dataclass
class State:
    """All maps. Flows, SYNs, fragments, limits and counters change with packets.

    Attributes:
        own: addresses of this host's interfaces, which networks leave out.
        syns: marks of new flows whose handshake is not complete.
        stand_ins: by pool, serving backends for slots whose owner is out.
        events: as written to the ring buffer, oldest first.
        events_lost: events above the limit. Here the ring buffer is never full.
        counted: of each VIP id, the last VIP that had it, so that one that comes back goes on.
    """

    settings: Settings
    links: Mapping[int, Link]
    vips: Mapping[Service, VipEntry] = field(default_factory=dict)
    networks: tuple[tuple[Network, Service, VipEntry], ...] = ()
    own: AbstractSet[bytes] = frozenset()
    tables: Mapping[int, Table] = field(default_factory=dict)
    backends: Mapping[int, BackendEntry] = field(default_factory=dict)
    quic_servers: Mapping[tuple[int, bytes], tuple[int, int]] = field(default_factory=dict)
    stand_ins: Mapping[int, Sequence[int]] = field(default_factory=dict)
    syn_limits: SharedLimits = field(default_factory=SharedLimits)
    mark_limits: SharedLimits = field(default_factory=SharedLimits)
    insert_limits: dict[int, Bucket] = field(default_factory=dict)
    error_limits: dict[int, Bucket] = field(default_factory=dict)
    answers: dict[Answer, Bucket] = field(default_factory=dict)
    vip_counters: dict[int, VipCounters] = field(default_factory=dict)
    address_counters: dict[int, AddressCounters] = field(default_factory=dict)
    backend_packets: Counter[int] = field(default_factory=Counter)
    backend_bytes: Counter[int] = field(default_factory=Counter)
    verdicts: Counter[int] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)
    events_lost: int = 0
    event_limit: Bucket = field(default_factory=Bucket)
    flood_limits: dict[int, Bucket] = field(default_factory=dict)
    counted: dict[int, Identity] = field(default_factory=dict)
    flows: Lines = field(init=False)
    syns: Lines = field(init=False)
    fragments: Lines = field(init=False)

    def __post_init__(self) -> None:
        self.flows = Lines(self.settings.flow_pairs)
        self.syns = Lines(self.settings.syn_pairs)
        self.fragments = Lines(self.settings.fragment_pairs)

    def counters(self, vip: int) -> VipCounters:
        """Return the counters of a VIP id."""
        return self.vip_counters.setdefault(vip, VipCounters())

    def ends(self, entry: VipEntry) -> VipCounters | AddressCounters:
        """Return where it is counted that a packet for a service or an address ended here."""
        id_ = entry.identity.id
        if not entry.is_address:
            return self.counters(id_)
        return self.address_counters.setdefault(id_, AddressCounters())

    def may_answer(self, kind: Answer, now: int) -> bool:
        """Take one from the limit on answers of a kind."""
        bucket = self.answers.setdefault(kind, Bucket())
        return bucket.take(RATE, now, self.settings.clock)

    def service(self, vip: int) -> VipEntry | None:
        """Return the entry of a VIP id, not that of its address."""
        entries = (*self.vips.items(), *((service, entry) for _, service, entry in self.networks))
        there = (e for s, e in entries if e.identity.id == vip and s.protocol not in (ICMP, ICMPV6))
        return next(there, None)

    def install(self, generation: Generation) -> None:
        """Put a generation in force; keep flows, SYNs, and the counters of ids that keep owners."""
        self._forget_counters(generation)
        pools = {name: placed.identity.id for name, placed in generation.pools.items()}
        exact: dict[Service, VipEntry] = {}
        networks: list[tuple[Network, Service, VipEntry]] = []
        for placed in sorted(generation.vips.values(), key=lambda placed: placed.identity.id):
            vip = placed.vip
            pool, routes = pools[placed.serving(vip.pool)], _routes(placed, pools)
            entry = VipEntry(
                placed.identity,
                pool,
                vip_tag(vip),
                flow_salt(placed.identity),
                vip,
                routes=routes,
                moved=placed.moved,
                idle=vip.udp_idle_timeout,
                tcp_idle=vip.tcp_idle_timeout,
            )
            if vip.is_network:
                networks.append((vip.network, _service(vip), entry))
            else:
                exact[_service(vip)] = entry
        self.vips = exact | _address_entries(exact)
        networks += _network_entries(networks)
        self.networks = tuple(sorted(networks, key=lambda item: -item[0].prefixlen))
        self.tables = {placed.identity.id: placed.table for placed in generation.pools.values()}
        self._install_backends(generation, pools)

    def _forget_counters(self, generation: Generation) -> None:
        """Drop the counters of ids that get a new owner."""
        backends = {(id_, entry.incarnation) for id_, entry in self.backends.items()}
        for placed in generation.vips.values():
            if self.counted.get(placed.identity.id, placed.identity) != placed.identity:
                self.vip_counters.pop(placed.identity.id, None)
                self.address_counters.pop(placed.identity.id, None)
            self.counted[placed.identity.id] = placed.identity
        for backend in generation.backends.values():
            if backend.identity not in backends:
                self.backend_packets.pop(backend.identity.id, None)
                self.backend_bytes.pop(backend.identity.id, None)

    def _install_backends(self, generation: Generation, pools: Mapping[str, int]) -> None:
        backends: dict[int, BackendEntry] = {}
        for placed in generation.backends.values():
            backend, identity = placed.backend, placed.identity
            before = self.backends.get(identity.id)
            gue_port, mtu = (before.gue_port, before.mtu) if before else (0, 0)
            if backend.pool in generation.pools:  # else it drains, and is reached as before
                pool = generation.pools[backend.pool].pool
                gue_port = pool.gue_port if pool.encapsulation == "gue" else 0
                mtu = pool.mtu or 0
            backends[identity.id] = BackendEntry(
                identity.incarnation,
                backend.address,
                not placed.reachable,
                placed.reachable and placed.weight == 0,
                gue_port,
                mtu,
                pools.get(backend.pool, 0),
            )
        self.backends = backends
        self.stand_ins = {id_: _stand_ins(generation, name) for name, id_ in pools.items()}
        self.quic_servers = {
            (id_, server_id): placed.identity
            for name, id_ in pools.items()
            for server_id, placed in generation.server_ids(name).items()
        }


def _stand_ins(generation: Generation, pool: str) -> list[int]:
    """Return ids of a pool's backends that take new flows, at most 16, drawn by their names."""
    there = generation.by_pool.group(pool)
    names = [k.name for k, placed in there.items() if placed.reachable and placed.weight > 0]
    first = sorted(names, key=lambda name: (crc32(name.encode()), name))[:_STAND_INS]
    return [there[BackendKey(pool, name)].identity.id for name in first]


def _service(vip: Vip) -> Service:
    return Service(packed(vip.address), vip.port, PROTOCOLS[vip.protocol])


def _routes(placed: PlacedVip, pools: Mapping[str, int]) -> tuple[Route, ...]:
    vip = placed.vip
    routes = [
        Route(route.network, pools[placed.serving(route.pool)]) for route in vip.source_routes
    ]
    routes += [Route(network, None) for network in vip.deny]
    return tuple(sorted(routes, key=lambda route: -route.network.prefixlen))


def _address_entry(entries: list[VipEntry], network: Network) -> VipEntry:
    """Return the entry of an address for ICMP and later fragments: that of the lowest id."""
    first = min(entries, key=lambda entry: entry.identity.id)
    plain = Vip("", network, 0, "tcp", "")
    echo = any(entry.vip.echo for entry in entries)
    strictest = min((entry.vip.unserved for entry in entries), key=UNSERVED.index)
    return VipEntry(
        first.identity,
        first.pool,
        first.tag,
        first.salt,
        plain,
        echo,
        unserved=strictest,
        is_address=True,
    )


def _address_entries(exact: Mapping[Service, VipEntry]) -> dict[Service, VipEntry]:
    by_address: dict[bytes, list[VipEntry]] = {}
    for service, entry in exact.items():
        by_address.setdefault(service.address, []).append(entry)
    return {
        Service(address, 0, _icmp(unpacked(address))): _address_entry(
            entries, entries[0].vip.network
        )
        for address, entries in by_address.items()
    }


def _network_entries(
    networks: list[tuple[Network, Service, VipEntry]],
) -> list[tuple[Network, Service, VipEntry]]:
    by_network: dict[Network, list[VipEntry]] = {}
    for network, _, entry in networks:
        by_network.setdefault(network, []).append(entry)
    return [
        (
            network,
            Service(packed(network.network_address), 0, _icmp(ip_address(network.network_address))),
            _address_entry(entries, network),
        )
        for network, entries in by_network.items()
    ]


def _icmp(address: Address) -> int:
    return ICMP if address.version == 4 else ICMPV6  # noqa: PLR2004
