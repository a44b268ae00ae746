# SPDX-License-Identifier: Apache-2.0
"""The load client: `python -m tidegate.lab.load`, run on a client node.

It opens short connections at a bounded rate, each of which asks the same server twice with a pause
in between, and keeps a number of long downloads open. It counts what a user would notice: a
connection that fails, is reset, or gets its second answer from another backend. It reads `stop` on
standard input and writes one JSON object per line:

    {"event": "progress", …}   every half second: totals so far
    {"event": "trouble", …}    each connection that went wrong, when it began, and on which backend
    {"event": "report", …}     the last line: totals

Times are CLOCK_MONOTONIC seconds, which all processes of a machine share.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

PROGRESS_SECONDS: Final = 0.5
_LINE_LIMIT: Final = 4096
_MAX_LAG: Final = 0.02


class Moved(Exception):  # noqa: N818 - what happened, not a fault of ours
    """A connection was answered by another backend than before."""


@dataclass
class Totals:
    """What happened so far.

    Attributes:
        opened: connections begun, short and long.
        completed: short connections with two good answers, and downloads that came in whole.
        failed: could not connect, no answer in time, or an answer that ended early.
        reset: the peer reset an established connection.
        moved: two backends answered on one connection.
        shares: first answers by target and backend.
        downloads: downloads that are running, all of them sound so far.
        bytes: of downloads.
    """

    opened: int = 0
    completed: int = 0
    failed: int = 0
    reset: int = 0
    moved: int = 0
    open: int = 0
    downloads: int = 0
    bytes: int = 0
    shares: dict[str, dict[str, int]] = field(default_factory=dict)

    def answered(self, target: str, backend: str) -> None:
        """Count a connection's first answer."""
        share = self.shares.setdefault(target, {})
        share[backend] = share.get(backend, 0) + 1


@dataclass
class Attempt:
    """One connection, for the report should it go wrong."""

    target: str
    kind: str
    began: float
    stage: str = "connect"
    backend: str | None = None


def emit(event: str, **values: Any) -> None:  # noqa: ANN401 - JSON values
    """Write one line."""
    sys.stdout.write(json.dumps({"event": event, "t": time.monotonic(), **values}) + "\n")
    sys.stdout.flush()


