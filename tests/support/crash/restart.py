# SPDX-License-Identifier: Apache-2.0
"""A generation as an agent that starts over finds it: through the bytes of ledger and tables."""

from tidegate.dataplane.publish import ledger, tables
from tidegate.dataplane.publish.ledger import Kind, MetaRecord, Place
from tidegate.dataplane.publish.ledger_bytes import decoded, encoded
from tidegate.dataplane.publish.restore import restored_generation
from tidegate.model.generation import Generation


def restarted(generation: Generation) -> Generation:
    """Return the generation that is left when only the pinned maps are."""
    meta = MetaRecord(generation.number, generation.revision, generation.hash_seed)
    records = {**ledger.records(generation), Place(Kind.META, 0): meta}
    pinned = {key: value for part in encoded(records).values() for key, value in part.items()}
    in_force = {
        placed.identity.id: tables.decode(bytes(tables.encode(placed.table)))
        for placed in generation.pools.values()
    }
    return restored_generation(decoded(pinned, strict=True), in_force)
