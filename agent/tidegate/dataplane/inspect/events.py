# SPDX-License-Identifier: Apache-2.0
"""The reader of the ring buffer with events of sampled flows (bpf/events.h).

The ring buffer is read by libbpf, which libbcc brings: its positions are shared with the kernel,
and need the memory barriers of C. libbpf hands each record to a function with (context, data,
size); the function here is write(2) itself, with a descriptor as its context. So the records go
into a file in memory without a line of Python for each, and come out as one array. What an event
means is not interpreted here.
"""

import ctypes
import errno
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.inspect import map_values
from tidegate.dataplane.kernel import layout
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.model.decision import Decision, EventKind, Reason
from tidegate.model.generation import Identity
from tidegate.spec.state import Event

_SONAME: Final = "libbcc.so.0"
_NAMED: Final = (
    "vip",
    "vip_incarnation",
    "backend",
    "backend_incarnation",
    "kind",
    "decision",
    "reason",
    "generation",
    "slot",
    "protocol",
    "source",
    "destination",
    "source_port",
    "port",
)
_LONGEST_WAIT: Final = 1_000_000
"""Seconds; more would not fit the milliseconds that libbpf takes as an int."""


def _library() -> ctypes.CDLL:
    try:
        # A handle of our own: bcc declares these functions too, for callbacks in Python.
        library = ctypes.CDLL(_SONAME, use_errno=True)
    except OSError as error:
        raise CapabilityError(
            f"cannot load {_SONAME}: install Debian's libbpfcc (apt install python3-bpfcc)"
        ) from error
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.bpf_new_ringbuf.restype = pointer
    library.bpf_new_ringbuf.argtypes = (number, pointer, pointer)
    library.bpf_free_ringbuf.argtypes = (pointer,)
    library.bpf_free_ringbuf.restype = None
    library.bpf_poll_ringbuf.argtypes = (pointer, number)
    library.bpf_consume_ringbuf.argtypes = (pointer,)
    return library


class Reader:
    """The reader of a ring buffer; there may be one at a time. From `with` to its end.

    Args:
        fd: descriptor of the map `events`, which stays open as long as the reader.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> Self:
        """Map the ring buffer.

        Raises:
            CapabilityError: libbcc is not installed.
            DataplaneError: the descriptor is not of a ring buffer, or there is no memory.
        """
        self._library = _library()
        write = ctypes.cast(ctypes.CDLL(None).write, ctypes.c_void_p)
        self._records = os.memfd_create("tidegate-events")
        self._ring = self._library.bpf_new_ringbuf(self._fd, write, self._records)
        if not self._ring:
            number = ctypes.get_errno()
            os.close(self._records)
            raise DataplaneError(f"cannot read the ring buffer of events: {os.strerror(number)}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._library.bpf_free_ringbuf(self._ring)
        os.close(self._records)

    def fileno(self) -> int:
        """Return what select and epoll may wait for: it is readable while there are events."""
        return self._fd

    def read(self, wait: float = 0.0) -> npt.NDArray[np.void]:
        """Take all pending events, oldest first, as records of `layout.EVENT`.

        Args:
            wait: seconds to wait for the first one; other threads run meanwhile.

        Raises:
            DataplaneError: the kernel or the memory refused.
        """
        milliseconds = int(min(wait, _LONGEST_WAIT) * 1000)
        taken = (
            self._library.bpf_poll_ringbuf(self._ring, milliseconds)
            if milliseconds
            else self._library.bpf_consume_ringbuf(self._ring)
        )
        if taken < 0 and taken != -errno.EINTR:
            raise DataplaneError(f"cannot read events: {os.strerror(-taken)}")
        size = os.lseek(self._records, 0, os.SEEK_CUR)
        raw = os.pread(self._records, size, 0)
        os.lseek(self._records, 0, os.SEEK_SET)
        os.ftruncate(self._records, 0)
        return np.frombuffer(raw, layout.EVENT)


class Counts(NamedTuple):
    """Events since the map was created, over all CPUs; lost: above the limit, or the ring full."""

    sent: int
    lost: int


def counts(fd: int) -> Counts:
    """Read the map `event_counts`."""
    found = map_values.per_cpu(fd, layout.EVENT_COUNTERS, 1)
    return Counts(int(found["sent"].sum()), int(found["lost"].sum()))


def named(records: npt.NDArray[np.void]) -> Iterable[Event]:
    """Convert records to the specification's values, without their times."""
    columns = (records[name].tolist() for name in _NAMED)
    for vip, vip_use, chosen, use, kind, decision, reason, *rest, source_port, port in zip(
        *columns, strict=True
    ):
        generation, slot, protocol, source, destination = rest
        yield Event(
            kind=EventKind(kind),
            vip=Identity(vip, vip_use),
            backend=Identity(chosen, use) if chosen else None,
            slot=slot,
            generation=generation,
            decision=Decision(decision) if chosen else None,
            reason=Reason(reason),
            protocol=protocol,
            source=bytes(source),
            destination=bytes(destination),
            source_port=source_port.to_bytes(2),
            port=port.to_bytes(2),
        )
