# SPDX-License-Identifier: Apache-2.0
"""Entries of backends: how one is updated to what a generation has for its backend.

An entry has two endpoints and a byte that selects one. A changed address is written to the other
endpoint, where no packet looks, and then selected: an update of an array's element is a plain copy,
and a packet that reads in its middle must not see half an address.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import numpy as np

from tidegate.dataplane.kernel import layout
from tidegate.dataplane.publish import ledger
from tidegate.dataplane.publish.desired import DesiredMaps
from tidegate.dataplane.publish.ledger import Kind
from tidegate.dataplane.publish.mirror import Mirror
from tidegate.dataplane.publish.steps import Reached, Step
from tidegate.model.address import packed
from tidegate.model.generation import Generation, PlacedBackend, PlacedPool, Slots
from tidegate.model.values import Pool

_T = TypeVar("_T")

_BATCH: Final = 500


def changed(before: Generation, after: Generation) -> list[PlacedBackend]:
    """Return the backends whose entry differs, by their own document or their pool's."""
    other_pools = [name for name, placed in after.pools.items() if _goes_otherwise(before, placed)]
    found = [placed for name in other_pools for placed in after.by_pool.group(name).values()]
    for name in set(after.by_pool.differing(before.by_pool)) - set(other_pools):
        had = before.by_pool.group(name)
        found += (
            placed
            for key, placed in after.by_pool.group(name).items()
            if (old := had.get(key)) is not placed and old != placed
        )
    return found


def _goes_otherwise(before: Generation, placed: PlacedPool) -> bool:
    """Return whether packets to a pool's backends are sent in another way than before."""
    old = before.pools.get(placed.pool.name)
    return old is not placed and (old is None or _path(old.pool) != _path(placed.pool))


def batched(items: Sequence[_T], size: int = _BATCH) -> Iterator[Sequence[_T]]:
    """Yield parts that take some milliseconds to write."""
    return (items[at : at + size] for at in range(0, len(items), size))


def write(
    mirror: Mirror,
    generation: Generation,
    changed: Sequence[PlacedBackend],
    reached: Reached,
    between: Callable[[], None],
) -> None:
    """Write the entries of these backends; `between` is called now and then."""
    for part in batched(changed):
        for placed in part:
            pool = generation.pools.get(placed.backend.pool)
            stage(mirror.entries[placed.identity.id], placed, pool)
        mirror.write_entries(_ids(part))
        between()
    reached(Step.ENTRIES_STAGED)
    # Every address is in place; now select it. A packet sees the old one or the new one.
    for part in batched(changed):
        for placed in part:
            select(mirror.entries[placed.identity.id], placed)
        mirror.write_entries(_ids(part))
        between()
    reached(Step.ENTRIES_SELECTED)


def clear(mirror: Mirror, wanted: DesiredMaps, *, is_certain: bool) -> None:
    """Empty the entries of backends that are gone.

    Args:
        mirror: the kernel's content.
        wanted: what it shall hold.
        is_certain: it held what `wanted` was made from, and nothing else.
    """
    if not is_certain:
        mirror.clear_entries_but([b.identity.id for b in wanted.generation.backends.values()])
        return
    gone = (
        place.id
        for place, r in wanted.changed.items()
        if isinstance(r, ledger.FreedRecord)
        if place.kind is Kind.BACKEND
    )
    mirror.clear_entries(np.fromiter(gone, np.int64))


def _ids(placed: Sequence[PlacedBackend]) -> Slots:
    return np.array([each.identity.id for each in placed], np.uint32)


def stage(entry: np.void, placed: PlacedBackend, pool: PlacedPool | None) -> None:
    """Write everything of an entry but the selection of a changed address."""
    backend = placed.backend
    address = packed(backend.address)
    if entry["incarnation"] != placed.identity.incarnation:
        entry["endpoints"] = np.zeros(2, layout.ENDPOINT)
        entry["selected"] = 0
        entry["endpoints"][0] = (address, backend.address.version)
        entry["incarnation"] = placed.identity.incarnation
    selected = int(entry["selected"])
    if bytes(entry["endpoints"]["address"][selected]) != address:
        entry["endpoints"][1 - selected] = (address, backend.address.version)
    entry["flags"] = flags(placed)
    entry["pool"] = pool.identity.id if pool else 0
    if pool is not None:  # a draining backend may outlive its pool: it stays as it was
        entry["gue_port"], entry["mtu"] = _path(pool.pool)


def flags(placed: PlacedBackend) -> int:
    """Return the flags of a backend's entry; one that is out of everything does not drain."""
    if not placed.reachable:
        return layout.QUARANTINED
    return 0 if placed.weight else layout.DRAINING


def select(entry: np.void, placed: PlacedBackend) -> None:
    """Select the endpoint that has the backend's address; call `stage` before."""
    address = packed(placed.backend.address)
    entry["selected"] = int(bytes(entry["endpoints"]["address"][0]) != address)


def _path(pool: Pool) -> tuple[int, int]:
    """Return how packets travel to a pool's backends: port of GUE or 0, MTU or 0."""
    return pool.gue_port if pool.encapsulation == "gue" else 0, pool.mtu or 0
