# SPDX-License-Identifier: Apache-2.0
"""What the maps that follow from a generation alone must hold for it: pure functions.

Each returns the whole content of one map as value bytes by key bytes, so that a publisher can
compare it with what is there and write the difference. Backends' entries are not here: which of its
two endpoints is in force depends on what the entry was before.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import numpy as np

from tidegate.dataplane.kernel import layout
from tidegate.model.address import mapped_length, packed
from tidegate.model.document_types import UNSERVED
from tidegate.model.generation import Generation, PlacedVip
from tidegate.model.tag import PROTOCOLS, flow_salt, vip_tag
from tidegate.model.values import Network, Vip

Contents = dict[bytes, bytes]

_ICMP: Final = {4: 1, 6: 58}
"""Protocol numbers by IP version (RFC 792, RFC 4443)."""

_TRACKING: Final = {
    "full": 0,
    "transition": layout.VIP_TRACK_TRANSITION,
    "none": layout.VIP_TRACK_NONE,
}
_UNSERVED: Final = {"drop": 0, "reject": layout.ADDRESS_REJECTS, "pass": layout.ADDRESS_PASSES}
_HASH: Final = {
    "5-tuple": 0,
    "source": layout.VIP_HASH_SOURCE,
    "source+port": layout.VIP_HASH_SOURCE_PORT,
}


def vips(generation: Generation) -> Contents:
    """Return what map `vips` has: VIPs of one address, and for each address one entry for ICMP."""
    return {
        vip_key(network, port, protocol): value
        for (network, port, protocol), value in _services(generation, networks=False)
    }


def prefixes(generation: Generation) -> Contents:
    """Return map `prefixes`: VIPs that are networks, and for each one entry of protocol ICMP."""
    return {
        prefix_key(network, port, protocol): value
        for (network, port, protocol), value in _services(generation, networks=True)
    }


def routes(generation: Generation) -> Contents:
    """Return map `routes`: source routes and denied prefixes of all VIPs."""
    found: Contents = {}
    for placed in generation.vips.values():
        id_ = placed.identity.id
        for route in placed.vip.source_routes:
            pool = generation.pools[placed.serving(route.pool)].identity.id
            found[route_key(id_, route.network)] = _one((pool, 0), layout.ROUTE)
        for network in placed.vip.deny:
            found[route_key(id_, network)] = _one((0, layout.ROUTE_DENY), layout.ROUTE)
    return found


def quic_servers(generation: Generation, pools: Iterable[str] | None = None) -> Contents:
    """Return map `quic_servers`: backends by pool and server id.

    Args:
        generation: what shall be in force.
        pools: those whose part is wanted; None for all.
    """
    found: Contents = {}
    for name in generation.by_pool.groups if pools is None else pools:
        pool = generation.pools.get(name)
        if pool is None:
            continue
        for server_id, placed in generation.server_ids(name).items():
            key = _one((pool.identity.id, len(server_id), server_id), layout.QUIC_KEY)
            found[key] = _one(tuple(placed.identity), layout.QUIC_SERVER)
    return found


def vip_key(network: Network, port: int, protocol: int) -> bytes:
    """Return a key of `vips`; of the network only its address counts."""
    return _one((packed(network.network_address), port, protocol, 0), layout.VIP_KEY)


def prefix_key(network: Network, port: int, protocol: int) -> bytes:
    """Return a key of `prefixes`."""
    length = layout.KEY_FIXED_BITS + mapped_length(network)
    address = packed(network.network_address)
    return _one((length, protocol, 0, port, address), layout.PREFIX_KEY)


def route_key(vip_id: int, network: Network) -> bytes:
    """Return a key of `routes`."""
    length = layout.KEY_FIXED_BITS + mapped_length(network)
    return _one((length, vip_id, packed(network.network_address)), layout.ROUTE_KEY)


def _services(
    generation: Generation, *, networks: bool
) -> list[tuple[tuple[Network, int, int], bytes]]:
    """Return the entries of all VIPs of one kind, and of their addresses, with their keys."""
    placed_vips = [p for p in generation.vips.values() if p.vip.is_network == networks]
    found = [
        ((p.vip.network, p.vip.port, PROTOCOLS[p.vip.protocol]), _entry(generation, p))
        for p in placed_vips
    ]
    by_network: defaultdict[Network, list[PlacedVip]] = defaultdict(list)
    for placed in placed_vips:
        by_network[placed.vip.network].append(placed)
    for network, there in by_network.items():
        found.append(((network, 0, _ICMP[network.version]), _address_entry(generation, there)))
    return found


def _entry(generation: Generation, placed: PlacedVip) -> bytes:
    vip, entry = placed.vip, np.zeros(1, layout.VIP)
    entry["id"], entry["incarnation"] = placed.identity
    entry["pool"] = generation.pools[placed.serving(vip.pool)].identity.id
    entry["flags"] = _flags(vip) | (layout.VIP_MOVED if placed.moved else 0)
    entry["tag"] = vip_tag(vip)
    entry["salt"] = flow_salt(placed.identity)
    entry["idle"] = vip.udp_idle_timeout
    entry["tcp_idle"] = vip.tcp_idle_timeout
    entry["insert_rate"] = vip.insert_limit
    if vip.syn_limit:
        entry["syn_rate"] = vip.syn_limit.rate
        entry["syn_prefix4"] = vip.syn_limit.prefix4
        entry["syn_prefix6"] = vip.syn_limit.prefix6
    entry["mss"] = vip.mss_clamp or 0
    if vip.quic:
        entry["quic_length"], entry["quic_offset"] = vip.quic
    entry["sampling"] = vip.flow_sampling
    return entry.tobytes()


def _flags(vip: Vip) -> int:
    return (
        _TRACKING[vip.tracking]
        | _HASH[vip.hash]
        | (layout.VIP_PREFIX if vip.is_network else 0)
        | (layout.VIP_ROUTES if vip.source_routes or vip.deny else 0)
        | (layout.VIP_LONG_WAY if _needs_long_way(vip) else 0)
        | (layout.VIP_SYN_LONG_WAY if vip.syn_limit or vip.mss_clamp else 0)
        | (layout.VIP_SAMPLED if vip.flow_sampling else 0)
    )


def _needs_long_way(vip: Vip) -> bool:
    """Return whether packets of a VIP need more than the short way has (bpf/plain.h)."""
    return vip.hash != "5-tuple" or any((vip.is_network, vip.source_routes, vip.deny, vip.quic))


def _address_entry(generation: Generation, there: list[PlacedVip]) -> bytes:
    """Return the entry of an address, which stands for the VIP there with the lowest id."""
    first = min(there, key=lambda placed: placed.identity.id)
    entry = np.zeros(1, layout.VIP)
    entry["id"], entry["incarnation"] = first.identity
    entry["pool"] = generation.pools[first.serving(first.vip.pool)].identity.id
    entry["flags"] = (
        layout.VIP_LONG_WAY
        | layout.ADDRESS_ENTRY
        | (layout.VIP_ECHO if any(placed.vip.echo for placed in there) else 0)
        | (layout.VIP_PREFIX if first.vip.is_network else 0)
        | _UNSERVED[min((placed.vip.unserved for placed in there), key=UNSERVED.index)]
    )
    entry["tag"] = vip_tag(first.vip)
    entry["salt"] = flow_salt(first.identity)
    return entry.tobytes()


def _one(fields: tuple[object, ...], dtype: np.dtype[np.void]) -> bytes:
    return np.array([fields], dtype).tobytes()
