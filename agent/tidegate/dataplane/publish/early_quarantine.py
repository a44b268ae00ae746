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

While a generation is put in force (`publication`) a flag is also one beyond the generation that is
coming, which may have the backend under another name, at another address, or not at all.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from tidegate.dataplane.kernel import layout
from tidegate.dataplane.publish import ledger, stand_ins
from tidegate.dataplane.publish.ledger import Place
from tidegate.dataplane.publish.mirror import Mirror
from tidegate.model.generation import Generation, Identity, PlacedBackend
from tidegate.model.values import BackendKey, Fitness


class EarlyQuarantine:
    """The backends that are flagged beyond the generation in force."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._placed: dict[BackendKey, PlacedBackend] = {}
        self._coming: dict[BackendKey, PlacedBackend] = {}
        """Of the generation that is coming, with its names: those whom it had in."""

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

    def flag_meanwhile(
        self,
        keys: Iterable[BackendKey],
        in_force: Generation,
        coming: Generation,
        *,
        is_over: bool,
    ) -> int:
        """Flag backends while a generation is put in force; return how many were not flagged.

        Args:
            keys: as they are called in the last generation.
            in_force: the last generation.
            coming: the one that is put in force.
            is_over: whether who is not in that one has been taken out already.

        Raises:
            OSError: the kernel refused. What was flagged is flagged.
        """
        fresh: dict[BackendKey, PlacedBackend] = {}
        heirs: dict[BackendKey, PlacedBackend] = {}
        there = [(key, placed) for key in keys if (placed := in_force.backends.get(key))]
        for (key, placed), name in zip(there, _names(there, coming), strict=True):
            if name is not None and name not in self._coming and coming.backends[name].reachable:
                fresh[key], heirs[name] = _out(placed), _out(coming.backends[name])
            elif placed.reachable and key not in self._placed and not (is_over and name is None):
                fresh[key] = _out(placed)
        if fresh:
            self._write_meanwhile(fresh, heirs, coming)
        return len(fresh)

    def _write_meanwhile(
        self,
        fresh: Mapping[BackendKey, PlacedBackend],
        heirs: Mapping[BackendKey, PlacedBackend],
        coming: Generation,
    ) -> None:
        mirror = self._mirror
        self._placed |= fresh
        self._coming |= heirs
        ids = {placed.identity.id for placed in fresh.values()}
        records = ledger.of_backends(fresh.values()) | ledger.of_backends(heirs.values())
        mirror.record(records)
        mirror.held |= {placed.identity.id for placed in heirs.values()}
        mirror.entries["flags"][list(ids)] = layout.QUARANTINED
        left = _with(coming, self._coming)
        pools = {key.pool for key in (*fresh, *heirs)} & left.pools.keys()
        lists = {left.pools[name].identity.id.to_bytes(4, "little"): b"" for name in pools}
        mirror.put("stand_ins", stand_ins.meanwhile(left, lists, mirror.entries))
        mirror.write_entries(np.array(sorted(ids), np.uint32))

    def amended(self, coming: Generation) -> Generation:
        """Return the generation that is coming with those out who were flagged meanwhile."""
        fresh = {k: p for k, p in self._coming.items() if coming.backends[k] is not p}
        return _with(coming, fresh) if fresh else coming

    def restore(self, records: dict[Place, ledger.Record]) -> None:
        """Say in the records of the last generation who is flagged, as it stays in force."""
        self._end_meanwhile()
        records |= ledger.of_backends(self._placed.values())

    def _end_meanwhile(self) -> None:
        self._coming.clear()
        self._mirror.held.clear()

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

    def added_to(
        self, generation: Generation, before: Collection[BackendKey], out: Iterable[BackendKey]
    ) -> Generation:
        """Return a generation with those out who were taken out while it was planned.

        Args:
            generation: planned, and not in force yet.
            before: who was flagged when its planning began.
            out: who is to be out now, flagged before or not: it may have been planned to come back.
        """
        fresh = {
            key: _out(wanted)
            for key in {*(self._placed.keys() - set(before)), *out}
            if (placed := self._placed.get(key)) is not None
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
        self._end_meanwhile()


def _names(
    there: Iterable[tuple[BackendKey, PlacedBackend]], coming: Generation
) -> Iterator[BackendKey | None]:
    """Yield how each of these backends is called in the generation that is coming."""
    names: dict[Identity, BackendKey] | None = None
    for key, placed in there:
        heir = coming.backends.get(key)
        if heir is not None and heir.identity == placed.identity:
            yield key
            continue
        if names is None:
            names = {each.identity: k for k, each in coming.backends.items()}
        yield names.get(placed.identity)


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