class Load:
    """The running load."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.totals = Totals()
        self.stopping = asyncio.Event()
        self.random = random.Random(options.seed)  # noqa: S311 - pauses, not secrets
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Run until it is stopped or its time is over; then finish what is open."""
        options = self.options
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        loop.add_reader(sys.stdin, self._command)
        loop.call_later(options.seconds, self.stopping.set)
        downloads = [
            asyncio.create_task(self._keep_downloading(target))
            for target in options.target
            for _ in range(options.downloads)
        ]
        progress = asyncio.create_task(self._progress())
        await self._connections()
        if self._tasks:
            await asyncio.wait(self._tasks)
        running = self.totals.downloads
        for task in (*downloads, progress):
            task.cancel()
        await asyncio.gather(*downloads, progress, return_exceptions=True)
        self.totals.downloads = running
        emit("report", **vars(self.totals))

    def _command(self) -> None:
        line = sys.stdin.readline()
        if not line:
            # Whoever started us is gone, so nobody would stop us.
            asyncio.get_running_loop().remove_reader(sys.stdin)
        if not line or line.strip() == "stop":
            self.stopping.set()

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            emit("progress", **vars(self.totals))

    async def _connections(self) -> None:
        """Begin connections evenly in time, targets in turn; never more than the bound at once."""
        options = self.options
        if not options.rate:
            await self.stopping.wait()
            return
        count, due = 0, time.monotonic()
        while not self.stopping.is_set() and count < options.limit:
            if len(self._tasks) < options.concurrency:
                target = options.target[count % len(options.target)]
                attempt = Attempt(target, "short", time.monotonic())
                task = asyncio.create_task(self._attempt(attempt))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                count += 1
            # What a busy machine made us miss is not made up for in a burst.
            due = max(due + 1 / options.rate, time.monotonic() - _MAX_LAG)
            await _either(self.stopping, due - time.monotonic())

    async def _attempt(self, attempt: Attempt) -> None:
        """Open one connection and count how it ends."""
        totals = self.totals
        totals.opened += 1
        totals.open += 1
        try:
            await (self._short(attempt) if attempt.kind == "short" else self._download(attempt))
            totals.completed += 1
        except Moved as error:
            totals.moved += 1
            self._trouble(attempt, "moved", error)
        except ConnectionResetError as error:
            totals.reset += 1
            self._trouble(attempt, "reset", error)
        except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
            totals.failed += 1
            self._trouble(attempt, "failed", error)
        finally:
            totals.open -= 1

    def _trouble(self, attempt: Attempt, how: str, error: BaseException) -> None:
        why = str(error) or type(error).__name__
        emit("trouble", how=how, why=why, **vars(attempt))

    async def _short(self, attempt: Attempt) -> None:
        timeout = self.options.timeout
        async with asyncio.timeout(timeout):
            reader, writer = await _connect(attempt.target)
        try:
            async with asyncio.timeout(timeout):
                attempt.stage = "first"
                attempt.backend = await _ask(reader, writer, attempt.target)
            self.totals.answered(attempt.target, attempt.backend)
            if self.options.dwell:
                attempt.stage = "dwell"
                await asyncio.sleep(self.random.uniform(0, 2 * self.options.dwell))
            async with asyncio.timeout(timeout):
                attempt.stage = "second"
                again = await _ask(reader, writer, attempt.target, last=True)
            if again != attempt.backend:
                raise Moved(f"first {attempt.backend}, then {again}")
        finally:
            writer.transport.abort() if sys.exc_info()[0] else writer.close()

    async def _keep_downloading(self, target: str) -> None:
        while True:
            await self._attempt(Attempt(target, "download", time.monotonic()))
            await asyncio.sleep(0.1)

    async def _download(self, attempt: Attempt) -> None:
        """Check one download line by line: one backend, no line missing or twice."""
        timeout = self.options.timeout
        async with asyncio.timeout(timeout):
            reader, writer = await _connect(attempt.target)
        counted = False
        try:
            attempt.stage = "first"
            request = f"GET /download HTTP/1.0\r\nHost: {attempt.target}\r\n\r\n"
            writer.write(request.encode())
            async with asyncio.timeout(timeout):
                left = await _head(reader)
            number = 0
            while left:
                async with asyncio.timeout(timeout):
                    line = await reader.readuntil(b"\n")
                left -= len(line)
                self.totals.bytes += len(line)
                backend, text, _ = line.decode().split(" ")
                if attempt.backend is None:
                    attempt.backend, attempt.stage = backend, "download"
                    self.totals.answered(attempt.target, backend)
                    self.totals.downloads += 1
                    counted = True
                elif backend != attempt.backend:
                    raise Moved(f"first {attempt.backend}, then {backend}")
                if int(text) != number:
                    raise ValueError(f"line {number} is missing; {int(text)} came instead")
                number += 1
        finally:
            self.totals.downloads -= counted
            writer.transport.abort()


async def _connect(target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = target.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port), limit=_LINE_LIMIT)


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str, *, last: bool = False
) -> str:
    """Ask who answers, and return the backend's name."""
    close = "Connection: close\r\n" if last else ""
    writer.write(f"GET / HTTP/1.1\r\nHost: {target}\r\n{close}\r\n".encode())
    body = await reader.readexactly(await _head(reader))
    return body.decode().strip()


async def _head(reader: asyncio.StreamReader) -> int:
    """Read a response's head and return the length of its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *fields = head.lower().split("\r\n")
    if " 200 " not in status:
        raise ValueError(f"the server says {status!r}")
    lengths = [line.partition(":")[2] for line in fields if line.startswith("content-length:")]
    return int(lengths[0])


async def _either(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, but no longer than this."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="tidegate.lab.load", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--target", action="append", required=True, help="ADDRESS:PORT or [ADDRESS]:PORT; repeat")
    add("--rate", type=float, default=0, help="new connections a second, over all targets")
    add("--dwell", type=float, default=0, help="mean pause between the two requests, seconds")
    add("--downloads", type=int, default=0, help="downloads to keep open, per target")
    add("--limit", type=int, default=100_000, help="connections in all")
    add("--concurrency", type=int, default=2000, help="short connections at once")
    add("--timeout", type=float, default=5, help="seconds for a connect or an answer")
    add("--seconds", type=float, default=300, help="time after which it stops by itself")
    add("--seed", type=int, default=1, help="of the pauses")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    asyncio.run(Load(parse()).run())
