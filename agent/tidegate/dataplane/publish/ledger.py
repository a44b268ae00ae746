# SPDX-License-Identifier: Apache-2.0
"""The ledger: what the ids in the other maps stand for, in pinned maps that no packet reads.

With it an agent that restarts knows every name, id, incarnation and document in force without
asking etcd, and a crash cannot separate names and tables: both live as long as the pins.

There are two maps. The wide one has VIPs, which may have a hundred source routes, pools, which may
have a check, and the meta record; the other has backends, of which there may be many more. A VIP's
record names the pools of its source routes by id, as a hundred names would not fit; pools are
recorded before their VIPs.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Final, NamedTuple

from tidegate.dataplane.publish.ledger_records import (
    BackendRecord,
    FreedRecord,
    Kind,
    MetaRecord,
    Place,
    PoolRecord,
    Record,
    VipRecord,
)
from tidegate.model.address import packed_network, unpacked_network
from tidegate.model.generation import (
    NOTHING,
    Freed,
    FreedIds,
    Generation,
    Identity,
    Level,
    PlacedBackend,
    PlacedPool,
    PlacedVip,
)
from tidegate.model.grouped import ChangedValues, changed_items, changed_values
from tidegate.model.values import (
    Backend,
    BackendKey,
    Fitness,
    Pool,
    Quic,
    SourceRoute,
    SynLimit,
    Vip,
)
from tidegate.planner.effective import effect

__all__ = [
    "BackendRecord",
    "Contents",
    "FreedRecord",
    "Kind",
    "MetaRecord",
    "Place",
    "PoolRecord",
    "Record",
    "Records",
    "VipRecord",
    "contents",
    "following",
    "of_backends",
    "records",
]

_NO_RECORDS: Final[Mapping[Place, Record]] = {}


class Records(NamedTuple):
    """The ledger's records for a generation, without the meta record.

    Attributes:
        all: every one.
        changed: those that an earlier generation has not, or has otherwise.
        gone: places of those that the earlier one has besides.
    """

    all: Mapping[Place, Record]
    changed: Mapping[Place, Record]
    gone: tuple[Place, ...] = ()


def records(generation: Generation) -> Mapping[Place, Record]:
    """Return the ledger's records when this generation is in force, without the meta record."""
    return following(generation).all


def following(
    generation: Generation, last: Generation = NOTHING, known: Mapping[Place, Record] = _NO_RECORDS
) -> Records:
    """Return the records of a generation, and how they differ from those of an earlier one.

    Args:
        generation: what is in force.
        last: another generation.
        known: its records, which are reused where the two are equal.
    """
    pool_ids = {name: placed.identity.id for name, placed in generation.pools.items()}
    has_same_pools = pool_ids == {name: p.identity.id for name, p in last.pools.items()}
    had_vips: Mapping[str, PlacedVip] = last.vips
    vips = changed_values(had_vips, generation.vips)
    if not has_same_pools:  # a VIP's record names its pools by their ids
        vips = ChangedValues(list(had_vips.values()), list(generation.vips.values()))
    pools = changed_values(last.pools, generation.pools)
    backends = [
        changed_values(last.by_pool.group(name), generation.by_pool.group(name))
        for name in generation.by_pool.differing(last.by_pool)
    ]
    fresh: dict[Place, Record] = {
        Place(Kind.VIP, p.identity.id): _vip_record(p, pool_ids) for p in vips.after
    }
    fresh |= {Place(Kind.POOL, p.identity.id): _pool_record(p) for p in pools.after}
    fresh |= of_backends(placed for each in backends for placed in each.after)
    left = {Place(Kind.VIP, p.identity.id) for p in vips.before}
    left |= {Place(Kind.POOL, p.identity.id) for p in pools.before}
    left |= {Place(Kind.BACKEND, p.identity.id) for each in backends for p in each.before}
    was, now = _freed(last), _freed(generation)
    for kind in [kind for kind in now if now[kind] is not was[kind]]:
        freed = changed_items(was[kind], now[kind])
        left |= {Place(kind, id_) for id_ in freed.before}
        fresh |= {Place(kind, id_): _freed_record(rest) for id_, rest in freed.after.items()}
    changed = {place: record for place, record in fresh.items() if known.get(place) != record}
    gone = left - fresh.keys()
    result = {**known, **changed}
    for place in gone:
        result.pop(place, None)
    return Records(result, changed, tuple(sorted(gone)))


