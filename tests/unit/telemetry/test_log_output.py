# SPDX-License-Identifier: Apache-2.0
"""Lines on their way to stderr, with real pipes that somebody reads, or nobody."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from support.logs import logfmt
from tidegate.event_log import Event
from tidegate.telemetry.log_format import Logfmt
from tidegate.telemetry.log_output import FLUSH_SECONDS, QueuedHandler

SIZE = 100_000


def record(number: int) -> logging.LogRecord:
    event = Event("tick", {"number": number, "filling": "x" * 100})
    return logging.LogRecord("tidegate.x", logging.INFO, "x.py", 1, event, None, None)


class Pipe:
    """A pipe, and a handler that writes to it."""

    def __init__(self) -> None:
        self.reader, self.end = os.pipe()
        self.handler = QueuedHandler(self.end, SIZE)
        self.handler.setFormatter(Logfmt())

    def read(self, count: int, begin: int = 0) -> int:
        """Read what has become of this many ticks, each at its place; return how many are lost."""
        expected, lost, text = begin, 0, ""
        while expected < begin + count:
            text += os.read(self.reader, 65536).decode()
            *lines, text = text.split("\n")
            for fields in map(logfmt.read, lines):
                if fields["event"] == "log_lost":
                    lost += int(fields["lines"])
                    expected += int(fields["lines"])
                else:
                    assert int(fields["number"]) == expected
                    expected += 1
        assert (expected, text) == (begin + count, "")
        return lost


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reader)  # so that a write that is stuck fails, and the thread ends
    made.handler.writer.close()
    os.close(made.end)


def test_lines_come_out_in_order(pipe: Pipe) -> None:
    """Each line that somebody logs is one line in the pipe."""
    for begin in range(0, 1000, 100):
        for number in range(begin, begin + 100):
            pipe.handler.handle(record(number))
        assert pipe.read(100, begin) == 0


def test_a_pipe_that_nobody_reads_delays_no_caller(pipe: Pipe) -> None:
    """Logging goes on at once, the loss is counted, and said at its place when the pipe moves."""
    slowest = 0.0
    for number in range(5000):
        before = time.monotonic()
        pipe.handler.handle(record(number))
        slowest = max(slowest, time.monotonic() - before)
    assert slowest < 0.5
    assert pipe.handler.writer._queued <= SIZE
    assert pipe.read(5000) > 3000
    pipe.handler.handle(record(5000))
    assert pipe.read(1, 5000) == 0


def test_a_stuck_pipe_does_not_hold_the_end_up(pipe: Pipe) -> None:
    """What is queued has a second to get out; then the process ends without it."""
    for number in range(2000):
        pipe.handler.handle(record(number))
    before = time.monotonic()
    pipe.handler.writer.close()
    assert time.monotonic() - before < FLUSH_SECONDS + 0.5


def test_a_reader_that_has_gone_is_no_fault(pipe: Pipe) -> None:
    """Lines are lost then; whoever logs does not learn of it, and nothing spins."""
    os.close(pipe.reader)
    pipe.reader = os.dup(0)
    before = time.process_time()
    for number in range(10):
        pipe.handler.handle(record(number))
    time.sleep(0.3)
    assert time.process_time() - before < 0.2


PROGRAM = """
import logging, sys
from tidegate.telemetry import log_output
log_output.set_up()
for number in range({count}):
    logging.getLogger("x").warning("line %d of many that are each as long as this", number)
logging.getLogger("x").warning("too few %d %d", 1)
print("said", file=sys.stderr)
raise SystemError("the end")
"""


def test_lines_are_written_before_a_crash_is_over() -> None:
    """Log, prints and the traceback come out in order, and the process ends with its code."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(count=3)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [logfmt.read(line)["level"] for line in lines[:3]] == ["WARNING"] * 3
    assert "Logging error" in done.stderr
    assert lines.index("said") < lines.index("SystemError: the end")
    assert lines[-1] == "SystemError: the end"


def test_a_process_with_a_stuck_stderr_crashes_promptly() -> None:
    """Neither its log nor its traceback keeps it from ending."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(count=5000)], stderr=subprocess.PIPE
    ) as process:
        assert process.wait(20) == 1
