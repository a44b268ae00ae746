# SPDX-License-Identifier: Apache-2.0
"""The way of log lines to stderr: a bounded queue, so that nobody who logs waits for a reader.

Stderr may be a pipe whose reader stands still. A write to it then blocks, for ever if need be; so a
thread writes, and whoever logs only appends to a queue. When the queue is full lines are lost and
counted, and once the reader moves again the log has the number, at the place of the loss.

All of sys.stderr goes this way, also tracebacks and warnings of Python's: nothing else may block.
"""

import atexit
import io
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO

from tidegate.event_log import Event
from tidegate.telemetry.log_format import Logfmt, RepeatFilter

QUEUE_BYTES: Final = 1 << 20
_STDERR: Final = 2
FLUSH_SECONDS: Final = 1.0
"""The end of the process waits for this long at the most for lines that are queued."""


class LineWriter:
    """Writes lines to a file descriptor, in a thread of its own.

    A line that finds no room is lost, and so are those after it until half of the queue is free
    again: a slow reader sees gaps that are few and long. One that cannot be written is lost, too.

    Args:
        notice: makes the line that says how many lines are missing where it stands.
    """

    def __init__(self, fd: int, notice: Callable[[int], str], size: int = QUEUE_BYTES) -> None:
        self._fd = fd
        self._notice = notice
        self._size = size
        self._changed = threading.Condition()  # reentrant: a finalizer may log, anywhere
        self._lines: deque[tuple[bytes, int]] = deque()
        """Each line with the number of lines that are lost if it cannot be written."""
        self._queued = 0
        self._unsaid = 0
        self._is_broken = False
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def offer(self, line: str) -> None:
        """Take a line without its end, or lose and count it; never block."""
        raw = line.encode(errors="backslashreplace") + b"\n"
        with self._changed:
            if not self._has_room(len(raw)):
                self._unsaid += 1
                return
            if self._unsaid:
                self._say_loss()
            self._append(raw, 1)

    def close(self) -> None:
        """Write what is queued, within a bound, and end."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(FLUSH_SECONDS)

    def _has_room(self, length: int) -> bool:
        if self._unsaid:
            return self._queued <= self._size // 2
        return not self._queued or self._queued + length <= self._size

    def _is_late(self) -> bool:
        """Return whether the loss is to be said though no line comes after it."""
        return bool(self._unsaid) and not self._is_broken

    def _say_loss(self) -> None:
        lost, self._unsaid = self._unsaid, 0
        self._append(self._notice(lost).encode() + b"\n", lost)

    def _append(self, raw: bytes, weight: int) -> None:
        self._lines.append((raw, weight))
        self._queued += len(raw)
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._is_late() or self._is_closing)
                if not self._lines and self._is_late():
                    self._say_loss()
                if not self._lines:
                    return
                raw, weight = self._lines.popleft()
            is_written = self._write(raw)
            with self._changed:
                self._queued -= len(raw)
                self._is_broken = not is_written
                self._unsaid += 0 if is_written else weight
                self._changed.notify_all()

    def _write(self, raw: bytes) -> bool:
        left = memoryview(raw)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:  # somebody else made the pipe so
                time.sleep(0.05)
            except OSError:  # the reader has gone, or its disk is full
                return False
        return True


class QueuedHandler(logging.Handler):
    """Formats records where they are logged, and queues the lines."""

    def __init__(self, fd: int, size: int = QUEUE_BYTES) -> None:
        super().__init__()
        self.writer = LineWriter(fd, self._notice, size)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the lines of a record."""
        try:
            self.writer.offer(self.format(record))
        except Exception:  # noqa: BLE001 - a record that cannot be formatted must not end the caller
            self.handleError(record)

    def _notice(self, lost: int) -> str:
        event = Event("log_lost", {"lines": lost, "reason": "nobody read stderr"})
        return self.format(
            logging.LogRecord(__name__, logging.WARNING, __file__, 0, event, None, None)
        )


class _QueuedText(io.TextIOBase):
    """What else is written to sys.stderr, line by line into the same queue."""

    def __init__(self, writer: LineWriter, fd: int) -> None:
        super().__init__()
        self._writer = writer
        self._fd = fd
        self._begun = ""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._writer.offer(line)
        return len(text)


def set_up() -> None:
    """Write the log, and all of sys.stderr, to stderr through a queue until the process ends."""
    fd = _standard_error()
    handler = QueuedHandler(fd)
    handler.addFilter(RepeatFilter())
    handler.setFormatter(Logfmt())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    sys.stderr = _QueuedText(handler.writer, fd)
    atexit.register(handler.writer.close)


def _standard_error() -> int:
    """Return the descriptor of stderr; where it was closed, that of nothing.

    Left free, its number would be the next map's or socket's, and the log would be written there.
    """
    given: TextIO | None = sys.stderr
    if given is not None:
        return given.fileno()
    fd = os.open(os.devnull, os.O_WRONLY)
    return fd if fd == _STDERR else os.dup2(fd, _STDERR)
