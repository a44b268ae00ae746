# SPDX-License-Identifier: Apache-2.0
"""A generation as an agent that starts over finds it: through the bytes of ledger and tables."""

from tidegate.dataplane import ledger, ledger_bytes, tables
from tidegate.dataplane.ledger import Kind, MetaRecord, Place
from tidegate.model.generation import Generation, PlacedPool
from tidegate.planner import confirm


def restarted(generation: Generation) -> Generation:
    """What is left of it when only the pinned maps are."""
    records = ledger.records(generation)
    meta = MetaRecord(generation.number, generation.revision, generation.hash_seed)
    records[Place(Kind.META, 0)] = meta
    found = ledger.contents(
        {place: ledger_bytes.decode(ledger_bytes.encode(place, r)) for place, r in records.items()}
    )
    pools = {
        name: PlacedPool(
            identity,
            pool,
            tables.decode(bytes(tables.encode(generation.pools[name].table))),
            b"",
        )
        for name, (identity, pool) in found.pools.items()
    }
    return confirm(
        Generation(
            *(found.meta.number, found.meta.revision, ""),
            *(found.vips, pools, found.backends, found.freed),
            hash_seed=found.meta.hash_seed,
        )
    )
