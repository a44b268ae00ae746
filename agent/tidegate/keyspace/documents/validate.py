# SPDX-License-Identifier: Apache-2.0
"""Turn a snapshot into what the operator wants, and a list of everything that was refused.

A pure function of the snapshot and of what was last accepted: no I/O, no clock, no order of keys.
A refused document leaves its key's last accepted value in force; without one the key is absent.
The rules of one key are in `parse_cache`; those between documents are here:

* A VIP needs its pools, and a backend needs its pool. What is in force always refers to what is in
  force, so a pool that is deleted while a VIP still uses it stays as it was, and is refused.
* An address, port and protocol belong to one VIP. Accepted documents come first, the one that was
  written first (lowest mod revision, then name) before the others, so every host decides the same
  from the same keys. Values that are kept from before get what is left. Networks that overlap are
  no conflict: packets go to an address before a port before a network, the longest first.
* An address belongs to one backend of its pool, by the same rule, and so does a QUIC server id.
* Addresses that are not for documents to have on this host are refused (`host_rules`).
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from tidegate.keyspace.documents import capacity, loops
from tidegate.keyspace.documents.capacity import Claim, Places, Room
from tidegate.keyspace.documents.decode import shown
from tidegate.keyspace.documents.host_rules import (
    ANYWHERE,
    HostAddresses,
    backend_fault,
    vip_fault,
)
from tidegate.keyspace.documents.parse_cache import ParseCache, ParsedKey
from tidegate.keyspace.documents.rejections import Rejections
from tidegate.keyspace.paths import backend_key, pool_key, vip_key
from tidegate.model.values import (
    Address,
    Backend,
    BackendKey,
    Desired,
    Endpoint,
    Pool,
    Rejection,
    Snapshot,
    Stage,
    Vip,
)

_K = TypeVar("_K", str, BackendKey)
_V = TypeVar("_V", Vip, Pool, Backend)


class Validation(NamedTuple):
    """What is wanted, consistent in itself, and what was refused, in order of keys."""

    desired: Desired
    rejections: tuple[Rejection, ...]


@dataclass(slots=True)
class _Work:
    """What one pass has found so far; it begins with what is good by itself."""

    snapshot: Snapshot
    last: Desired
    pools: dict[str, Pool]
    backends: dict[BackendKey, Backend]
    vips: dict[str, Vip]
    rejections: Rejections
    host: HostAddresses
    kept: dict[str, Vip] = field(default_factory=dict)
    hash_seed: str | None = None
    has_last_backends: bool = False


def validate(
    snapshot: Snapshot,
    last_good: Desired,
    cache: ParseCache | None = None,
    host: HostAddresses = ANYWHERE,
    places: Places = Places(),  # noqa: B008 - it does not change
) -> Validation:
    """Check every document and every reference, in one pass that finds all faults.

    Args:
        snapshot: keys relative to the release.
        last_good: the `desired` of the last validation, or EMPTY.
        cache: of the last validation; makes this one faster, and changes nothing else.
        host: where the documents are to be in force.
        places: that what is in force there has.
    """
    cache = cache or ParseCache()
    cache.update(snapshot.documents)
    work = _Work(
        snapshot=snapshot,
        last=last_good,
        pools=dict(cache.pools),
        backends=dict(cache.backends),
        vips=dict(cache.vips),
        rejections=Rejections(snapshot),
        host=host,
        hash_seed=cache.hash_seed,
    )
    for key, parsed in cache.refused.items():
        _refuse(work, key, parsed)
    _keep_within_room(work, places.pools(work.pools), work.pools, last_good.pools, pool_key)
    _keep_vips_within_room(work, places)
    _leave_own_addresses(work)
    _leave_backends_in_force(work)
    _require_pools(work)
    _share_endpoints(work)
    _keep_used_pools(work)
    _require_backends_pools(work)
    room = places.backends(work.backends)
    _keep_within_room(work, room, work.backends, last_good.backends, lambda key: backend_key(*key))
    _require_backends_addresses(work)
    _share_addresses(work, cache)
    _share_server_ids(work)
    desired = Desired(
        revision=snapshot.revision,
        vips=_ordered(work.vips),
        pools=_ordered(work.pools),
        backends=_ordered(work.backends),
        hash_seed=work.hash_seed,
    )
    return Validation(desired, work.rejections.ordered())


def _ordered(found: dict[_K, _V]) -> dict[_K, _V]:
    return {key: found[key] for key in sorted(found)}


def _refuse(work: _Work, key: str, parsed: ParsedKey) -> None:
    """Refuse a key for itself, and keep its last value."""
    if isinstance(parsed.found, list):
        work.rejections.add_all(key, parsed.found)
    name, owner, last = parsed.name, parsed.owner, work.last
    if parsed.kind == "backend" and owner in last.backends:
        work.backends[owner] = last.backends[owner]
        work.has_last_backends = True
    elif parsed.kind == "vip" and name in last.vips:
        work.kept[name] = last.vips[name]
    elif parsed.kind == "pool" and name in last.pools:
        work.pools[name] = last.pools[name]
    elif parsed.kind == "settings":
        work.hash_seed = last.hash_seed


def _created(work: _Work, key: str) -> int:
    return work.snapshot.documents[key].create_revision if key in work.snapshot.documents else 0


def _keep_within_room(
    work: _Work, room: Room, found: dict[_K, _V], last: Mapping[_K, _V], key_of: Callable[[_K], str]
) -> None:
    """Refuse the pools or backends that there is no room for."""
    if len(found) <= room.limit:
        return
    claims = ((n, Claim(1, int(n in last), _created(work, key_of(n)))) for n in found)
    for name in capacity.beyond(room, claims):
        work.rejections.add(key_of(name), "", room.reason, room.stage)
        del found[name]


def _keep_vips_within_room(work: _Work, places: Places) -> None:
    """Refuse the VIPs that there is no room for, with all that they take."""
    sizes: tuple[tuple[Room, Callable[[Vip], int]], ...] = (
        (places.vips(work.vips | work.kept), lambda _: 1),
        (capacity.NETWORKS, lambda vip: int(vip.is_network)),
        (capacity.ROUTES, lambda vip: len(vip.source_routes) + len(vip.deny)),
    )
    for room, size in sizes:
        wanted = work.vips | work.kept
        if sum(map(size, wanted.values())) <= room.limit:
            continue
        claims = (
            (
                name,
                Claim(
                    size(vip),
                    size(work.last.vips[name]) if name in work.last.vips else 0,
                    _created(work, vip_key(name)),
                ),
            )
            for name, vip in wanted.items()
        )
        for name in capacity.beyond(room, claims):
            if name in work.vips:
                _demote(work, name, "", room.reason, room.stage)


def _leave_own_addresses(work: _Work) -> None:
    """Refuse VIPs that have an address of this host itself."""
    for name, vip in list(work.vips.items()):
        fault = vip_fault(vip, work.host)
        if fault:
            _demote(work, name, "address", f"address {fault}")


def _leave_backends_in_force(work: _Work) -> None:
    """Refuse VIPs and ways of pools by which packets to backends in force would come back."""
    vips, pools = loops.new_vips(work.vips, work.last), loops.other_pools(work.pools, work.last)
    if not vips and not pools:
        return
    staying = list(loops.staying(work.backends, work.last))
    for name in pools:
        mine = [backend for key, backend in staying if key.pool == name]
        for vip in (work.vips | work.kept).values():
            if any(loops.takes(vip, backend, work.pools[name]) for backend in mine):
                reason = (
                    f"the VIP {vip.name} takes what the pool would send to its backends, and sends "
                    "it again"
                )
                work.rejections.add(pool_key(name), "encapsulation", reason, "reference")
                work.pools[name] = work.last.pools[name]
                break
    for name in vips:
        vip = work.vips[name]
        taken = (k for k, each in staying if loops.takes(vip, each, work.pools.get(k.pool)))
        owner = next(taken, None)
        if owner is not None:
            reason = (
                f"address takes what is sent to the backend {owner.pool}/{owner.name}, which is in "
                "force; packets to it would come back"
            )
            _demote(work, name, "address", reason)


def _require_pools(work: _Work) -> None:
    """Refuse VIPs whose pool is neither in force nor theirs from before its deletion."""
    held = {
        pool
        for name, vip in (work.vips | work.kept).items()
        for pool in vip.pools
        if pool in work.last.pools and _uses(work.last.vips.get(name), pool)
    }
    for name, vip in list(work.vips.items()):
        missing = [pool for pool in vip.pools if pool not in work.pools and pool not in held]
        if missing:
            pool = missing[0]
            place = _place(vip, pool)
            document = work.snapshot.documents.get(pool_key(pool))
            what = "does not exist" if document is None else "is refused itself"
            verb = "names the pool" if place == "source_routes" else "is"
            reason = f"{place} {verb} {shown(pool)}, which {what}; it must be a pool in force"
            _demote(work, name, place, reason)


def _place(vip: Vip, pool: str) -> str:
    """Return the field that names a pool, the first one if several do."""
    if pool == vip.pool:
        return "pool"
    return "source_routes" if pool in vip.own_pools else "sorry_pool"


def _uses(vip: Vip | None, pool: str) -> bool:
    return vip is not None and pool in vip.pools


def _demote(work: _Work, name: str, place: str, reason: str, stage: Stage = "reference") -> None:
    """Refuse an accepted VIP document for what others say, and keep its last value if any."""
    work.rejections.add(vip_key(name), place, reason, stage)
    del work.vips[name]
    if name in work.last.vips:
        work.kept[name] = work.last.vips[name]


def _share_endpoints(work: _Work) -> None:
    """Give each address, port and protocol to one VIP.

    The VIP that has it in force keeps it, whatever became of its document since; else the one whose
    key was created first has it. So neither a typo nor an edit hands a VIP's address to another. A
    VIP that loses falls back to its last good value, which is in force and cannot lose.
    """
    documents = work.snapshot.documents

    def rank(name: str) -> tuple[bool, int, str]:
        last = work.last.vips.get(name)
        in_force = last is not None and last.endpoint == wanted[name].endpoint
        return not in_force, documents[vip_key(name)].create_revision, name

    losers = True
    while losers:
        wanted = work.vips | work.kept
        owners: dict[Endpoint, str] = {}
        losers = False
        for name in sorted(wanted, key=rank):
            owner = owners.setdefault(wanted[name].endpoint, name)
            if owner != name:
                losers = True
                reason = f"the VIP {owner} has this address, port and protocol; change one of them"
                _demote(work, name, "address", reason)
    work.vips.update(work.kept)


def _keep_used_pools(work: _Work) -> None:
    """Keep a deleted pool as it was for the VIPs that still use it."""
    users: dict[str, list[str]] = {}
    for name, vip in sorted(work.vips.items()):
        for pool in sorted(set(vip.pools) - work.pools.keys()):
            users.setdefault(pool, []).append(name)
    for pool, vips in users.items():
        if pool in work.last.pools:
            work.pools[pool] = work.last.pools[pool]
            reason = (
                f"the pool was deleted, but the VIP {vips[0]} uses it; it stays as it was until no "
                "VIP does"
            )
            work.rejections.add(pool_key(pool), "", reason, "reference")
        else:  # `last_good` was no result of ours: it had a VIP without its pool
            for name in vips:
                work.vips.pop(name, None)


def _require_backends_pools(work: _Work) -> None:
    """Refuse backends whose pool is not in force."""
    for owner in [owner for owner in work.backends if owner.pool not in work.pools]:
        del work.backends[owner]
        document = work.snapshot.documents.get(pool_key(owner.pool))
        what = "has no document" if document is None else "is refused itself"
        reason = f"the pool {owner.pool} {what}; a backend needs its pool"
        work.rejections.add(backend_key(*owner), "", reason, "reference")


def _share_addresses(work: _Work, cache: ParseCache) -> None:
    """Give each address of a pool to one backend, by the rule for addresses of VIPs.

    One server with two names would have two shares and two ids, and taking one name out would leave
    the other in. That an address has one name is what its flows' identity rests on.
    """
    if cache.shared or work.has_last_backends:  # else all are as they were parsed, and differ
        _share(work, "address", lambda backend: (backend.pool, backend.address))


def _require_backends_addresses(work: _Work) -> None:
    """Refuse backends whose address is a VIP's, or not for a backend on this host."""
    at: dict[Address, list[Vip]] = {}
    networks = [vip for vip in work.vips.values() if vip.is_network and vip.protocol == "udp"]
    for vip in work.vips.values():
        if not vip.is_network:
            at.setdefault(vip.address, []).append(vip)
    for owner, backend in list(work.backends.items()):
        pool = work.pools[owner.pool]
        back = [vip for vip in networks if loops.takes(vip, backend, pool)]
        fault = backend_fault(backend.address, [*at.get(backend.address, ()), *back], work.host)
        if not fault:
            continue
        work.rejections.add(backend_key(*owner), "address", f"address {fault}", "reference")
        if owner in work.last.backends:
            work.backends[owner] = work.last.backends[owner]
            work.has_last_backends = True
        else:
            del work.backends[owner]


