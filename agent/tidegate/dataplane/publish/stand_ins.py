# SPDX-License-Identifier: Apache-2.0
"""Who takes the new flows of a slot whose owner is out, where re-hashing finds nobody.

When most of a pool is out at once, as many slots as re-hashing draws may all be of backends that
are. The packet then goes to one of the pool's stand-ins, of which each serves: the list is written
before the flags that take others out. So as long as anybody serves, somebody is found.

It follows from a generation alone but while one is put in force: then it has those alone who serve
before and after, since until the tables are swapped the others are not in, or are about to go.
"""

import zlib
from collections.abc import Callable, Iterable
from heapq import nsmallest

import numpy as np

from tidegate.dataplane.kernel import layout
from tidegate.dataplane.publish.entries import Contents
from tidegate.model.generation import Generation, PlacedBackend


def meanwhile(generation: Generation, wanted: Contents, entries: np.ndarray) -> Contents:
    """Return the lists of pools for the time in which a generation is put in force.

    Args:
        generation: what is to be in force.
        wanted: its lists of the pools that change.
        entries: backends by id, as packets meet them.
    """
    ids = {int.from_bytes(key, "little") for key in wanted}
    pools = {name for name, placed in generation.pools.items() if placed.identity.id in ids}

    def serves(placed: PlacedBackend) -> bool:
        entry = entries[placed.identity.id]
        return entry["incarnation"] == placed.identity.incarnation and not entry["flags"]

    return of_pools(generation, pools, serves)


def of_pools(
    generation: Generation,
    pools: Iterable[str],
    serves: Callable[[PlacedBackend], bool] = lambda _: True,
) -> Contents:
    """Return the lists of some pools: of those of their backends who take new flows.

    Args:
        generation: what has the pools.
        pools: their names.
        serves: what else holds for a backend of a list.
    """
    found: Contents = {}
    for name in pools:
        serving = [
            placed
            for placed in generation.by_pool.group(name).values()
            if placed.reachable and placed.weight and serves(placed)
        ]
        if serving and name in generation.pools:
            found[generation.pools[name].identity.id.to_bytes(4, "little")] = _value(serving)
    return found


def _value(serving: Iterable[PlacedBackend]) -> bytes:
    """Return a list, the same on each host: by a hash of names, so that no rack comes first."""
    first = nsmallest(layout.STAND_INS, serving, key=_order)
    return np.resize(
        np.array([placed.identity.id for placed in first], "<u4"), layout.STAND_INS
    ).tobytes()


def _order(placed: PlacedBackend) -> tuple[int, str]:
    return zlib.crc32(placed.backend.name.encode()), placed.backend.name
