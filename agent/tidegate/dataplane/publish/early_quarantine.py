# SPDX-License-Identifier: Apache-2.0
"""Backends quarantined in the kernel before the generation that removes them is published.

A generation takes long from a dead backend's clients' point of view: planning, tables,
verification. The flag alone is one write. A crash or failure is safe at any moment, because the
ledger's record is written first: it says that the backend is out, so a start that reads it plans
without the backend and sets the flag itself, whether or not it was set. A flag is never written
before its record. The mirror knows both, so an audit expects them. Until a generation is published
completely, a rollback keeps these flags, and the next publishing writes these entries in any case,
also where the generation is the one in force: a health result that was revoked must not leave its
flag behind.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np

from tidegate.dataplane.kernel import layout
from tidegate.dataplane.publish import ledger, stand_ins
from tidegate.dataplane.publish.mirror import Mirror
from tidegate.model.generation import Generation, PlacedBackend
from tidegate.model.values import BackendKey, Fitness


class EarlyQuarantine:
    """The backends that are flagged beyond the generation in force."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._placed: dict[BackendKey, PlacedBackend] = {}

    def __bool__(self) -> bool:
        return bool(self._placed)

    def flag(self, keys: Iterable[BackendKey], in_force: Generation) -> int:
        """Flag these backends; return how many of them were not flagged before.

        Raises:
            OSError: the kernel refused. What was flagged is flagged.
        """
        fresh = {
            key: _out(placed)
            for key in keys
            if key not in self._placed
            and (placed := in_force.backends.get(key)) is not None
            and placed.reachable
        }
        if fresh:
            self._placed |= fresh
            self._mirror.record(ledger.of_backends(fresh.values()))
            self._put_stand_ins(in_force, {key.pool for key in fresh})
            ids = np.array([placed.identity.id for placed in fresh.values()], np.uint32)
            self._mirror.entries["flags"][ids] = layout.QUARANTINED
            self._mirror.write_entries(ids)
        return len(fresh)

    def _put_stand_ins(self, in_force: Generation, pools: set[str]) -> None:
        """Have those stand in who serve on, before others are flagged."""
        left = self.applied_to(in_force)
        self._mirror.put("stand_ins", stand_ins.of_pools(left, pools))

    def applied_to(self, generation: Generation) -> Generation:
        """Return a generation as the kernel has it with these flags.

        Its tables still name who is flagged, so those of their pools have no digest: whatever is
        planned over this builds them anew.
        """
        return _with(generation, self._placed)

    @property
    def keys(self) -> frozenset[BackendKey]:
        """Who is flagged."""
        return frozenset(self._placed)

    def added_to(self, generation: Generation, before: Collection[BackendKey]) -> Generation:
        """Return a generation with those out who were flagged while it was planned.

        Args:
            generation: planned, and not in force yet.
            before: who was flagged when its planning began.
        """
        fresh = {
            key: _out(wanted)
            for key, placed in self._placed.items()
            if key not in before
            and (wanted := generation.backends.get(key)) is not None
            and wanted.identity == placed.identity
            and wanted.reachable
        }
        return _with(generation, fresh) if fresh else generation

    def placed_in(self, generation: Generation) -> list[PlacedBackend]:
        """Return these backends as a generation has them."""
        return [generation.backends[key] for key in self._placed if key in generation.backends]

    def clear(self) -> None:
        """Forget the flags: a generation is in force whole, or the kernel was read anew."""
        self._placed.clear()


def _out(placed: PlacedBackend) -> PlacedBackend:
    return replace(placed, weight=0, reachable=False, fitness=Fitness(is_out=True))


def _with(generation: Generation, out: Mapping[BackendKey, PlacedBackend]) -> Generation:
    pools = {
        key.pool: replace(generation.pools[key.pool], digest=b"")
        for key in out
        if key.pool in generation.pools
    }
    return replace(
        generation,
        pools={**generation.pools, **pools},
        backends=generation.by_pool | out,
    )
