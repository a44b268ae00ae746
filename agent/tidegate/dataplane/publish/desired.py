# SPDX-License-Identifier: Apache-2.0
"""What every map must hold for a generation, as far as it follows from the generation alone.

A pure function of the generation. The maps of an earlier one make it faster: what the two have in
common is reused, and most changes leave all VIPs and nearly all backends as they were.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tidegate.dataplane.kernel import layout
from tidegate.dataplane.publish import entries, ledger
from tidegate.dataplane.publish.address_bits import address_bits
from tidegate.dataplane.publish.ledger import MetaRecord, Place
from tidegate.dataplane.publish.stand_ins import stand_ins
from tidegate.model.generation import NOTHING, Generation


@dataclass(frozen=True)
class DesiredMaps:
    """The content of maps by name, and the ledger's records without the meta record.

    Attributes:
        addresses: the one element of `vip_addresses`.
    """

    generation: Generation = NOTHING
    records: Mapping[Place, ledger.Record] = field(default_factory=dict)
    maps: Mapping[str, entries.Contents] = field(default_factory=dict)
    addresses: bytes = bytes(layout.ADDRESS_BITS.itemsize)


NOTHING_DESIRED: Final = DesiredMaps()


def desired_maps(generation: Generation, last: DesiredMaps = NOTHING_DESIRED) -> DesiredMaps:
    """Build the desired maps of a generation, reusing those of an earlier one."""
    records = ledger.records(generation, last.generation, last.records)
    if last.maps and _lead_alike(generation, last.generation):
        of_vips = {name: last.maps[name] for name in ("routes", "vips", "prefixes")}
        addresses = last.addresses
    else:
        addresses = address_bits(generation)
        of_vips = {
            "routes": entries.routes(generation),
            "vips": entries.vips(generation),
            "prefixes": entries.prefixes(generation),
        }
    of_pools = {
        "quic_servers": entries.quic_servers(generation),
        "stand_ins": stand_ins(generation, last.generation, last.maps.get("stand_ins")),
    }
    return DesiredMaps(generation, records, {**of_vips, **of_pools}, addresses)


def meta(generation: Generation, hold: str) -> MetaRecord:
    """Return the meta record of a generation in force, complete; `hold` is not part of it."""
    return MetaRecord(
        generation.number,
        generation.revision,
        generation.hash_seed,
        generation.release,
        generation.pointer,
        attempt=generation.number,
        hold=hold,
    )


def _lead_alike(one: Generation, other: Generation) -> bool:
    """Return whether the VIPs are the same, and lead to the same ids of pools."""
    return one.vips == other.vips and _pool_ids(one) == _pool_ids(other)


def _pool_ids(generation: Generation) -> dict[str, int]:
    return {name: placed.identity.id for name, placed in generation.pools.items()}