def _freed(generation: Generation) -> dict[Kind, Mapping[int, Freed]]:
    freed = generation.freed
    return {Kind.VIP: freed.vips, Kind.POOL: freed.pools, Kind.BACKEND: freed.backends}


def _freed_record(rest: Freed) -> FreedRecord:
    if rest.endpoint is None:
        return FreedRecord(rest.incarnation, rest.at)
    network, port, protocol = rest.endpoint
    return FreedRecord(rest.incarnation, rest.at, (str(network), port, protocol))


def _freed_id(record: FreedRecord) -> Freed:
    if record.endpoint is None:
        return Freed(record.incarnation, record.at)
    network, port, protocol = record.endpoint
    return Freed(record.incarnation, record.at, (ip_network(network), port, protocol))


def _pool_record(placed: PlacedPool) -> PoolRecord:
    pool = placed.pool
    return PoolRecord(
        incarnation=placed.identity.incarnation,
        name=pool.name,
        deregistration_delay=pool.deregistration_delay,
        transition_window=pool.transition_window,
        encapsulation=pool.encapsulation,
        gue_port=pool.gue_port,
        mtu=pool.mtu,
        slow_start=pool.slow_start,
        slow_start_steps=pool.slow_start_steps,
        max_removed_percent=pool.max_removed_percent,
        health=pool.health,
        levels=tuple((each.until, each.serving) for each in placed.levels),
    )


def _vip_record(placed: PlacedVip, pool_ids: Mapping[str, int]) -> VipRecord:
    vip = placed.vip
    routes = ((packed_network(r.network), pool_ids[r.pool]) for r in vip.source_routes)
    return VipRecord(
        incarnation=placed.identity.incarnation,
        name=vip.name,
        address=str(vip.network),
        port=vip.port,
        protocol=vip.protocol,
        pool=vip.pool,
        tracking=vip.tracking,
        hash=vip.hash,
        udp_idle_timeout=vip.udp_idle_timeout,
        insert_limit=vip.insert_limit,
        syn_limit=vip.syn_limit,
        mss_clamp=vip.mss_clamp,
        echo=vip.echo,
        quic=vip.quic,
        source_routes=tuple(routes),
        deny=tuple(packed_network(network) for network in vip.deny),
        flow_sampling=vip.flow_sampling,
        sorry_pool=vip.sorry_pool,
        unserved=tuple(pool_ids[pool] for pool in placed.unserved),
        tcp_idle_timeout=vip.tcp_idle_timeout,
        moved=placed.moved,
        unserved_packets=vip.unserved,
    )


def _vip(record: VipRecord, pool_names: Mapping[int, str]) -> Vip | None:
    """Return the VIP of a record; None if a pool that it names by id is not there."""
    named = {pool for _, pool in record.source_routes}.union(record.unserved)
    if not named <= pool_names.keys():
        return None
    routes = (
        SourceRoute(unpacked_network(network), pool_names[pool])
        for network, pool in record.source_routes
    )
    return Vip(
        name=record.name,
        network=ip_network(record.address),
        port=record.port,
        protocol=record.protocol,
        pool=record.pool,
        tracking=record.tracking,
        hash=record.hash,
        udp_idle_timeout=record.udp_idle_timeout,
        tcp_idle_timeout=record.tcp_idle_timeout,
        unserved=record.unserved_packets,
        insert_limit=record.insert_limit,
        syn_limit=SynLimit(*record.syn_limit) if record.syn_limit else None,
        mss_clamp=record.mss_clamp,
        echo=record.echo,
        quic=Quic(*record.quic) if record.quic else None,
        source_routes=tuple(routes),
        deny=tuple(unpacked_network(network) for network in record.deny),
        flow_sampling=record.flow_sampling,
        sorry_pool=record.sorry_pool,
    )


def of_backends(placed: Iterable[PlacedBackend]) -> dict[Place, Record]:
    """Return the records of these backends alone."""
    return {Place(Kind.BACKEND, one.identity.id): _backend_record(one) for one in placed}