def _share_server_ids(work: _Work) -> None:
    """Give each QUIC server id of a pool to one backend, by the same rule."""
    _share(
        work,
        "quic_server_id",
        lambda backend: (backend.pool, backend.quic_server_id) if backend.quic_server_id else None,
    )


def _share(work: _Work, name: str, of: Callable[[Backend], Hashable | None]) -> None:
    """Refuse backends that want what another one has; None is nothing to have."""
    documents = work.snapshot.documents

    def rank(owner: BackendKey) -> tuple[bool, int, BackendKey]:
        last, wanted = work.last.backends.get(owner), work.backends[owner]
        in_force = last is not None and of(last) == of(wanted)
        return not in_force, documents[backend_key(*owner)].create_revision, owner

    losers = True
    while losers:
        having = [owner for owner, backend in work.backends.items() if of(backend) is not None]
        owners: dict[Hashable, BackendKey] = {}
        losers = False
        for owner in sorted(having, key=rank):
            first = owners.setdefault(of(work.backends[owner]), owner)
            if first != owner:
                losers = True
                reason = f"{name} is that of the backend {first.name}; choose another one"
                work.rejections.add(backend_key(*owner), name, reason, "reference")
                last = work.last.backends.get(owner)
                if last is None or last == work.backends[owner]:
                    del work.backends[owner]
                else:
                    work.backends[owner] = last
