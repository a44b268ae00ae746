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
* An address belongs to one backend of its pool, by the same rule, and so does a QUIC server id
  (`backend_rules`).
* Addresses that are not for documents to have on this host are refused (`host_rules`).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from tidegate.keyspace.documents import backend_rules, capacity, loops
from tidegate.keyspace.documents.capacity import Claim, Places, Room
from tidegate.keyspace.documents.decode import shown
from tidegate.keyspace.documents.host_rules import (
    ANYWHERE,
    HostAddresses,
    vip_fault,
)
from tidegate.keyspace.documents.parse_cache import ParseCache, ParsedKey
from tidegate.keyspace.documents.rejections import Rejections
from tidegate.keyspace.documents.work import Work
from tidegate.keyspace.paths import pool_key, vip_key
from tidegate.model.grouped import Edits
from tidegate.model.values import (
    Desired,
    Endpoint,
    Pool,
    Rejection,
    Snapshot,
    Stage,
    Vip,
)

_V = TypeVar("_V", Vip, Pool)
_Size = Callable[[Vip], int]


class Validation(NamedTuple):
    """What is wanted, consistent in itself, and what was refused, in order of keys."""

    desired: Desired
    rejections: tuple[Rejection, ...]


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
    work = Work(
        snapshot=snapshot,
        last=last_good,
        pools=dict(cache.pools),
        backends=Edits(cache.backends),
        vips=dict(cache.vips),
        rejections=Rejections(snapshot),
        host=host,
        hash_seed=cache.hash_seed,
    )
    for key, parsed in cache.refused.items():
        _refuse(work, key, parsed)
    _keep_pools_within_room(work, places)
    _keep_vips_within_room(work, places)
    _leave_own_addresses(work)
    _leave_backends_in_force(work)
    _require_pools(work)
    _share_endpoints(work)
    _keep_used_pools(work)
    backend_rules.require_pools(work)
    backend_rules.keep_within_room(work, places)
    backend_rules.require_addresses(work, cache)
    backend_rules.share_addresses(work, cache)
    backend_rules.share_server_ids(work, cache)
    desired = Desired(
        revision=snapshot.revision,
        vips=_ordered(work.vips),
        pools=_ordered(work.pools),
        backends=work.backends.frozen(),
        hash_seed=work.hash_seed,
    )
    return Validation(desired, work.rejections.ordered())


def _ordered(found: dict[str, _V]) -> dict[str, _V]:
    return {key: found[key] for key in sorted(found)}


def _refuse(work: Work, key: str, parsed: ParsedKey) -> None:
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


def _keep_pools_within_room(work: Work, places: Places) -> None:
    """Refuse the pools that there is no room for."""
    room, last = places.pools(work.pools), work.last.pools
    if len(work.pools) <= room.limit:
        return
    claims = (
        (name, Claim(1, int(name in last), work.created(pool_key(name)))) for name in work.pools
    )
    for name in capacity.beyond(room, claims):
        work.rejections.add(pool_key(name), "", room.reason, room.stage)
        del work.pools[name]


def _keep_vips_within_room(work: Work, places: Places) -> None:
    """Refuse the VIPs that there is no room for, with all that they take."""
    sizes: tuple[tuple[Room, _Size], ...] = (
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
                    work.created(vip_key(name)),
                ),
            )
            for name, vip in wanted.items()
        )
        for name in capacity.beyond(room, claims):
            if name in work.vips:
                _demote(work, name, "", room.reason, room.stage)


def _leave_own_addresses(work: Work) -> None:
    """Refuse VIPs that have an address of this host itself."""
    for name, vip in list(work.vips.items()):
        fault = vip_fault(vip, work.host)
        if fault:
            _demote(work, name, "address", f"address {fault}")


def _leave_backends_in_force(work: Work) -> None:
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


def _require_pools(work: Work) -> None:
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


def _demote(work: Work, name: str, place: str, reason: str, stage: Stage = "reference") -> None:
    """Refuse an accepted VIP document for what others say, and keep its last value if any."""
    work.rejections.add(vip_key(name), place, reason, stage)
    del work.vips[name]
    if name in work.last.vips:
        work.kept[name] = work.last.vips[name]


def _share_endpoints(work: Work) -> None:
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


def _keep_used_pools(work: Work) -> None:
    """Keep a deleted pool as it was for the VIPs that still use it."""
    users: dict[str, list[str]] = {}
    for name, vip in sorted(work.vips.items()):
        for pool in sorted({pool for pool in vip.pools if pool not in work.pools}):
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
