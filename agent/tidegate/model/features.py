# SPDX-License-Identifier: Apache-2.0
"""The optional features of a program, and which of them a generation needs.

The balancer is compiled for the documents in force: what none of them uses costs no instruction.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final

from tidegate.model.generation import Generation
from tidegate.model.values import Vip


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
    REJECT = "answers to what no VIP takes"


ALL_FEATURES: Final = frozenset(Feature)
_ALWAYS: Final = frozenset({Feature.FRAGMENTS})


_USES: Final[tuple[tuple[Feature, Callable[[Vip], bool]], ...]] = (
    (Feature.V6, lambda vip: vip.network.version == 6),  # noqa: PLR2004 - the family
    (Feature.UDP, lambda vip: vip.protocol == "udp"),
    (Feature.ANY_PORT, lambda vip: vip.port == 0),
    (Feature.PREFIXES, lambda vip: vip.is_network),
    (Feature.ROUTES, lambda vip: bool(vip.source_routes or vip.deny)),
    (Feature.TRANSITION, lambda vip: vip.tracking == "transition"),
    (Feature.QUIC, lambda vip: vip.quic is not None),
    (Feature.CLAMP, lambda vip: vip.mss_clamp is not None),
    (Feature.SYN_LIMIT, lambda vip: vip.syn_limit is not None),
    (Feature.EVENTS, lambda vip: vip.flow_sampling > 0),
    (Feature.REJECT, lambda vip: vip.unserved == "reject"),
)


def features(generation: Generation) -> frozenset[Feature]:
    """Return the features that a program needs for this generation."""
    vips = [placed.vip for placed in generation.vips.values()]
    found = {feature for feature, uses in _USES if any(map(uses, vips))}
    # A backend that outlives its pool is reached as before, which a generation does not record.
    is_without_pool = not generation.by_pool.groups.keys() <= generation.pools.keys()
    if is_without_pool or any(p.pool.encapsulation == "gue" for p in generation.pools.values()):
        found.add(Feature.GUE)
    return _ALWAYS | found
