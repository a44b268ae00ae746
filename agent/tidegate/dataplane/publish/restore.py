# SPDX-License-Identifier: Apache-2.0
"""The generation that the kernel holds, restored from its maps: after a start, and after a failure.

The maps may be between two generations. They are taken as they are, so that the planner continues
from what packets meet: tables as they stand, and backends, VIPs and ids as the ledger names them.
"""

from collections.abc import Mapping
from dataclasses import replace

from tidegate.dataplane.publish import ledger
from tidegate.dataplane.publish.ledger import Place
from tidegate.model.generation import Freed, Generation, PlacedPool, Table
from tidegate.planner import confirm


def restored_generation(
    records: Mapping[Place, ledger.Record], in_force: Mapping[int, Table]
) -> Generation:
    """Return what the kernel holds, as a generation.

    Args:
        records: of the ledger.
        in_force: tables by pool id.

    A pool without a table has never had a packet, and a VIP without its pools has none any more:
    both are left out. Their ids count as used, lest the next use be taken for this one.
    """
    found = ledger.contents(records)
    pools: dict[str, PlacedPool] = {}
    free_pools, free_vips = dict(found.freed.pools), dict(found.freed.vips)
    for name, (identity, pool) in found.pools.items():
        if identity.id in in_force:
            table, levels = in_force[identity.id], found.levels[name]
            pools[name] = PlacedPool(identity, pool, table, b"", levels)
        else:
            free_pools[identity.id] = Freed(identity.incarnation - 1, 0)
    vips = {n: p for n, p in found.vips.items() if pools.keys() >= {*p.vip.pools}}
    for name in found.vips.keys() - vips.keys():
        identity = found.vips[name].identity
        free_vips[identity.id] = Freed(identity.incarnation, 0)
    meta = found.meta
    built = (placed.table.generation for placed in pools.values())
    return confirm(
        Generation(
            number=max([meta.number, meta.attempt, *built]),
            revision=meta.revision,
            digest="",
            vips=vips,
            pools=pools,
            backends=found.backends,
            freed=replace(found.freed, pools=free_pools, vips=free_vips),
            hash_seed=meta.hash_seed,
            release=meta.release,
            pointer=meta.pointer,
        )
    )