def _backend_record(placed: PlacedBackend) -> BackendRecord:
    backend = placed.backend
    return BackendRecord(
        incarnation=placed.identity.incarnation,
        pool=backend.pool,
        name=backend.name,
        address=str(backend.address),
        weight=backend.weight,
        state=backend.state,
        retire_at=placed.retire_at,
        quic_server_id=backend.quic_server_id,
        starts_at=backend.starts_at,
        drain_deadline=backend.drain_deadline,
        effective_weight=placed.weight,
        reachable=placed.reachable,
        is_out=placed.fitness.is_out,
        joins_at=placed.fitness.joins_at,
    )


def _placed_backend(id_: int, record: BackendRecord) -> PlacedBackend:
    backend = Backend(
        pool=record.pool,
        name=record.name,
        address=ip_address(record.address),
        weight=record.weight,
        state=record.state,
        quic_server_id=record.quic_server_id,
        starts_at=record.starts_at,
        drain_deadline=record.drain_deadline,
    )
    by_state = effect(backend, None, 0)  # for a record from before slow start
    weight, reachable = record.effective_weight, record.reachable
    return PlacedBackend(
        identity=Identity(id_, record.incarnation),
        backend=backend,
        weight=by_state.weight if weight is None else weight,
        reachable=by_state.reachable if reachable is None else reachable,
        retire_at=record.retire_at,
        fitness=Fitness(record.is_out, record.joins_at),
    )


def _placed_pool(id_: int, record: PoolRecord) -> tuple[Identity, Pool]:
    pool = Pool(
        name=record.name,
        deregistration_delay=record.deregistration_delay,
        transition_window=record.transition_window,
        encapsulation=record.encapsulation,
        gue_port=record.gue_port,
        mtu=record.mtu,
        slow_start=record.slow_start,
        slow_start_steps=record.slow_start_steps,
        max_removed_percent=record.max_removed_percent,
        health=record.health,
    )
    return Identity(id_, record.incarnation), pool


class Contents(NamedTuple):
    """The ledger as values."""

    meta: MetaRecord
    vips: Mapping[str, PlacedVip]
    pools: Mapping[str, tuple[Identity, Pool]]
    levels: Mapping[str, tuple[Level, ...]]
    backends: Mapping[BackendKey, PlacedBackend]
    freed: FreedIds


def contents(found: Mapping[Place, Record]) -> Contents:
    """Return the values that a ledger's records stand for.

    A crash between two records may leave one name in both: the new one of the first, and the second
    has another by now or is gone. The second is called by its address or endpoint, by which the
    next plan knows it.
    """
    meta = MetaRecord(0, 0)
    vips: dict[str, PlacedVip] = {}
    pools: dict[str, tuple[Identity, Pool]] = {}
    levels: dict[str, tuple[Level, ...]] = {}
    backends: dict[BackendKey, PlacedBackend] = {}
    freed: dict[Kind, dict[int, Freed]] = {kind: {} for kind in Kind}
    pool_names = {p.id: r.name for p, r in found.items() if isinstance(r, PoolRecord)}
    for place, record in found.items():
        match record:
            case MetaRecord():
                meta = record
            case VipRecord():
                vip = _vip(record, pool_names)
                if vip is not None:
                    unserved = sorted(pool_names[id_] for id_ in record.unserved)
                    identity = Identity(place.id, record.incarnation)
                    vip = _apart(vip, vips)
                    vips[vip.name] = PlacedVip(identity, vip, tuple(unserved), record.moved)
            case PoolRecord():
                pools[record.name] = _placed_pool(place.id, record)
                levels[record.name] = tuple(Level(*each) for each in record.levels)
            case BackendRecord():
                placed = _placed_backend(place.id, record)
                if placed.backend.key in backends:
                    backend = replace(placed.backend, name=f"@{placed.backend.address}")
                    placed = replace(placed, backend=backend)
                backends[placed.backend.key] = placed
            case FreedRecord():
                freed[place.kind][place.id] = _freed_id(record)
    resting = FreedIds(freed[Kind.VIP], freed[Kind.POOL], freed[Kind.BACKEND])
    return Contents(meta, vips, pools, levels, backends, resting)


def _apart(vip: Vip, others: Container[str]) -> Vip:
    """Return a VIP under a name that no other has."""
    if vip.name not in others:
        return vip
    return replace(vip, name=f"@{vip.network}:{vip.port}/{vip.protocol}")
