# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the journal: a thread that writes what the loop hands over.

The loop hands over values that nobody changes any more and goes on. This thread makes lines of
them, writes all that has come since the last time, and waits for the disk once; so a publishing
never waits for the disk, and a crash of the machine loses what came within the last write.

If the disk is full, broken or stuck, the queue fills up to its bound, and what comes then is lost
and counted. `problem` says so, for the status. What was written is whole lines; the next attempt
begins a new file with all that is in force then, so a gap never makes a later line wrong.
"""

import errno
import fcntl
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from tidegate.agent.journal import files, line_format
from tidegate.agent.journal.files import File
from tidegate.agent.journal.limits import EMPTY, Limits, Size, is_full, surplus
from tidegate.dataplane.publish import ledger
from tidegate.errors import AgentError
from tidegate.event_log import EventLog
from tidegate.keyspace.status.document import rfc3339
from tidegate.model.generation import Generation

log = EventLog(__name__)

_QUEUE: Final = 64
"""Generations share their tables, so this many cost little."""
_BATCH: Final = 1 << 20
"""Bytes that are written at once."""
_RETRY_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Published:
    """A generation that came into force.

    Attributes:
        gap: it does not follow the last one that was handed over, so its windows are written too.
    """

    generation: Generation
    origin: line_format.Origin
    gap: bool = False


@dataclass
class _Pending:
    """Lines that are made and not yet written."""

    text: bytes = b""
    generations: int = 0

    @property
    def size(self) -> Size:
        """What they add to a file."""
        return Size(self.generations, len(self.text))


Item: TypeAlias = Published | line_format.RefusalLine | line_format.OrderLine


class Writer:
    """Owns the journal's folder from its creation until it is closed.

    Args:
        folder: made if it is missing.
        limits: what is kept.
        in_force: what is in force now.
        changed: called when `problem` changes.
    """

    def __init__(
        self, folder: Path, limits: Limits, in_force: Generation, changed: Callable[[], None]
    ) -> None:
        """Make and lock the folder.

        Raises:
            AgentError: it cannot be made, or another agent has it.
        """
        self._folder = folder
        self._limits = limits
        self._changed = changed
        self._lock = _lock_folder(folder)
        self._generation = in_force
        self._records: line_format.Records = ledger.records(in_force)
        self._sizes: dict[Path, Size] = {}
        self._file: files.Appender | None = None
        self._queue: queue.Queue[Item | None] = queue.Queue(_QUEUE)
        self._lost = 0
        self.problem = ""
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self, there: Sequence[File]) -> None:
        """Continue where the journal ends, if that is what is in force; else begin a new file.

        Args:
            there: all files as they were read, the oldest first.
        """
        self._sizes = {file.path: file.size for file in there}
        if there and not there[-1].fault and _ends_with(there[-1], self._generation):
            try:
                self._file = files.Appender(there[-1].path, there[-1].size.bytes)
            except OSError as error:
                self._fail(error.strerror or error)
        self._thread.start()

    def write(self, item: Item) -> None:
        """Queue something to write; what does not fit is counted as lost."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._lost += 1

    def close(self, seconds: float = 5.0) -> None:
        """Write what is queued, for at most this long."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("journal_lost", reason="the disk is stuck; what is queued is lost")
            return
        self._close_file()
        os.close(self._lock)

    def _run(self) -> None:
        stopped = False
        while not stopped:
            batch = self._collect()
            stopped = None in batch
            try:
                self._write([item for item in batch if item is not None])
            except OSError as error:
                self._fail(error.strerror or error)
            except Exception as error:  # a line that cannot be made is not worth this thread
                log.exception("journal_failed")
                self._fail(f"{type(error).__name__}: {error}")
            else:
                self._set_problem("")

    def _collect(self) -> list[Item | None]:
        """Return everything that has come; nothing if it is time to try a bad disk again."""
        try:
            batch = [self._queue.get(timeout=_RETRY_SECONDS if self.problem else None)]
        except queue.Empty:
            return []
        while not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return batch

    def _write(self, batch: Sequence[Item]) -> None:
        """Write a batch; what is in force afterwards is known even if that fails."""
        lost, self._lost = self._lost, 0
        if lost:
            log.warning("journal_lost", lines=lost, reason="the disk did not keep up")
            self._close_file()
        pending = _Pending()
        try:
            if not batch and self._file is None:
                self._begin(self._generation)
            for item in batch:
                self._add(pending, item, gap=bool(lost))
                if len(pending.text) > _BATCH:
                    self._flush(pending)
            self._flush(pending)
        finally:
            published = [item.generation for item in batch if isinstance(item, Published)]
            if published and self._generation is not published[-1]:
                self._generation = published[-1]
                self._records = self._records_of(published[-1]).all

    def _add(self, pending: _Pending, item: Item, *, gap: bool) -> None:
        if not isinstance(item, Published):
            if self._file is None:
                self._begin(self._generation)
            pending.text += line_format.encode(item)
            return
        records = self._records_of(item.generation)
        if item.gap:
            self._flush(pending)
            self._close_file()
        if self._file is None and (gap or item.gap):
            # Windows may have opened in between: the base has all of them, and the line the rest.
            self._begin(item.generation)
            records = ledger.Records(records.all, {})
        elif self._file is None or is_full(self._size().plus(pending.size), self._limits):
            self._flush(pending)
            self._begin(self._generation)
        pending.text += line_format.encode(
            line_format.generation_line(item.generation, records, item.origin)
        )
        pending.generations += 1
        self._generation, self._records = item.generation, records.all

    def _records_of(self, generation: Generation) -> ledger.Records:
        return ledger.following(generation, self._generation, self._records)

    def _begin(self, generation: Generation) -> None:
        """Begin a new file with all that this generation holds."""
        text = line_format.encode(line_format.base_line(generation, rfc3339(time.time())))
        if 2 * len(text) > self._limits.bytes:
            raise OSError(errno.EFBIG, f"journal.bytes is less than twice one file ({len(text)})")
        self._close_file()
        self._make_room(len(text))
        path = files.next_path(self._folder)
        self._file = files.Appender.create(path, text)
        self._sizes[path] = Size(0, len(text))

    def _flush(self, pending: _Pending) -> None:
        if pending.text and self._file is not None:
            self._make_room(len(pending.text))
            self._file.append(pending.text)
            self._sizes[self._file.path] = self._size().plus(pending.size)
        pending.text, pending.generations = b"", 0

    def _size(self) -> Size:
        return self._sizes[self._file.path] if self._file is not None else EMPTY

    def _make_room(self, coming: int) -> None:
        there = sorted(self._sizes)
        for path in there[: surplus([self._sizes[p] for p in there], coming, self._limits)]:
            path.unlink(missing_ok=True)
            del self._sizes[path]

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _fail(self, reason: object) -> None:
        self._close_file()
        self._set_problem(f"the journal is not written: {self._folder}: {reason}")

    def _set_problem(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            if problem:
                log.warning("journal_unwritten", reason=problem)
            else:
                log.warning("journal_written_again")
            self._changed()


def _ends_with(file: File, generation: Generation) -> bool:
    changes = [
        line
        for line in file.lines
        if isinstance(line, line_format.BaseLine | line_format.GenerationLine)
    ]
    if not changes:
        return False
    last = changes[-1]
    return (last.number, last.digest) == (generation.number, generation.digest)


def _lock_folder(folder: Path) -> int:
    """Make the folder and lock it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise AgentError(f"state_dir: {folder} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise AgentError(
            f"state_dir: another agent writes the journal in {folder}; choose another folder"
        ) from error
    except OSError as error:
        os.close(fd)
        raise AgentError(f"state_dir: {folder} cannot be locked: {error.strerror}") from error
    return fd
