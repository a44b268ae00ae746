# SPDX-License-Identifier: Apache-2.0
"""One generation on its way into the kernel, and who is flagged while it is.

The steps are those that `publisher` argues. Where many tables and entries change they take seconds,
and a backend that dies in that time is not to wait for them. So between two tables, and between
some hundred records or entries, `Aside.between` is called, which may flag backends. A flag holds:

* Its ledger record says out, in the words of the generation that is coming, whatever of it has been
  written by then. A crash is as after any record that is ahead of what it stands for.
* Nothing that is written afterwards takes back the record or the flag (`Mirror.held`).
* Before the next step the generation that is coming is amended: it has the backend out, in the
  books and in the stand-ins. Its tables stay as they were planned, since who is flagged takes no
  packet; but they have no digest, so the next plan builds them anew.

So the generation that is in force at the end says of each backend what the kernel does.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from tidegate.dataplane.kernel import counters
from tidegate.dataplane.publish import backend_changes, backend_entries, emptied, tables
from tidegate.dataplane.publish.aside import Aside
from tidegate.dataplane.publish.desired import NOTHING_DESIRED, DesiredMaps, desired_maps, meta
from tidegate.dataplane.publish.early_quarantine import EarlyQuarantine
from tidegate.dataplane.publish.ledger import Kind, Place
from tidegate.dataplane.publish.mirror import Loaded, Mirror
from tidegate.dataplane.publish.replaced_tables import ReplacedTables
from tidegate.dataplane.publish.steps import Reached, Step
from tidegate.model.generation import Generation, PlacedBackend, PlacedPool
from tidegate.model.values import BackendKey

META: Final = Place(Kind.META, 0)

_RECORDS: Final = 10_000
"""Nearly all of them are written by then: so many are looked through in some milliseconds."""


class Publication:
    """What one publishing has done so far.

    Args:
        mirror: the kernel's content.
        early: who is flagged.
        retired: takes the tables that are replaced.
        in_force: the last generation.
        generation: the next one.
        is_certain: whether the kernel holds exactly the last one.
        reached: called after each step.
        aside: called between steps; it may call `flag`, and nothing else of this.
    """

    def __init__(
        self,
        mirror: Mirror,
        early: EarlyQuarantine,
        retired: ReplacedTables,
        in_force: Generation,
        generation: Generation,
        *,
        is_certain: bool,
        reached: Reached,
        aside: Aside,
    ) -> None:
        self._mirror = mirror
        self._early = early
        self._retired = retired
        self._last = in_force
        self._wanted = DesiredMaps(generation)
        self._known = NOTHING_DESIRED
        self._is_certain = is_certain
        self._reached = reached
        self._aside = aside
        self._changed: list[PlacedBackend] = []
        self._waiting: list[PlacedBackend] = []
        self._returning: list[PlacedBackend] = []
        self._abandoned: frozenset[str] = frozenset()
        self._late: dict[int, Loaded] = {}
        self._are_ids_freed = False
        self._fault: OSError | None = None
        self.filled: dict[int, Loaded] = {}
        """New tables by pool id, whether or not they are in force yet."""

    def flag(self, keys: Iterable[BackendKey]) -> int:
        """Flag backends now; return how many were not flagged yet.

        Raises:
            OSError: the kernel refused. The next step is refused too, and publishing with it.
        """
        try:
            return self._early.flag_meanwhile(
                keys, self._last, self.generation, is_over=self._are_ids_freed
            )
        except OSError as error:
            self._fault = error
            raise

    @property
    def generation(self) -> Generation:
        """What is coming, as it is now."""
        return self._wanted.generation

    @property
    def wanted(self) -> DesiredMaps:
        """What the maps shall hold, with those out who were flagged meanwhile."""
        amended = self._early.amended(self.generation)
        if amended is not self.generation:
            self._wanted = desired_maps(amended, self._known)
        return self._wanted

    def compare(self, known: DesiredMaps, standing: Generation) -> None:
        """Find out what differs; nothing is written.

        Args:
            known: what the maps hold; nothing where that is not certain.
            standing: the generation in force as packets meet it.

        Raises:
            DataplaneError: a VIP has no place.
        """
        self._known = known
        self._wanted = self._aside.run(lambda: self._compared(known, standing))
        self._mirror.images.check_room(self._wanted.maps["vips"])

    def _compared(self, known: DesiredMaps, standing: Generation) -> DesiredMaps:
        generation, certain = self.generation, self._is_certain
        self._returning = backend_changes.returning(standing, generation)
        differing = backend_entries.changed(self._last, generation)
        differing += self._early.placed_in(generation)
        self._changed = differing if certain else list(generation.backends.values())
        self._abandoned = emptied.abandoned(self._last, generation, is_certain=certain)
        return desired_maps(generation, known)

    def prepare(self, hold: str) -> None:
        """Do steps 1 and 2: write what no table and no VIP in force leads to."""
        mirror, generation = self._mirror, self.generation
        taken = msgspec.structs.replace(meta(self._last, hold), attempt=generation.number)
        mirror.record({META: taken})
        # Before a record names the next owner of an id, so that it happens once, or to no effect.
        counters.clear_reused(mirror.fds, self._last, generation)
        self._reached(Step.NUMBER_TAKEN)
        later = {placed.identity for placed in self._returning}
        at_once, self._waiting = emptied.split(self._changed, self._abandoned)
        self._pause()
        backend_changes.write(mirror, self.wanted, at_once, self._reached, self._pause, later)
        self._fill_tables(generation)

    def swap(self, until: float) -> None:
        """Do step 3, for all tables but those that wait for VIPs.

        Args:
            until: monotonic second until which tables that are replaced stay loaded.
        """
        pools = self.generation.pools
        waiting = {pools[name].identity.id for name in self._abandoned}
        self._late = {id_: table for id_, table in self.filled.items() if id_ in waiting}
        self._swap({id_: t for id_, t in self.filled.items() if id_ not in waiting}, until)
        self._reached(Step.TABLES_SWAPPED)
        self._pause()
        if self._returning:
            backend_changes.write(
                self._mirror, self.wanted, self._returning, self._reached, self._pause
            )

    def empty(self, until: float) -> None:
        """Take out what VIPs have just left, if they have left anything; `until` as in `swap`."""
        self._pause()
        if not self._waiting and not self._late:
            return
        backend_entries.write(
            self._mirror, self.generation, self._waiting, self._reached, self._pause
        )
        self._reached(Step.EMPTIED_TAKEN_OUT)
        self._swap(self._late, until)
        self._reached(Step.EMPTIED_SWAPPED)
        self._pause()

    def retire(self, hold: str) -> DesiredMaps:
        """Do step 5; return what the maps hold then."""
        mirror, changed = self._mirror, self.wanted.changed
        mirror.record({place: r for place, r in changed.items() if place.kind is Kind.VIP})
        self._reached(Step.VIPS_FREED)
        self._pause()
        self._are_ids_freed = True
        for part in backend_entries.batched(list(changed.items()), _RECORDS):
            mirror.record(dict(part))
            self._pause()
        self._reached(Step.IDS_FREED)
        mirror.replace("quic_servers", self.wanted.maps["quic_servers"])
        self._reached(Step.QUIC_DELETED)
        self._pause()
        wanted = self.wanted
        mirror.replace("stand_ins", wanted.maps["stand_ins"])
        self._reached(Step.STAND_INS_COMPLETE)
        self._pause()
        backend_entries.clear(mirror, wanted, is_certain=self._is_certain)
        self._reached(Step.ENTRIES_CLEARED)
        self._clear_slots({each.identity.id for each in wanted.generation.pools.values()})
        # From here on nobody is flagged, so that the books are what the kernel holds.
        wanted = self.wanted
        mirror.replace("stand_ins", wanted.maps["stand_ins"])
        if not self._is_certain:
            mirror.forget_others([*wanted.records, META])
        mirror.record({META: meta(wanted.generation, hold)})
        self._reached(Step.NUMBER_RECORDED)
        return wanted

    def _pause(self) -> None:
        """Let backends be flagged; raise OSError where that has failed."""
        self._aside.between()
        if self._fault is not None:
            raise self._fault

    def _fill_tables(self, generation: Generation) -> None:
        """Make the tables that differ; each is in `filled` from its first moment on."""
        for name, placed in generation.pools.items():
            if self._has_table(name, placed):
                continue
            pool_id = placed.identity.id
            pin = tables.pin_path(self._mirror.pins, pool_id, placed.table.generation)
            self.filled[pool_id] = Loaded(tables.fill(placed.table, self._reached), pin)
            self._reached(Step.TABLE_FILLED)
            tables.pin(self.filled[pool_id].fd, pin)
            self._reached(Step.TABLE_PINNED)
            self._pause()

    def _has_table(self, name: str, placed: PlacedPool) -> bool:
        old = self._last.pools.get(name)
        return old is not None and old.table is placed.table and placed.identity == old.identity

    def _swap(self, new: Mapping[int, Loaded], until: float) -> None:
        mirror = self._mirror
        try:
            mirror.point(new)
        except OSError:
            there = tables.slots(mirror.fds["outer"])
            for pool_id, table in new.items():
                if there.get(pool_id) == tables.id_of(table.fd):
                    self._replaced(pool_id, table, until)
                else:
                    table.drop()
            raise
        for pool_id, table in new.items():
            self._replaced(pool_id, table, until)

    def _replaced(self, pool_id: int, table: Loaded, until: float) -> None:
        old = self._mirror.tables.get(pool_id)
        if old is not None:
            self._retired.keep(pool_id, old, until)
        self._mirror.tables[pool_id] = table

    def _clear_slots(self, kept: set[int]) -> None:
        """Take out the tables of pools that are gone."""
        mirror = self._mirror
        for pool_id in mirror.tables.keys() - kept:
            tables.clear_slot(mirror.fds["outer"], pool_id)
            self._reached(Step.SLOT_CLEARED)
            mirror.tables.pop(pool_id).drop()
            self._reached(Step.POOL_UNPINNED)
            self._pause()
