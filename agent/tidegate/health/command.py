# SPDX-License-Identifier: Apache-2.0
"""A check by a program of the operator's: exit code 0 passes.

Whether programs may be run at all is for the agent's file to say. One that runs is nobody's friend:

* It has no capabilities and no way to get any (`renounce`), so it cannot set the mark that it is
  told, and does not travel the data path by itself. Its environment is the five variables below and
  no others; its folder is `/`; it has the usual limit of descriptors, and is the first to be ended
  when memory lacks.
* Of what it says on stderr the end is kept. The rest is read and thrown away, 64 KiB in 20 ms, so
  that one which says much is slowed and not blocked, and costs neither memory nor the loop's time.
  What it says on stdout goes nowhere.
* It ends when the process ends that was started, whoever still holds its pipe; or at the limit.
  Then its whole process group is killed. A program that leaves its session (setsid) is out of
  reach: TasksMax and MemoryMax of the agent's unit bound what it may do.
* One that cannot be killed (it hangs in a system call, as on a dead NFS server) is not waited for.
  Until it is gone the check is not made again, which is this host's fault and is named so; so is a
  program that is missing or cannot be started.
"""

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tidegate.health.blame import lacking
from tidegate.health.deadline import Deadline
from tidegate.health.renounce import executor
from tidegate.health.result import Result
from tidegate.health.tcp import Destination

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

DESCRIPTORS: Final = 8
"""Most that one has open in this process, while it is started: pipes, /dev/null and a pidfd."""

_SHOWN: Final = 200
_KEPT: Final = 4096
"""Bytes of stderr."""
_READ: Final = 65536
"""Bytes that one read takes: what a pipe holds."""
_PAUSE: Final = 0.02
"""Seconds between two reads."""
_DESCRIPTOR_LIMIT: Final = 1024
"""Of a program; more makes those that use select(2) fail."""
_KILLED_WITHIN: Final = 0.5
"""Seconds in which a killed process is gone, unless it hangs in a system call."""
_ENDED_FIRST: Final = b"1000"
"""The most of oom_score_adj."""


class _Threads:
    """Threads that start programs, made when there is a first one; those of one loop."""

    def __init__(self) -> None:
        self.pool: ThreadPoolExecutor | None = None
        self.unkilled: dict[str, subprocess.Popen[bytes]] = {}
        """By backend."""


_OF_LOOP: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Threads]" = (
    weakref.WeakKeyDictionary()
)


