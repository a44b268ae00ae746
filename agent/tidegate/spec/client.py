# SPDX-License-Identifier: Apache-2.0
"""What depends on who the client is: denied, routed to another pool, or sending too many SYNs."""

from tidegate.model.address import unpacked
from tidegate.spec.limit import Bucket
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
    bits = limit.prefix6 if packet.is_v6 else 96 + limit.prefix4
    mask = (1 << 128) - (1 << (128 - bits))
    prefix = (int.from_bytes(packet.source) & mask).to_bytes(16)
    key = entry.identity.id, prefix
    if key not in state.syn_limits:
        clock = state.settings.clock
        state.syn_limits[key] = Bucket.holding(limit.rate - 1, limit.rate, now, clock)
        return True
    return state.syn_limits[key].take(limit.rate, now, state.settings.clock)
