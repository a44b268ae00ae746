# SPDX-License-Identifier: Apache-2.0
"""The rules between a backend's document and others: its pool's, other backends', VIPs'.

Of these, one pass works on what the last one has not found in order already (`ParseCache`).
"""

from collections.abc import Callable, Hashable

from tidegate.keyspace.documents import capacity, loops
from tidegate.keyspace.documents.capacity import Claim, Places
from tidegate.keyspace.documents.host_rules import backend_fault
from tidegate.keyspace.documents.parse_cache import ParseCache
from tidegate.keyspace.documents.work import Work
from tidegate.keyspace.paths import backend_key, pool_key
from tidegate.model.values import Address, Backend, BackendKey, Vip


def keep_within_room(work: Work, places: Places) -> None:
    """Refuse the backends that there is no room for."""
    room, last = places.backends(work.backends), work.last.backends
    if len(work.backends) <= room.limit:
        return
    claims = (
        (owner, Claim(1, int(owner in last), work.created(backend_key(*owner))))
        for owner in work.backends
    )
    for owner in capacity.beyond(room, claims):
        work.rejections.add(backend_key(*owner), "", room.reason, room.stage)
        del work.backends[owner]


def require_pools(work: Work) -> None:
    """Refuse backends whose pool is not in force."""
    orphans = [
        owner for name, there in work.backends.groups() if name not in work.pools for owner in there
    ]
    for owner in orphans:
        del work.backends[owner]
        document = work.snapshot.documents.get(pool_key(owner.pool))
        what = "has no document" if document is None else "is refused itself"
        reason = f"the pool {owner.pool} {what}; a backend needs its pool"
        work.rejections.add(backend_key(*owner), "", reason, "reference")


def share_addresses(work: Work, cache: ParseCache) -> None:
    """Give each address of a pool to one backend, by the rule for addresses of VIPs.

    One server with two names would have two shares and two ids, and taking one name out would leave
    the other in. That an address has one name is what its flows' identity rests on.
    """
    if cache.shared or work.has_last_backends:  # else all are as they were parsed, and differ
        _share(work, "address", lambda backend: (backend.pool, backend.address))


def share_server_ids(work: Work, cache: ParseCache) -> None:
    """Give each QUIC server id of a pool to one backend, by the same rule."""
    if cache.shared or work.has_last_backends:
        _share(
            work,
            "quic_server_id",
            lambda backend: (
                (backend.pool, backend.quic_server_id) if backend.quic_server_id else None
            ),
        )


def require_addresses(work: Work, cache: ParseCache) -> None:
    """Refuse backends whose address is a VIP's, or not for a backend on this host.

    Pools that were in order the last time are so again, beside the same VIPs on the same host.
    """
    at: dict[Address, list[Vip]] = {}
    networks = [vip for vip in work.vips.values() if vip.is_network and vip.protocol == "udp"]
    for vip in work.vips.values():
        if not vip.is_network:
            at.setdefault(vip.address, []).append(vip)
    beside = (work.vips, work.host)
    known = cache.sound if cache.sound_beside == beside else {}
    cache.sound, cache.sound_beside = {}, beside
    for name, there in list(work.backends.groups()):
        pool = work.pools[name]
        sound = known.get(name)
        if sound is not None and sound[0] is there and sound[1] is pool:
            cache.sound[name] = sound
            continue
        faults = {}
        good = sound[0] if sound is not None and sound[1] is pool else {}
        for owner, backend in there.items():
            if good.get(owner) is backend:
                continue
            back = [vip for vip in networks if loops.takes(vip, backend, pool)]
            fault = backend_fault(backend.address, [*at.get(backend.address, ()), *back], work.host)
            if fault:
                faults[owner] = fault
        if not faults:
            cache.sound[name] = there, pool
        for owner, fault in faults.items():
            _leave_backend(work, owner, fault)


def _leave_backend(work: Work, owner: BackendKey, fault: str) -> None:
    """Refuse a backend for its address, and keep its last value."""
    work.rejections.add(backend_key(*owner), "address", f"address {fault}", "reference")
    if owner in work.last.backends:
        work.backends[owner] = work.last.backends[owner]
        work.has_last_backends = True
    else:
        del work.backends[owner]


def _share(work: Work, name: str, of: Callable[[Backend], Hashable | None]) -> None:
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
