# SPDX-License-Identifier: Apache-2.0
"""Who takes the new flows of a slot whose owner is out, where re-hashing finds nobody.

When most of a pool is out at once, as many slots as re-hashing draws may all be of backends that
are. The packet then goes to one of the pool's stand-ins, of which each serves: the list is written
before the flags that take others out. So as long as anybody serves, somebody is found.

It follows from a generation alone but while one is put in force: then it has those alone who serve
before and after, since until the tables are swapped the others are not in, or are about to go.
"""

import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from heapq import nsmallest

import numpy as np

from tidegate.dataplane.kernel import layout
from tidegate.dataplane.publish.entries import Contents
from tidegate.model.generation import NOTHING, Generation, PlacedBackend


def stand_ins(
    generation: Generation, last: Generation = NOTHING, known: Mapping[bytes, bytes] | None = None
) -> Contents:
    """Return map `stand_ins`: ids of serving backends by pool.

    Args:
        generation: what shall be in force.
        last: an earlier one.
        known: its map; of pools that are as they were, the result is taken from there.
    """
    changed = set(_changed_pools(last, generation))
    ids = {placed.identity.id: name for name, placed in generation.pools.items()}
    kept = {
        key: value
        for key, value in (known or {}).items()
        if ids.get(int.from_bytes(key, "little"), "") not in {"", *changed}
    }
    return kept | of_pools(generation, changed, generation.backends.values())


def meanwhile(generation: Generation, wanted: Contents, entries: np.ndarray) -> Contents:
    """Return the lists of pools for the time in which a generation is put in force.

    Args:
        generation: what is to be in force.
        wanted: its lists of the pools that change.
        entries: backends by id, as packets meet them.
    """
    ids = {int.from_bytes(key, "little") for key in wanted}
    pools = {name for name, placed in generation.pools.items() if placed.identity.id in ids}
    there = (
        placed
        for placed in generation.backends.values()
        if placed.backend.pool in pools
        and (entry := entries[placed.identity.id])["incarnation"] == placed.identity.incarnation
        and not entry["flags"]
    )
    return of_pools(generation, pools, there)


def _changed_pools(last: Generation, generation: Generation) -> Iterator[str]:
    """Yield pools of which a backend, or the id, is another one than in an earlier generation."""
    for name, placed in generation.pools.items():
        if name not in last.pools or last.pools[name].identity != placed.identity:
            yield name
    for key, backend in generation.backends.items():
        if (old := last.backends.get(key)) is not backend and old != backend:
            yield key.pool
    for key in last.backends.keys() - generation.backends.keys():
        yield key.pool


def of_pools(
    generation: Generation, pools: Collection[str], backends: Iterable[PlacedBackend]
) -> Contents:
    """Return the lists of some pools: of those among these backends who take new flows."""
    serving: defaultdict[str, list[PlacedBackend]] = defaultdict(list)
    for placed in backends:
        if placed.reachable and placed.weight and placed.backend.pool in pools:
            serving[placed.backend.pool].append(placed)
    return {
        generation.pools[name].identity.id.to_bytes(4, "little"): _value(there)
        for name, there in serving.items()
        if name in generation.pools
    }


def _value(serving: Iterable[PlacedBackend]) -> bytes:
    """Return a list, the same on each host: by a hash of names, so that no rack comes first."""
    first = nsmallest(layout.STAND_INS, serving, key=_order)
    return np.resize(
        np.array([placed.identity.id for placed in first], "<u4"), layout.STAND_INS
    ).tobytes()


def _order(placed: PlacedBackend) -> tuple[int, str]:
    return zlib.crc32(placed.backend.name.encode()), placed.backend.name