async def run(
    destination: Destination, command: tuple[str, ...], backend: str, limit: float
) -> Result:
    """Run a program, without a shell, in a session of its own that ends with it.

    Args:
        destination: goes to the program as TIDEGATE_ADDRESS, TIDEGATE_PORT and TIDEGATE_MARK.
        command: the program's path and its arguments.
        backend: `pool/name`, as TIDEGATE_BACKEND.
        limit: seconds, after which it is killed.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    threads = _OF_LOOP.setdefault(loop, _Threads())
    last = threads.unkilled.get(backend)
    if last is not None and last.poll() is None:
        reason = f"{command[0]} of the last check (process {last.pid}) cannot be killed."
        return Result("host", reason, 0.0)
    threads.unkilled.pop(backend, None)
    deadline = Deadline(limit)
    try:
        process = await _started(threads, command, _environment(destination, backend), deadline)
    except TimeoutError:
        reason = f"{command[0]} could not be started within {limit:g} s: does its file system hang?"
        return Result("host", reason, loop.time() - began)
    except OSError as error:
        return lacking(error, loop.time() - began, f"Cannot run {command[0]}")
    try:
        code, said = await _ended(process, deadline)
    except TimeoutError:
        return Result("timeout", f"It did not end within {limit:g} s.", loop.time() - began)
    except OSError as error:
        return lacking(error, loop.time() - began, f"Cannot watch {command[0]}")
    finally:
        _kill(process)
        if process.returncode is None and not await _is_gone(process):
            threads.unkilled[backend] = process
    return _judge(code, said, loop.time() - began)


def _environment(destination: Destination, backend: str) -> dict[str, str]:
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "TIDEGATE_BACKEND": backend,
        "TIDEGATE_ADDRESS": destination.address,
        "TIDEGATE_PORT": str(destination.port),
        "TIDEGATE_MARK": str(destination.mark),
    }


async def _started(
    threads: _Threads, command: tuple[str, ...], environment: dict[str, str], deadline: Deadline
) -> subprocess.Popen[bytes]:
    """Return the process; one that is started too late is killed."""
    if threads.pool is None:
        threads.pool = executor()
    started = threads.pool.submit(_start, command, environment)
    waiting = asyncio.wrap_future(started)
    is_taken = False
    try:
        await asyncio.wait({waiting}, timeout=max(deadline.left(), 0.0))
        is_taken = waiting.done()
    finally:
        if not is_taken:
            waiting.cancel()
            started.add_done_callback(_end_late)
    if not is_taken:
        raise TimeoutError
    return waiting.result()


def _start(command: tuple[str, ...], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=environment,
        cwd="/",
        start_new_session=True,
    )
    # A moment after its start; before it, there would have to be a program between.
    with contextlib.suppress(OSError, ValueError):  # it may have ended
        Path(f"/proc/{process.pid}/oom_score_adj").write_bytes(_ENDED_FIRST)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        usual = min(_DESCRIPTOR_LIMIT, hard) if hard >= 0 else _DESCRIPTOR_LIMIT
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (usual, hard))
    return process


async def _ended(process: subprocess.Popen[bytes], deadline: Deadline) -> tuple[int, bytes]:
    """Return how a process ended, and the end of what it said.

    Raises:
        TimeoutError: it did not.
        OSError: it cannot be watched.
    """
    assert process.stderr is not None  # noqa: S101 - a pipe
    pidfd = os.pidfd_open(process.pid)
    said = _Said(process.stderr.fileno())
    try:
        await deadline.readable(pidfd)
        said.take()
    finally:
        said.stop()
        os.close(pidfd)
    # The group's number is nobody else's before the process has been waited for.
    _kill_group(process.pid)
    return process.wait(), said.end


class _Said:
    """Reads a pipe seldom, and keeps the end."""

    def __init__(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self.end = b""
        self._pipe = pipe
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(pipe, self._readable)

    def take(self) -> bool:
        """Read once; return whether there may be more."""
        try:
            data = os.read(self._pipe, _READ)
        except BlockingIOError:
            return True
        self.end = (self.end + data)[-_KEPT:]
        return bool(data)

    def stop(self) -> None:
        """Read no more."""
        self._loop.remove_reader(self._pipe)
        if self._timer is not None:
            self._timer.cancel()

    def _readable(self) -> None:
        self._loop.remove_reader(self._pipe)
        if self.take():
            self._timer = self._loop.call_later(
                _PAUSE, self._loop.add_reader, self._pipe, self._readable
            )


def _kill_group(number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(number, signal.SIGKILL)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill all of its group, unless it was waited for, and close its pipe."""
    if process.returncode is None:
        _kill_group(process.pid)
    if process.stderr is not None:
        process.stderr.close()


def _end_late(started: "Future[subprocess.Popen[bytes]]") -> None:
    """End a process for which nobody waits any more; on the thread that started it."""
    if started.cancelled() or started.exception() is not None:
        return
    process = started.result()
    _kill(process)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILLED_WITHIN)


async def _is_gone(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a killed process has ended; if so, nothing is left of it."""
    with contextlib.suppress(OSError):  # and TimeoutError
        pidfd = os.pidfd_open(process.pid)
        try:
            await Deadline(_KILLED_WITHIN).readable(pidfd)
        finally:
            os.close(pidfd)
    return process.poll() is not None


def _judge(code: int, said: bytes, seconds: float) -> Result:
    if code == 0:
        return Result("passed", "", seconds)
    if code == -signal.SIGKILL:
        reason = "It was killed, not by us: does this host or the agent's unit lack memory?"
        return Result("host", reason, seconds)
    last = said.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
    how = f"exit code {code}" if code > 0 else f"signal {-code}"
    return Result("mismatch", f"It ended with {how}: {last[0][:_SHOWN]}.", seconds)
