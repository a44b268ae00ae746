# SPDX-License-Identifier: Apache-2.0
"""Takes over a data plane whose maps have another size or shape, while its program forwards.

    1. new maps are pinned beside the old ones; what is pinned and fits is used as it is
    2. what follows from the generation in force is written to those that are empty
    3. flows are copied from the old connection table: a first pass, which takes long
    4. a program over the new maps is compiled, proven and pinned (plane.DataPlane.serve)
    5. a second pass, of what is new or changed since
    6. the program takes the old one's place on each interface, in one exchange
    7. a last pass, once no packet is left in the old program; what packets wrote to the new table
       stays as it is
    8. the pins of the new maps are renamed into place, then that of the program

A start that is killed up to 6 leaves the old maps, and the old program on them; later, the new
ones. `pin_sets` finds out which.

Flows keep their backends. Marks of SYNs and of fragments live for seconds and are not copied: what
begins in the moment of the exchange, a flow in a moving slot or a datagram in fragments, may go
elsewhere. Counters begin again, and limits have their full budget: each such map is in the log.
"""

import time
from collections.abc import Iterable
from pathlib import Path

from tidegate.dataplane.kernel import jiffies, maps
from tidegate.dataplane.kernel.jiffies import Jiffies
from tidegate.dataplane.kernel.lines import MappedLines
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.dataplane.publish.steps import Reached, Step
from tidegate.dataplane.takeover.following import fill
from tidegate.dataplane.takeover.grace_period import wait_out_packets
from tidegate.dataplane.takeover.hashed import HashedTable, is_hashed
from tidegate.dataplane.takeover.pin_sets import FLOWS, PinSets, put_in_place, settle
from tidegate.dataplane.takeover.placing import Moment, Placer
from tidegate.dataplane.takeover.resized import ResizedTable
from tidegate.errors import DataplaneError
from tidegate.event_log import EventLog
from tidegate.model.generation import Generation

log = EventLog(__name__)


class Takeover:
    """A takeover, from the opening of the maps to `finish`; of nothing if every map fits.

    Attributes:
        maps: of the data plane, open; closing them is the caller's.
        adopted: whether any map was there before.
    """

    def __init__(
        self,
        folder: Path,
        pins: Path,
        capacity: maps.Capacity,
        interfaces: Iterable[str],
        reached: Reached,
    ) -> None:
        """Open what is pinned and fits, and pin new maps for the rest (step 1).

        Args:
            folder: of the pins, locked.
            pins: its name for people.
            capacity: that is wanted.
            interfaces: on which a program of ours may run.
            reached: called after each step.

        Raises:
            DataplaneError: a map has a shape that can be neither copied nor made anew.
        """
        self._folder, self._reached = folder, reached
        shapes = maps.shapes(capacity)
        settle(folder, shapes, interfaces)
        self._sets = PinSets(folder, shapes, pins)
        self.maps, self.adopted = self._sets.maps, self._sets.adopted
        self._pairs = capacity.pairs[FLOWS]
        self._table: MappedLines | None = None
        self._source: ResizedTable | HashedTable | None = None
        if self._sets.fresh:
            reached(Step.TAKEOVER_BEGUN)

    def folder_of(self, name: str) -> Path:
        """Return the folder in which a map is pinned now."""
        return self._sets.folder_of(name)

    def prepare(self, publisher: Publisher, keys: tuple[int, int]) -> None:
        """Make the new maps ready for a program, as far as that may take long (steps 2 and 3).

        Args:
            publisher: has adopted the generation in force.
            keys: of the flow hash.

        Raises:
            DataplaneError: the kernel refused.
        """
        if not self._sets.fresh:
            return
        generation = publisher.in_force
        try:
            fill(publisher.mirror, generation, self._sets.fresh)
            self._reached(Step.TAKEOVER_FILLED)
            self._open_tables(generation, keys)
            self.copy()
        except OSError as error:
            raise DataplaneError(f"cannot take over the pinned maps: {error.strerror}") from error

    def _open_tables(self, generation: Generation, keys: tuple[int, int]) -> None:
        old = self._sets.old_flows
        if old < 0:
            return
        self._table = MappedLines(self.maps[FLOWS], self._pairs, writable=True)
        self._placer = Placer(self._table.lines)
        shape = maps.shape_of(old)
        if is_hashed(shape):
            self._source = HashedTable(old, generation, keys, self._pairs)
        else:
            self._source = ResizedTable(old, shape.max_entries // 2, self._pairs)

    def copy(self) -> None:
        """Copy the flows that are new or changed since the last pass (steps 3 and 5).

        Raises:
            OSError: the kernel refused.
        """
        if self._source is None:
            return
        with Jiffies() as clock:
            now = Moment(time.monotonic_ns(), clock.now())
        for copies in self._source.copies(now):
            self._placer.place(copies, jiffies.clock().tick(now.jiffies))
        self._reached(Step.TAKEOVER_COPIED)

    def finish(self) -> None:
        """Copy the rest and put the pins in place, when the new program is attached (7 and 8).

        Raises:
            OSError: the kernel refused.
        """
        if not self._sets.fresh:
            return
        if self._source is not None:
            wait_out_packets()
            self.copy()
            self._say(self._source)
        put_in_place(self._folder, self._reached)
        self._sets.fresh.clear()
        self.close()

    def _say(self, source: ResizedTable | HashedTable) -> None:
        tally = self._placer.tally
        log.info("flows_taken_over", flows=source.flows, copies=tally.placed, crowded=tally.crowded)
        if isinstance(source, HashedTable) and source.networks:
            log.warning(
                "flows_left_behind",
                flows=source.networks,
                reason="the version before kept no whole destination address of VIPs that are "
                "networks: these flows go by the table from now on",
            )

    def close(self) -> None:
        """Close what only the takeover needs; pins stay as they are."""
        if isinstance(self._source, ResizedTable):
            self._source.close()
        if self._table is not None:
            self._placer.close()
            self._table.close()
        self._source = self._table = None
        self._sets.close_old()
