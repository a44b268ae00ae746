# SPDX-License-Identifier: Apache-2.0
"""The counters and entries of a data plane, for a thread that is not the agent's loop.

The maps' descriptors stay the same while the data plane is open, and reading a counter disturbs
nothing, so metrics are read from the kernel beside the loop. The tables that packets write stay
mapped: to count a million entries takes some 20 ms and no call. Only the program's descriptor
changes: the loop records its running times here. Closing waits for a reader, so that no descriptor
is read that has become another file.
"""

import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.inspect import events, live_flows
from tidegate.dataplane.kernel import counters, layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.jiffies import Jiffies, clock
from tidegate.dataplane.kernel.lines import MappedLines
from tidegate.dataplane.kernel.memory import array_memory
from tidegate.dataplane.publish.mirror import KEYED
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.model.constants import MAX_BACKENDS, MAX_VIPS, VIP_PLACES
from tidegate.model.generation import Generation
from tidegate.spec.limit import FRACTION

_LINES: Final = ("flows", "syns", "fragments")
_CELLS: Final = ("syn_limits", "mark_limits")


class CounterSample(NamedTuple):
    """The result of reading the kernel's counters once.

    Attributes:
        generation: whose ids they are indexed by.
        by_cpu: packets of each verdict and CPU.
    """

    generation: Generation
    totals: counters.Totals
    by_cpu: npt.NDArray[np.uint64]
    events: events.Counts


class Census(NamedTuple):
    """A count of the entries that packets have written.

    Attributes:
        entries: of each map.
        vips: live flows of each VIP id.
        backends: live flows of each backend id.
        generation: whose ids they are indexed by.
    """

    entries: Mapping[str, int]
    vips: npt.NDArray[np.int64]
    backends: npt.NDArray[np.int64]
    generation: Generation


class RunTimes(NamedTuple):
    """Running time of the programs since the agent started."""

    nanoseconds: int = 0
    runs: int = 0


class CounterReader:
    """Reads counters and counts entries, until the data plane is closed.

    Args:
        fds: descriptors of the maps by name.
        publisher: knows the generation in force.
        capacity: sizes of the maps.
        pins: folder of the pins.
    """

    def __init__(
        self, fds: Mapping[str, int], publisher: Publisher, capacity: maps.Capacity, pins: Path
    ) -> None:
        self._fds = fds
        self._publisher = publisher
        self._lock = threading.Lock()
        self._counting = threading.Lock()  # of its own: a scrape need not wait for a census
        self._is_closed = False
        self._statistics = -1
        self._last = bpf.ProgramTime(0, 0, 0)
        self.times = RunTimes()
        self.began = (pins / "vip_counts").stat().st_mtime_ns
        """When the counters were made, ns since 1970."""
        shapes = maps.shapes(capacity)
        self.limits = {name: shapes[name].max_entries for name in (*KEYED, *_CELLS)}
        self.limits["vips"] = VIP_PLACES  # of one image
        self.limits |= {name: getattr(capacity, name) for name in _LINES}
        with ExitStack() as undo:
            self._jiffies = undo.enter_context(Jiffies())
            self._lines = {
                name: undo.enter_context(MappedLines(fds[name], capacity.pairs[name]))
                for name in _LINES
            }
            self._opened = undo.pop_all()

    def outcomes(self) -> npt.NDArray[np.uint64]:
        """Read `counters.packet_outcomes` in force, for the loop; raise DataplaneError."""
        return counters.packet_outcomes(*counters.vip_totals(self._fds, self._publisher.in_force))

    def read(self) -> CounterSample:
        """Read all counters, of one moment as far as packets allow.

        Raises:
            DataplaneError: the kernel refused, or the data plane is closed.
        """
        with self._lock:
            self._check()
            generation = self._publisher.in_force
            return CounterSample(
                generation,
                counters.read(self._fds, generation),
                counters.per_cpu_packets(self._fds),
                events.counts(self._fds["event_counts"]),
            )

    def written(self) -> dict[str, int]:
        """Return the number of entries of each map that the agent writes."""
        mirror = self._publisher.mirror
        counts = {name: len(found) for name, found in mirror.written.items()}
        return {"vips": len(mirror.images.in_force), **counts}

    def census(self) -> Census:
        """Count entries; raise as `read`."""
        with self._counting:
            self._check()
            generation, tick = self._publisher.in_force, clock().tick(self._jiffies.now())
            rules = live_flows.Rules.of(generation, clock())
            vips, backends = np.zeros(MAX_VIPS, np.int64), np.zeros(MAX_BACKENDS, np.int64)
            for part in live_flows.read(self._lines["flows"].lines, tick):
                is_live = rules.live(part)
                live_flows.count(vips, part.vip[is_live])
                live_flows.count(backends, part.backend[is_live])
            entries = {name: _taken(table) for name, table in self._lines.items()}
            entries |= {name: self._spent(name) for name in _CELLS}
            return Census(entries, vips, backends, generation)

    def _spent(self, name: str) -> int:
        """Count the cells of which source prefixes have taken something in the last second."""
        size = self.limits[name] * layout.LIMIT_CELL.itemsize
        cells = np.frombuffer(array_memory(self._fds[name], size), layout.LIMIT_CELL)
        full = self._jiffies.now() - clock().hz << FRACTION
        return int(np.count_nonzero(cells > np.uint64(full)))

    def _check(self) -> None:
        if self._is_closed:
            raise DataplaneError("the data plane is closed")

    def measure_run_times(self) -> None:
        """Have the kernel measure the time of every program of the host until this is closed.

        Raises:
            CapabilityError: it may not.
        """
        if self._statistics >= 0:
            return
        try:
            self._statistics = bpf.enable_stats()
        except OSError as error:
            raise CapabilityError(
                f"program_stats: the kernel does not measure programs ({error.strerror}): it takes "
                "CAP_SYS_ADMIN and Linux 5.8"
            ) from error

    def record_run_time(self, program: int) -> None:
        """Record how long the program in force has run; call it on the loop's thread."""
        if self._statistics < 0:
            return
        now = bpf.program_time(program)
        last = self._last if self._last.id == now.id else bpf.ProgramTime(now.id, 0, 0)
        self.times = RunTimes(
            self.times.nanoseconds + now.nanoseconds - last.nanoseconds,
            self.times.runs + now.runs - last.runs,
        )
        self._last = now

    def close(self) -> None:
        """End reading; wait for a read that is under way."""
        with self._lock, self._counting:
            if not self._is_closed:
                self._opened.close()
            self._is_closed = True
            if self._statistics >= 0:
                os.close(self._statistics)
                self._statistics = -1


def _taken(table: MappedLines) -> int:
    return int(np.count_nonzero(table.lines["owners"]))
