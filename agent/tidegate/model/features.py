# SPDX-License-Identifier: Apache-2.0
"""What a program can do beyond the least, and which of it a generation needs.

The balancer is compiled for the documents in force: what none of them uses costs no instruction.
"""

from enum import Enum
from typing import Final

from tidegate.model.generation import Generation


class Feature(Enum):
    """A part of the packet path that can be left out (WITH_* in bpf/)."""

    V6 = "IPv6 packets"
    UDP = "UDP, with idle timeouts"
    ANY_PORT = "VIPs on every port"
    PREFIXES = "VIPs that are networks"
    ROUTES = "client networks with a pool of their own, or denied"
    TRANSITION = "tracking of flows in slots that changed only"
    FRAGMENTS = "later fragments follow the first"
    QUIC = "routing by server id"
    GUE = "UDP encapsulation"
    CLAMP = "MSS on SYN"
    SYN_LIMIT = "SYNs per source prefix"
    EVENTS = "events of sampled flows"


ALL_FEATURES: Final = frozenset(Feature)
_ALWAYS: Final = frozenset({Feature.FRAGMENTS})


def features(generation: Generation) -> frozenset[Feature]:
    """What a program must be able to do for this generation."""
    found = set(_ALWAYS)
    for placed in generation.vips.values():
        vip = placed.vip
        uses = {
            Feature.V6: vip.network.version == 6,  # noqa: PLR2004 - the family
            Feature.UDP: vip.protocol == "udp",
            Feature.ANY_PORT: vip.port == 0,
            Feature.PREFIXES: vip.is_network,
            Feature.ROUTES: bool(vip.source_routes or vip.deny),
            Feature.TRANSITION: vip.tracking == "transition",
            Feature.QUIC: vip.quic is not None,
            Feature.CLAMP: vip.mss_clamp is not None,
            Feature.SYN_LIMIT: vip.syn_limit is not None,
            Feature.EVENTS: vip.flow_sampling > 0,
        }
        found |= {feature for feature, is_used in uses.items() if is_used}
    # A backend that outlives its pool is reached as before, which a generation does not tell.
    is_without_pool = any(key.pool not in generation.pools for key in generation.backends)
    if is_without_pool or any(p.pool.encapsulation == "gue" for p in generation.pools.values()):
        found.add(Feature.GUE)
    return frozenset(found)
