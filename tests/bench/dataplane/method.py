# SPDX-License-Identifier: Apache-2.0
"""How a figure is taken: test runs of a wrapper around a program, and around an empty one.

A sample is the difference of the two, taken one after the other with nothing else on the CPU, and
between two probes: short runs of the empty loop. The host of a virtual machine may slow it down at
any time; where a probe was slower than SLOW times the fastest one ever, the sample does not count.
Cases take turns, so that whatever drifts is in all of them; before its turn a case brings the
caches to where they are when its packets are the only ones.
"""

import ctypes
import gc
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Final, NamedTuple, Protocol

from tidegate.dataplane.kernel import syscalls as bpf

SLOW: Final = 1.1
PROBE: Final = 100_000
"""Turns of the empty loop: about a millisecond."""
LEAST: Final = 3
"""Samples that a figure is made of, whatever the speed."""
SAMPLE: Final = 4_000_000
"""ns that a run takes, about."""
MOST: Final = 200_000
"""Packets of a run, whatever they cost."""
_LIVE_FRAMES: Final = 1 << 1
_BATCH: Final = 64
_PAUSE: Final = 0.002
"""Seconds to wait for full speed, each time that it is not there."""


class Ran(NamedTuple):
    """ns per packet, and what the program returned for the last one."""

    each: float
    verdict: int


class _TestRun(ctypes.Structure):
    """`union bpf_attr` of include/uapi/linux/bpf.h, the part `test`."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_uint64),
        ("ctx_out", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


def run(program: int, frame: bytes, count: int, interface: int = 0) -> Ran:
    """Run a program on a frame so many times, and time it by the monotonic clock.

    The kernel's own figure is in whole ns. The system call's own time is the same in every run of
    as many packets, so it is not in a difference.

    Args:
        program: descriptor.
        frame: as it is before the first time; the kernel does not restore it.
        count: times.
        interface: where what the program transmits leaves; 0: nothing leaves.
    """
    source = ctypes.create_string_buffer(frame, len(frame))
    attr = _TestRun(prog_fd=program, repeat=count)
    attr.data_in, attr.data_size_in = ctypes.addressof(source), len(frame)
    if interface:
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        context = (ctypes.c_uint32 * 6)(0, len(frame), 0, interface, 0, 0)
        attr.ctx_in, attr.ctx_size_in = ctypes.addressof(context), ctypes.sizeof(context)
        attr.flags, attr.batch_size = _LIVE_FRAMES, _BATCH
    buffer = ctypes.create_string_buffer(bytes(attr), ctypes.sizeof(attr))
    began = time.perf_counter_ns()
    bpf._call(bpf._PROG_TEST_RUN, buffer)
    took = time.perf_counter_ns() - began
    return Ran(took / count, _TestRun.from_buffer(buffer).retval)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep other processes, and Python's garbage collector, off this CPU for some milliseconds."""
    gc.disable()
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        gc.enable()


class Sample(NamedTuple):
    """A difference in ns, and the slower of the probes around it, in ns."""

    value: float
    probe: float


class Case(Protocol):
    """What can be measured: its name, and how to take one difference."""

    @property
    def name(self) -> str:
        """Name the row or the price, and the program."""

    @property
    def yields(self) -> bool:
        """Say whether other threads of this CPU must run while it is measured."""

    def prepare(self) -> None:
        """Bring state and caches to where they are in the long run; called before each sample."""

    def difference(self) -> float:
        """Run both, and return by how many ns the one takes longer than the other."""

    def confirm(self) -> None:
        """Raise unless all packets since `prepare` took the way that they were meant to."""


class Figure(NamedTuple):
    """The median of samples, the range of the middle 80 % of them, and their number.

    Where too few samples count, they are the best that there are, and `is_clean` is false.
    """

    median: float
    low: float
    high: float
    count: int
    is_clean: bool


def figure(samples: Sequence[Sample], limit: float) -> Figure:
    """Return what samples come to, where those count whose probe was within the limit."""
    best = sorted(samples, key=lambda each: each.probe)
    clean = _counting(samples, limit)
    values = sorted(each.value for each in best[: max(clean, LEAST)])
    edge = len(values) // 10
    return Figure(
        median=statistics.median(values),
        low=values[edge],
        high=values[-1 - edge],
        count=len(values),
        is_clean=clean >= LEAST,
    )


class Bench:
    """Takes samples of cases in turn, until each has enough or time is over.

    Attributes:
        fastest: ns of a turn of the empty loop at full speed: the slower of two probes in a row, so
            that it is not a moment's luck.
    """

    def __init__(self, empty: int) -> None:
        self._empty = empty
        self.fastest = min(max(self._probe(), self._probe()) for _ in range(100))

    def measure(
        self, cases: Sequence[Case], wanted: int, seconds: float, slow: float = SLOW
    ) -> dict[str, Figure]:
        """Measure all, and return the figure of each case by its name.

        Args:
            cases: with names of which no two are equal.
            wanted: samples of each that count.
            seconds: after which it makes do with what there is.
            slow: times the fastest probe, from which on samples do not count.
        """
        end = time.monotonic() + seconds
        samples: dict[str, list[Sample]] = {case.name: [] for case in cases}
        missing = list(cases)
        while missing:
            for case in missing:
                while self._probe() > slow * self.fastest and time.monotonic() < end:
                    time.sleep(_PAUSE)
                samples[case.name].append(self._sample(case))
            limit = slow * self.fastest
            missing = [case for case in cases if _counting(samples[case.name], limit) < wanted]
            if time.monotonic() > end:  # there is a figure of each, whatever the speed
                missing = [case for case in missing if len(samples[case.name]) < LEAST]
            _say(len(cases) - len(missing), len(cases))
        return {name: figure(found, slow * self.fastest) for name, found in samples.items()}

    def _sample(self, case: Case) -> Sample:
        case.prepare()
        with nullcontext() if case.yields else undisturbed():
            before = self._probe()
            value = case.difference()
            after = self._probe()
        case.confirm()
        self.fastest = min(self.fastest, max(before, after))
        return Sample(value, max(before, after))

    def _probe(self) -> float:
        return run(self._empty, bytes(64), PROBE).each


def _counting(samples: Sequence[Sample], limit: float) -> int:
    return sum(each.probe <= limit for each in samples)


def _say(done: int, of: int) -> None:
    """Print how far it is, if stderr is a terminal."""
    if sys.stderr.isatty():
        print(f"\r{done} of {of} measured ", end="" if done < of else "\n", file=sys.stderr)
