# SPDX-License-Identifier: Apache-2.0
"""Documents by which a packet would come back to the balancer that sent it to a backend. Pure.

Each pass would add an outer header, with a TTL of its own, until the packet is too big: some fifty
packets for one. A VIP of one address takes all that is sent there. A VIP that is a network takes
what is sent to a backend within it if that is GUE, which is UDP, and the VIP takes this port; IP in
IP no VIP takes. Who is in force stays: the document that came last is refused, be it the VIP's, the
pool's or the backend's.
"""

from collections.abc import Iterable, Mapping

from tidegate.model.values import Backend, BackendKey, Desired, Pool, Vip


def takes(vip: Vip, backend: Backend, pool: Pool | None) -> bool:
    """Return whether a VIP takes what is sent to a backend of a pool."""
    if not vip.is_network:
        return vip.address == backend.address
    return (
        pool is not None
        and pool.encapsulation == "gue"
        and vip.protocol == "udp"
        and vip.port in {0, pool.gue_port}
        and vip.network.version == backend.address.version
        and backend.address in vip.network
    )


def new_vips(vips: Mapping[str, Vip], last: Desired) -> list[str]:
    """Return the VIPs that take packets which they did not take before."""
    return [
        name
        for name, vip in vips.items()
        if (old := last.vips.get(name)) is not vip and (old is None or old.endpoint != vip.endpoint)
    ]


def other_pools(pools: Mapping[str, Pool], last: Desired) -> list[str]:
    """Return the pools in force to whose backends packets are to be sent in another way."""
    return [
        name
        for name, pool in pools.items()
        if (old := last.pools.get(name)) is not None and _way(old) != _way(pool)
    ]


def staying(
    backends: Mapping[BackendKey, Backend], last: Desired
) -> Iterable[tuple[BackendKey, Backend]]:
    """Yield the backends that have the address that they have in force."""
    for key, backend in backends.items():
        old = last.backends.get(key)
        if old is not None and old.address == backend.address:
            yield key, backend


def _way(pool: Pool) -> tuple[str, int]:
    return pool.encapsulation, pool.gue_port
