# SPDX-License-Identifier: Apache-2.0
"""The counters and entries of a data plane, for a thread that is not the agent's loop.

The maps' descriptors stay the same while the data plane is open, and reading a counter disturbs
nothing, so metrics are read from the kernel beside the loop. Only the program's descriptor changes:
the loop records its running times here. Closing waits for a reader, so that no descriptor is read
that has become another file.
"""

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.inspect import events, flow_impact
from tidegate.dataplane.inspect.pinned import Flows
from tidegate.dataplane.kernel import counters, layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.publish.mirror import KEYED
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.model.constants import MAX_VIPS
from tidegate.model.generation import Generation

_BATCH: Final = 1 << 12
_LRU: Final = ("flows", "syns", "fragments", "syn_limits")


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
        live: flows of each VIP id that packets would follow.
        generation: whose ids they are indexed by.
    """

    entries: Mapping[str, int]
    live: npt.NDArray[np.int64]
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
        self._is_closed = False
        self._statistics = -1
        self._last = bpf.ProgramTime(0, 0, 0)
        self.times = RunTimes()
        self.began = (pins / "vip_counts").stat().st_mtime_ns
        """When the counters were made, ns since 1970."""
        shapes = maps.shapes(capacity)
        self.limits = {name: shapes[name].max_entries for name in (*KEYED, *_LRU)}

    def vips(self) -> npt.NDArray[np.void]:
        """Read the counters of the VIPs in force, by id, for the loop; raise DataplaneError."""
        return counters.vip_totals(self._fds, self._publisher.in_force)

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
        return {name: len(found) for name, found in self._publisher.mirror.written.items()}

    def census(self) -> Census:
        """Count entries, which takes a second for some millions; raise as `read`."""
        generation = self._publisher.in_force
        live = np.zeros(MAX_VIPS, np.int64)
        entries = {}
        for name in _LRU:
            found = 0
            key = layout.LIMIT_KEY if name == "syn_limits" else layout.FLOW_KEY
            key = layout.FRAGMENT_KEY if name == "fragments" else key
            value = layout.BUCKET if name == "syn_limits" else layout.FLOW
            uses = flow_impact.ActiveIncarnations.of(generation) if name == "flows" else None
            cursor = bpf.map_batches(self._fds[name], key.itemsize, value.itemsize, _BATCH)
            while True:
                with self._lock:  # for one batch: a close need not wait for all of it
                    self._check()
                    batch = next(cursor, None)
                if batch is None:
                    break
                keys, values, count = batch
                found += count
                if uses is not None and count:
                    words = np.frombuffer(keys, key, count)["vip"]
                    flows = Flows(words, np.frombuffer(values, value, count))
                    followed = uses.tracked(flows, time.monotonic_ns())
                    live += np.bincount(flow_impact.vip_ids(flows)[followed], minlength=MAX_VIPS)
            entries[name] = found
        return Census(entries, live, generation)

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
        with self._lock:
            self._is_closed = True
            if self._statistics >= 0:
                os.close(self._statistics)
                self._statistics = -1
