# SPDX-License-Identifier: Apache-2.0
"""The stream of flow events of a pinned data plane, with names and wall-clock times.

It needs no agent: ring buffer, counters and the ledger with the names are all pinned. A ring buffer
has one reader, since each event can be read once; a lock on a folder beside the pins ensures that.
An agent that traces flows is that reader, and forwards what it reads. What a record is, and how it
is read, is in `events`.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.inspect import events
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.publish import ledger, ledger_bytes
from tidegate.errors import CapabilityError, DataplaneError, RingTaken
from tidegate.model.address import unpacked
from tidegate.model.generation import Identity
from tidegate.model.tag import PROTOCOLS
from tidegate.spec.state import Event

_RING: Final = ("events", "event_counts")
_LEDGERS: Final = ("ledger", "wide_ledger")
_LOCK: Final = "events-reader"
_PROTOCOL_NAMES: Final = {number: name for name, number in PROTOCOLS.items()}
_SECOND: Final = 1_000_000_000


class EventSource(Protocol):
    """Where events come from: the ring buffer, or the agent that reads it."""

    def read(self, wait: float) -> npt.NDArray[np.void]:
        """Return pending events, oldest first; wait this many seconds for the first one."""

    def lost(self) -> int:
        """Return how many events were lost since the last call, or since the source was opened."""


class RingReader:
    """The one reader of a data plane's ring buffer, from `with` to its end.

    Args:
        pins: the folder of its pins.
    """

    def __init__(self, pins: Path) -> None:
        self._pins = pins

    def __enter__(self) -> Self:
        """Open the pins.

        Raises:
            RingTaken: another process reads it.
            DataplaneError: nothing is pinned there.
            CapabilityError: not allowed.
        """
        with ExitStack() as undo:
            ring, self._counts = _opened(self._pins, _RING, undo)
            undo.callback(os.close, _lock(self._pins / _LOCK))
            self._reader = undo.enter_context(events.Reader(ring))
            self._counted = events.counts(self._counts)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def read(self, wait: float) -> npt.NDArray[np.void]:
        """See `events.Reader.read`."""
        return self._reader.read(wait)

    def lost(self) -> int:
        """Return how many events the kernel lost since the last call, or since the opening."""
        before, self._counted = self._counted, events.counts(self._counts)
        return self._counted.lost - before.lost


class NamedEvents:
    """Events with the names of VIPs and backends, from `with` to its end.

    Args:
        pins: the folder of the data plane's pins.
        source: where the events come from.
    """

    def __init__(self, pins: Path, source: EventSource) -> None:
        self._pins = pins
        self._source = source

    def __enter__(self) -> Self:
        """Open the pins.

        Raises:
            DataplaneError: nothing is pinned there.
            CapabilityError: not allowed.
        """
        with ExitStack() as undo:
            ledgers = _opened(self._pins, _LEDGERS, undo)
            self._ledgers = dict(zip(_LEDGERS, ledgers, strict=True))
            self._read_names()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def _read_names(self) -> None:
        found = ledger.contents(ledger_bytes.read(self._ledgers))
        self._vips = {p.identity: n for n, p in found.vips.items()}
        self._backends = {p.identity: k for k, p in found.backends.items()}
        self.samples = any(placed.vip.flow_sampling for placed in found.vips.values())

    def lost(self) -> int:
        """Return how many events were lost since the last call, or since the source was opened."""
        return self._source.lost()

    def read(self, wait: float) -> Iterator[dict[str, Any]]:
        """Return pending events, oldest first; raise as the source does.

        Args:
            wait: seconds to wait for the first one.
        """
        records = self._source.read(wait)
        found = list(events.named(records))
        if any(event.vip not in self._vips for event in found) or any(
            event.backend and event.backend not in self._backends for event in found
        ):
            self._read_names()  # of a generation that was published since they were last read
        return map(self._described, found, _wall_clock(records))

    def _described(self, event: Event, at: str) -> dict[str, Any]:
        """Describe an event; a name is None where the ledger no longer has the id."""
        use = event.backend or Identity(0, 0)
        key = self._backends.get(use)
        decision = event.decision
        return {
            "time": at,
            "event": event.kind.name.lower(),
            "vip": self._vips.get(event.vip),
            "vip_id": event.vip.id,
            "vip_incarnation": event.vip.incarnation,
            "protocol": _PROTOCOL_NAMES.get(event.protocol, str(event.protocol)),
            "source": str(unpacked(event.source)),
            "source_port": int.from_bytes(event.source_port),
            "destination": str(unpacked(event.destination)),
            "port": int.from_bytes(event.port),
            "pool": key.pool if key else None,
            "backend": key.name if key else None,
            "backend_id": use.id or None,
            "backend_incarnation": use.incarnation or None,
            "slot": event.slot,
            "generation": event.generation or None,
            "decision": None if decision is None else decision.name.lower(),
            "reason": event.reason.name.lower() if event.reason else None,
        }


def _wall_clock(records: npt.NDArray[np.void]) -> Iterator[str]:
    """Yield the times of records, of the monotonic clock, as UTC with microseconds."""
    offset = time.time_ns() - time.monotonic_ns()
    for stamp in records["time"].tolist():
        seconds, rest = divmod(stamp + offset, _SECOND)
        yield f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06}Z"


def _opened(pins: Path, names: Sequence[str], undo: ExitStack) -> list[int]:
    """Open pinned maps; `undo` closes the descriptors."""
    found = []
    for name in names:
        found.append(_open(pins / name))
        undo.callback(os.close, found[-1])
    return found


def _open(path: Path) -> int:
    try:
        return bpf.open_pin(str(path))
    except FileNotFoundError as error:
        raise DataplaneError(
            f"there is no data plane in {path.parent} ({path.name} is missing): name its pin_dir, "
            "or start the agent"
        ) from error
    except PermissionError as error:
        raise CapabilityError(f"may not open {path}: run as root") from error


def _lock(path: Path) -> int:
    path.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    whose = path.parent.stat()
    if os.fstat(fd).st_uid != whose.st_uid:  # root's command: the agent must get the lock later
        os.fchown(fd, whose.st_uid, whose.st_gid)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise RingTaken(
            f"another process reads the events of {path.parent}; there may be one reader at a time"
        ) from error
    return fd
