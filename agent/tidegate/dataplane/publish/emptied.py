# SPDX-License-Identifier: Apache-2.0
"""Pools that a change empties while VIPs leave them: what of them comes into force last.

A VIP goes to its sorry pool, or to another one, because its pool has nobody left. Until its entry
is switched its packets go by the pool's old table to the pool's old backends, as a moment before:
were those taken out first, everything would be dropped in between. So the entries that take these
backends out, and the emptied table, wait for the VIPs. That is no new state for a crash to leave:
the VIP is on its new table already, and nobody is led to the old one. What health has taken out is
flagged before all of this, and stays so.
"""

from collections.abc import Iterable
from typing import NamedTuple

from tidegate.model.generation import Generation, PlacedBackend, PlacedVip


class Split(NamedTuple):
    """Backends whose entries are written before VIPs, and after them."""

    before: list[PlacedBackend]
    after: list[PlacedBackend]


def abandoned(before: Generation, after: Generation, *, is_certain: bool) -> frozenset[str]:
    """Return the pools in which nobody serves any more, and that a VIP leaves.

    Args:
        before: the generation in force.
        after: the next one.
        is_certain: the kernel holds the one in force. After a crash a VIP's record may be ahead of
            its entry, so any VIP may be the one that leaves.
    """
    emptied = {
        name
        for name, placed in after.pools.items()
        if name in before.pools
        and placed.table is not before.pools[name].table
        and not placed.table.current.any()
    }
    if not (emptied and is_certain):
        return frozenset(emptied)
    old = {placed.identity: placed for placed in before.vips.values()}
    left = {
        pool
        for placed in after.vips.values()
        if placed.identity in old
        for pool in _serving(old[placed.identity]) - _serving(placed)
    }
    return frozenset(emptied & left)


def split(changed: Iterable[PlacedBackend], pools: frozenset[str]) -> Split:
    """Split backends into those that may be written at once, and those that VIPs leave first."""
    found = Split([], [])
    for placed in changed:
        waits = placed.backend.pool in pools and not placed.reachable
        (found.after if waits else found.before).append(placed)
    return found


def _serving(placed: PlacedVip) -> set[str]:
    return {placed.serving(pool) for pool in placed.vip.own_pools}
