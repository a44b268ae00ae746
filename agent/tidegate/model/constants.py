# SPDX-License-Identifier: Apache-2.0
"""Build constants that the planner, the data plane and the specification share."""

from typing import Final

TABLE_SIZE: Final = 65537
"""Slots of a Maglev table: a prime, more than 100 times the backends of a pool (NSDI'16 §3.4)."""

MAX_VIPS: Final = 4096
"""VIP ids run from 1 to MAX_VIPS - 1."""

VIP_PLACES: Final = 8 * MAX_VIPS
"""Places for VIPs of one address: a power of two, as bpf/vip.h computes a place as bits of a hash.
Each VIP's address has an entry of its own, so at the most a quarter of the places is taken; two
choices for each entry can fill about half."""

MAX_POOLS: Final = 1024
"""Pool ids, which are slots of the outer map, run from 1 to MAX_POOLS - 1."""

MAX_INTERFACE_INDEX: Final = 65536
"""Interface indexes are below this: an array is looked up several times faster than a hash."""

MAX_BACKENDS: Final = 65536
"""Backend ids run from 1 to MAX_BACKENDS - 1; id 0 is never a backend."""

ID_COOLDOWN_SECONDS: Final = 3600
"""A freed id rests this long, which is longer than any flow may stay idle."""

MAX_NETWORK_VIPS: Final = 256
"""VIPs that are networks. Their map has four times as many entries: each has one for ICMP too, and
old and new ones stand side by side while a generation is published."""

MAX_OWN_ADDRESSES: Final = 65536
"""Addresses of the host's interfaces, which VIPs that are networks leave out."""

MAX_ROUTES: Final = 8192
"""Source routes and denied prefixes of all VIPs; their map has twice as many, for the same reason.
"""

MAX_VIP_ROUTES: Final = 100
"""Source routes and denied prefixes of one VIP, so that a VIP's ledger record stays below 4 KiB."""
