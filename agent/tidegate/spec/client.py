# SPDX-License-Identifier: Apache-2.0
"""What depends on who the client is: denied, routed to another pool, or sending too many SYNs."""

from tidegate.model.address import unpacked
from tidegate.spec.hash import prefix_hash
from tidegate.spec.packet import Packet
from tidegate.spec.state import State, VipEntry


def pool_for(entry: VipEntry, packet: Packet) -> int | None:
    """Return the pool for this client, by longest prefix; None if the client is denied."""
    client = unpacked(packet.source)
    for network, pool in entry.routes:
        if client.version == network.version and client in network:
            return pool
    return entry.pool


def is_denied(entry: VipEntry, address: bytes) -> bool:
    """Return whether a VIP denies an address."""
    client = unpacked(address)
    routes = (r for r in entry.routes if r.network.version == client.version)
    found = next((route for route in routes if client in route.network), None)
    return found is not None and found.pool is None


def syn_is_within_limit(state: State, entry: VipEntry, packet: Packet, now: int) -> bool:
    """Take a SYN from the share of the client's prefix; return False if it is used up."""
    limit = entry.vip.syn_limit
    if limit is None:
        return True
    hash_ = prefix_hash(
        state.settings.hash_keys, packet, (limit.prefix4, limit.prefix6), entry.salt
    )
    return state.syn_limits.take(hash_, limit.rate, now, state.settings.clock)
