# SPDX-License-Identifier: Apache-2.0
"""Writes backends' records, entries and server ids, and says which of them have to wait.

A backend that is out and comes back while a table in force still names it waits for the new table:
others stand in for it until then, and the new table is the first that has packets look for flows
that began with them. So does its record, in case the agent dies in between.
"""

from collections.abc import Callable, Collection

from tidegate.dataplane.publish import backend_entries, ledger, stand_ins
from tidegate.dataplane.publish.backend_entries import batched
from tidegate.dataplane.publish.desired import DesiredMaps
from tidegate.dataplane.publish.ledger import Kind, Place
from tidegate.dataplane.publish.mirror import Mirror
from tidegate.dataplane.publish.steps import Reached, Step
from tidegate.model.generation import Generation, Identity, PlacedBackend

_LIVING = (ledger.PoolRecord, ledger.BackendRecord)


def returning(standing: Generation, generation: Generation) -> list[PlacedBackend]:
    """Return backends that are out, are to be in again, and that a table in force names.

    Args:
        standing: what is in force, as packets meet it.
        generation: what follows.
    """
    named: list[PlacedBackend] = []
    for name in generation.by_pool.differing(standing.by_pool):
        pool, following = standing.pools.get(name), generation.by_pool.group(name)
        for key, last in standing.by_pool.group(name).items():
            placed = following.get(key)
            if last.reachable or placed is None or not placed.reachable or pool is None:
                continue
            if placed.identity == last.identity and placed.identity.id in pool.table.current:
                named.append(placed)
    return named


def write(
    mirror: Mirror,
    wanted: DesiredMaps,
    changed: list[PlacedBackend],
    reached: Reached,
    between: Callable[[], None],
    later: Collection[Identity] = (),
) -> None:
    """Write records, who stands in, entries, and server ids, in this order.

    Args:
        mirror: the kernel's content.
        wanted: what it shall hold.
        changed: backends whose entries are written.
        reached: called after each step.
        between: called between some hundred records or entries.
        later: backends that wait.
    """
    left = {Place(Kind.BACKEND, identity.id) for identity in later}
    living: dict[Place, ledger.Record] = {
        place: record for place, record in wanted.changed.items() if isinstance(record, _LIVING)
    }
    # Those that were flagged early have records that the last generation does not know of.
    living |= {place: wanted.records[place] for place in map(_place, changed)}
    for part in batched([(place, r) for place, r in living.items() if place not in left]):
        mirror.record(dict(part))
        between()
    reached(Step.LEDGER_WRITTEN)
    changing = mirror.differing("stand_ins", wanted.maps["stand_ins"])
    mirror.put("stand_ins", stand_ins.meanwhile(wanted.generation, changing, mirror.entries))
    reached(Step.STAND_INS_WRITTEN)
    between()
    ready = [placed for placed in changed if placed.identity not in later]
    backend_entries.write(mirror, wanted.generation, ready, reached, between)
    mirror.put("quic_servers", wanted.maps["quic_servers"])
    reached(Step.QUIC_WRITTEN)


def _place(placed: PlacedBackend) -> Place:
    return Place(Kind.BACKEND, placed.identity.id)
