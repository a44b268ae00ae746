# SPDX-License-Identifier: Apache-2.0
"""Puts a generation into the kernel, in an order in which every moment is safe to crash at.

    1. its number; ledger records and entries of backends that are new or changed, and their QUIC
       server ids
    2. new inner tables, filled and read back; nothing reads them yet
    3. the outer map's slots, all in one call, which returns after an RCU grace period
    4. source routes, address bits, VIP entries, networks; then what is gone of these, in the
       opposite order; then the tables of pools that are empty now, and that VIPs have just left
    5. stand-ins; what is gone becomes free; the generation is complete; old tables go after a while

Why this order. A table must not name a backend without an entry (1 before 3), a VIP must not point
to a slot without a table (3 before 4), and a backend's entry must stay while a table or VIP that is
still in force may lead to it (5 last, and `emptied`). Ids of VIPs are freed before those of pools,
because a VIP's record names its pools. The order within step 4 is argued in `vip_change`. The flag
that quarantines a backend is in its entry, so it takes effect in step 1 (`flag_unhealthy`: even
earlier). One that comes back may have to wait until behind step 3 (`backend_changes`). A crash
leaves a VIP on its old or new table. The next start reads the kernel, plans from what it finds, and
so finishes or discards the rest: a backend with an entry and no slot is as good as one that was
just added. The number is written first, so that no two attempts ever have the same one.

Backends may be flagged between all of these steps (`publication`).

Before all of this each VIP is given its place; where one finds none, nothing is written. When the
kernel refuses something up to step 2, all is rolled back, and the last generation is in force
completely. Later there are flows that began on the new tables, and putting the old ones back would
move them: what has come into force is read from the kernel, and becomes the generation in force.
The last documents planned over it (as the agent does) give the way back that moves nobody.

What follows from a generation alone (`entries`) is compared with what the maps hold, and only the
difference is written. A crash may have come between a ledger record and what it stands for, so the
first generation after a start is compared in full, though it may have the number that was found.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from tidegate.dataplane.publish import backend_changes, ledger, tables
from tidegate.dataplane.publish.aside import NOTHING_ASIDE, Aside
from tidegate.dataplane.publish.audit import Finding, audit
from tidegate.dataplane.publish.desired import NOTHING_DESIRED, desired_maps, meta
from tidegate.dataplane.publish.early_quarantine import EarlyQuarantine
from tidegate.dataplane.publish.fence import check_number
from tidegate.dataplane.publish.ledger import MetaRecord, Place
from tidegate.dataplane.publish.mirror import Loaded, Mirror
from tidegate.dataplane.publish.publication import META, Publication
from tidegate.dataplane.publish.replaced_tables import ReplacedTables
from tidegate.dataplane.publish.restore import restored_generation
from tidegate.dataplane.publish.steps import Reached, unwatched
from tidegate.dataplane.publish.vip_change import put_in_force
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.event_log import EventLog
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import BackendKey

log = EventLog(__name__)

_REFUSALS: Final = (OSError, DataplaneError, CapabilityError, MemoryError)
"""How a refusal by the kernel arrives."""

_Records = dict[Place, ledger.Record]


class Publisher:
    """Owns the maps that hold generations.

    Args:
        fds: descriptors of the maps by name.
        pins: folder of the pins, which has a folder `tables`.
        grace: seconds for which a replaced table stays loaded.
        reached: called after each step.
        fence: called before anything is written; raises if nothing may be.
        aside: is let work between steps, some milliseconds apart; it may call `flag_unhealthy`.
    """

    def __init__(
        self,
        fds: Mapping[str, int],
        pins: Path,
        grace: float,
        *,
        reached: Reached = unwatched,
        fence: Callable[[], None] = lambda: None,
        aside: Aside = NOTHING_ASIDE,
    ) -> None:
        self.mirror = Mirror(fds, pins)
        self.grace = grace
        self.reached = reached
        self._fence = fence
        self._retired = ReplacedTables()
        self.early = EarlyQuarantine(self.mirror)
        self._aside = aside
        self._publication: Publication | None = None
        self._desired = NOTHING_DESIRED
        self.is_certain = True
        """Whether the kernel holds exactly the generation in force, as far as is known."""
        self._is_unread = False
        self.in_force: Generation = NOTHING
        self.hold = ""
        """Why an operator has frozen this host; kept beside the tables (`keep_hold`)."""

    @property
    def standing(self) -> Generation:
        """The generation in force as packets meet it: without backends that are flagged beyond it.

        What is planned over it knows where others stood in for them. With such flags it has the
        next number: even what is equal to it has not been published yet.
        """
        if not self.early:
            return self.in_force
        return replace(self.early.applied_to(self.in_force), number=self.in_force.number + 1)

    def adopt(self) -> Generation:
        """Read what the kernel holds, so that publishing continues from there.

        Raises:
            DataplaneError: the ledger has a record that cannot be read.
        """
        self.mirror.load(strict=True)
        self.mirror.load_tables()
        self.in_force = self._restored()
        kept = self.mirror.records.get(META)
        self.hold = kept.hold if isinstance(kept, MetaRecord) else ""
        self.is_certain = False
        return self.in_force

    def publish(self, generation: Generation, now: float) -> None:
        """Bring the kernel from the generation in force to this one.

        Args:
            generation: what the kernel shall hold.
            now: monotonic clock, s; starts the grace delay of the tables that it replaces.

        Raises:
            FenceError: another agent has taken over the maps; nothing was written.
            DataplaneError: the kernel refused a step, or a VIP has no place. `in_force` is what is
                in force: the last generation, or a mixture in which each VIP is on its old or its
                new table.
        """
        if generation.number == self.in_force.number and self.is_certain and not self.early:
            self._note_origin(generation)
            self.in_force = generation  # a new revision that changes nothing for any packet
            return
        self.check()
        if self._is_unread:
            self._reread()
            raise DataplaneError(
                "what the kernel holds had to be read again after an earlier failure: nothing is "
                "changed; the next attempt continues from there"
            )
        self._publication = publication = Publication(
            self.mirror,
            self.early,
            self._retired,
            self.in_force,
            generation,
            is_certain=self.is_certain,
            reached=self.reached,
            aside=self._aside,
        )
        try:
            self._put_in_force(publication, now + self.grace)
        except DataplaneError:
            raise
        except BaseException:  # whatever it was, what is in the kernel is not known any more
            self.is_certain, self._is_unread = False, True
            raise
        finally:
            self._publication = None

    def _put_in_force(self, publication: Publication, until: float) -> None:
        """Do all steps; what has begun is finished or undone.

        Args:
            publication: of the generation.
            until: monotonic second until which replaced tables stay loaded.
        """
        generation = publication.generation
        before = dict(self.mirror.records)
        try:
            # What was written last is known only while nothing has failed since.
            known = self._desired if self.is_certain else NOTHING_DESIRED
            publication.compare(known, self.standing)
        except DataplaneError:
            if self.mirror.held:  # who was flagged meanwhile stays so, in the last generation
                self._undo(before, {})
            raise
        try:
            publication.prepare(self.hold)
        except _REFUSALS as error:
            rest = self._undo(before, publication.filled)
            raise _failure(generation, error, rest) from error
        try:
            publication.swap(until)
            put_in_force(self.mirror, publication.wanted, self.reached)
            publication.empty(until)
            self._desired = publication.retire(self.hold)
        except _REFUSALS as error:
            self.mirror.drop_unused(publication.filled.values())
            self._reread()
            rest = "each VIP is on its old or its new table"
            raise _failure(generation, error, rest) from error
        self.in_force = self._desired.generation
        self.is_certain = True
        self.early.clear()

    def flag_unhealthy(self, keys: Iterable[BackendKey]) -> int:
        """Flag backends before their generation is built; return how many were not flagged yet.

        Raises:
            FenceError, DataplaneError: as in `publish`.
        """
        if self._is_unread:
            return 0
        self.check()
        try:
            if self._publication is not None:
                return self._publication.flag(keys)
            return self.early.flag(keys, self.in_force)
        except OSError as error:
            if self._publication is None:  # else publishing ends with it, and reads what it must
                self._reread()
            raise DataplaneError(f"cannot flag backends: {error}") from error

    def check(self) -> None:
        """Make sure that no other agent writes to these maps.

        Raises:
            FenceError: another agent does.
        """
        self._fence()
        taken = self.mirror.records.get(META)
        if isinstance(taken, MetaRecord):
            check_number(self.mirror.fds, taken)

    def audit(self, *, deep: bool) -> list[Finding]:
        """Compare the kernel with the generation in force, and repair what differs.

        Args:
            deep: read tables and unused entries too.

        Raises:
            FenceError: another agent writes to these maps.
            DataplaneError: the kernel cannot be read.
        """
        if not self.is_certain:
            return []  # the next publishing compares everything
        self.check()
        try:
            return audit(self.mirror, self.in_force, self._aside, deep=deep)
        except OSError as error:
            raise DataplaneError(f"cannot read the kernel's maps: {error.strerror}") from error

    def keep_hold(self, reason: str) -> None:
        """Keep, beside the tables, why an operator has frozen this host; an empty reason ends it.

        Raises:
            FenceError: another agent has taken over the maps.
            DataplaneError: the ledger cannot be written.
        """
        self.check()
        before = self.mirror.records.get(META)
        known = before if isinstance(before, MetaRecord) else MetaRecord(0, 0)
        try:
            self.mirror.record({META: msgspec.structs.replace(known, hold=reason)})
        except OSError as error:
            raise DataplaneError(f"cannot write the ledger: {error}") from error
        self.hold = reason

    def next_due(self) -> float | None:
        """Return the monotonic second at which the next replaced table may be freed."""
        return self._retired.next_due()

    def reap(self, now: float) -> None:
        """Free the tables whose grace delay has passed by this monotonic second."""
        self._retired.free(now, self.reached)

    def close(self) -> None:
        """Close descriptors. What is pinned stays, and replaced tables lose their pins."""
        self.reap(float("inf"))
        self.mirror.close_tables()

    def _restored(self) -> Generation:
        """Return the generation that is in force according to the mirror."""
        loaded = self.mirror.tables
        return restored_generation(
            self.mirror.records, {pool_id: tables.read(loaded[pool_id].fd) for pool_id in loaded}
        )

    def _reread(self) -> None:
        """Find out what came into force after a step failed; if even that fails, do so later."""
        self.is_certain, self._is_unread = False, True
        try:
            self.mirror.load(strict=False)
            self.in_force = self._restored()
            self.early.clear()
        except _REFUSALS as error:
            log.warning("kernel_unread", reason=error)
            return
        self._is_unread = False

    def _undo(self, records: _Records, filled: Mapping[int, Loaded]) -> str:
        """Undo what `_prepare` has done; return what is in force then."""
        for table in filled.values():
            table.drop()
        if not self.is_certain:
            self._reread()
            return "what was found at the start is in force"
        self.early.restore(records)
        mirror, last = self.mirror, self.early.applied_to(self.in_force)
        try:
            mirror.load(strict=False)
            wanted = desired_maps(last)
            everybody = list(last.backends.values())
            backend_changes.write(mirror, wanted, everybody, self.reached, _go_on)
            mirror.record(records)
            mirror.forget_others(records)
            for name in ("quic_servers", "stand_ins"):
                mirror.replace(name, wanted.maps[name])
            mirror.clear_entries_but([each.identity.id for each in last.backends.values()])
        except _REFUSALS as error:
            self._reread()
            return f"each VIP is on its old table, but not all is rolled back ({error})"
        return f"generation {last.number} stays in force"

    def _note_origin(self, generation: Generation) -> None:
        """Record that what is in force is of another release now, if it is."""
        before, after = meta(self.in_force, self.hold), meta(generation, self.hold)
        if (before.release, before.pointer) != (after.release, after.pointer):
            self.check()
            try:
                self.mirror.record({META: after})
            except OSError as error:
                raise DataplaneError(f"cannot write the ledger: {error}") from error


def _go_on() -> None:
    """Let nobody flag anything while what was done is undone."""


def _failure(generation: Generation, error: Exception, rest: str) -> DataplaneError:
    return DataplaneError(f"publishing generation {generation.number} failed: {error}; {rest}")
