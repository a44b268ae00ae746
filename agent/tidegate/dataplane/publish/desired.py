# SPDX-License-Identifier: Apache-2.0
"""What every map must hold for a generation, as far as it follows from the generation alone.

A pure function of the generation. The maps of an earlier one make it faster: what the two have in
common is reused, and most changes leave all VIPs and nearly all backends as they were.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from tidegate.dataplane.kernel import layout
from tidegate.dataplane.publish import entries, ledger, stand_ins
from tidegate.dataplane.publish.address_bits import address_bits
from tidegate.dataplane.publish.ledger import MetaRecord, Place
from tidegate.model.generation import NOTHING, Generation


@dataclass(frozen=True)
class DesiredMaps:
    """The content of maps by name, and the ledger's records without the meta record.

    Attributes:
        changed: records that the earlier one, which it was made from, has not or has otherwise.
        gone: places of records that the earlier one has besides.
        addresses: the one element of `vip_addresses`.
    """

    generation: Generation = NOTHING
    records: Mapping[Place, ledger.Record] = field(default_factory=dict)
    changed: Mapping[Place, ledger.Record] = field(default_factory=dict, compare=False)
    gone: tuple[Place, ...] = field(default=(), compare=False)
    maps: Mapping[str, entries.Contents] = field(default_factory=dict)
    addresses: bytes = bytes(layout.ADDRESS_BITS.itemsize)


NOTHING_DESIRED: Final = DesiredMaps()


def desired_maps(generation: Generation, last: DesiredMaps = NOTHING_DESIRED) -> DesiredMaps:
    """Build the desired maps of a generation, reusing those of an earlier one."""
    before = last.generation
    records = ledger.following(generation, before, last.records)
    if last.maps and _lead_alike(generation, before):
        of_vips = {name: last.maps[name] for name in ("routes", "vips", "prefixes")}
        addresses = last.addresses
    else:
        addresses = address_bits(generation)
        of_vips = {
            "routes": entries.routes(generation),
            "vips": entries.vips(generation),
            "prefixes": entries.prefixes(generation),
        }
    changed = changed_pools(before, generation)
    of_pools = {
        "quic_servers": entries.quic_servers(generation, changed),
        "stand_ins": stand_ins.of_pools(generation, changed),
    }
    for name, fresh in of_pools.items():
        of_pools[name] = _of_others(generation, changed, last.maps.get(name, {})) | fresh
    return DesiredMaps(generation, *records, {**of_vips, **of_pools}, addresses)


def changed_pools(last: Generation, generation: Generation) -> set[str]:
    """Return pools of which a backend, or the id, is another one than in an earlier generation."""
    found = set(generation.by_pool.differing(last.by_pool))
    for name, placed in generation.pools.items():
        old = last.pools.get(name)
        if old is not placed and (old is None or old.identity != placed.identity):
            found.add(name)
    return found


def _of_others(
    generation: Generation, changed: Collection[str], known: entries.Contents
) -> entries.Contents:
    """Return what a map, whose keys begin with a pool's id, has of the pools that stay."""
    staying = {
        placed.identity.id.to_bytes(4, "little")
        for name, placed in generation.pools.items()
        if name not in changed
    }
    return {key: value for key, value in known.items() if key[:4] in staying}


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
