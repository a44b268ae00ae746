# SPDX-License-Identifier: Apache-2.0
"""Starts processes in a namespace, and ends all that runs in one.

Signals go through a pidfd whose process was checked to be in the namespace after the pidfd was
opened, so a pid that was reused in between is never hit.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidegate.errors import LabError
from tidegate.lab import netns

TERM_GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the rack, as a place to run things in."""

    name: str
    namespace: str

    def popen(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":  # noqa: ANN401 - subprocess.Popen's own options
        """Start a process here; options as for `subprocess.Popen`.

        Raises:
            LabError: the program does not exist, or the node is gone.
        """
        with netns.entered(self.namespace):
            try:
                return subprocess.Popen(argv, **options)
            except FileNotFoundError as error:
                raise LabError(f"{self.name}: there is no program {argv[0]!r}") from error

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30,
        check: bool = True,
        text: str | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program here to its end and return what it said.

        Args:
            argv: program and arguments.
            timeout: seconds.
            check: whether a non-zero exit is an error.
            text: its standard input; nothing by default.

        Raises:
            LabError: it does not exist, failed or took too long; the text has its messages.
        """
        child = self.popen(
            argv,
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with child:
            try:
                out, err = child.communicate(text, timeout)
            except subprocess.TimeoutExpired as error:
                child.kill()
                raise LabError(f"{self.name}: {argv[0]} took longer than {timeout:g} s") from error
        if check and child.returncode:
            raise LabError(
                f"{self.name}: {' '.join(argv)} failed ({child.returncode}): {(err or out).strip()}"
            )
        return subprocess.CompletedProcess(argv, child.returncode, out, err)

    def daemon(
        self, argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a process that outlives its starter, with its output appended to a file."""
        with log.open("ab") as sink:
            return self.popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )


def wait_ended(fds: Iterable[int], deadline: float) -> set[int]:
    """Wait for the processes of these pidfds; return the pidfds of those that have not ended.

    Args:
        fds: pidfds, of children or of others.
        deadline: in `time.monotonic()` seconds.
    """
    left = set(fds)
    poll = select.poll()
    for fd in left:
        poll.register(fd, select.POLLIN)
    while left:
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            break
        for fd, _ in ready:
            poll.unregister(fd)
            left.discard(fd)
    return left


def end_all(namespaces: list[str], grace: float = TERM_GRACE) -> int:
    """End every process that runs in these namespaces and return how many there were.

    SIGTERM, then SIGKILL after `grace` seconds; again while something new turns up.

    Raises:
        LabError: something is still there after its SIGKILL (stuck in the kernel).
    """
    ended = 0
    for _ in range(5):
        found = netns.processes(namespaces)
        if not found:
            return ended
        ended += len(found)
        _end(set(found), namespaces, ((signal.SIGTERM, grace), (signal.SIGKILL, TERM_GRACE)))
    raise LabError(
        f"new processes keep appearing in {', '.join(namespaces)}; stop what starts them"
    )


def kill_named(namespace: str, command: str) -> int:
    """Send SIGKILL to a namespace's processes of this command name; return how many there were.

    Again while there are any, since a server that loses a worker may start another before its own
    signal arrives. Returns when they are gone.

    Raises:
        LabError: one does not end.
    """
    killed = 0
    while found := {pid for pid in netns.processes([namespace]) if _command_name(pid) == command}:
        _end(found, [namespace], ((signal.SIGKILL, TERM_GRACE),))
        killed += len(found)
    return killed


def _command_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _end(
    pids: set[int], namespaces: list[str], steps: Iterable[tuple[signal.Signals, float]]
) -> None:
    """Send each step's signal to what is left, and wait up to its seconds.

    Raises:
        LabError: something is left after the last step.
    """
    with ExitStack() as stack:
        fds: dict[int, int] = {}
        for pid in pids:
            with suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                stack.callback(os.close, fd)
                fds[fd] = pid
        still = netns.processes(namespaces)
        left = {fd for fd, pid in fds.items() if pid in still}
        for number, seconds in steps:
            for fd in left:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, number)
            left = wait_ended(left, time.monotonic() + seconds)
        if left:
            raise LabError(
                f"processes {sorted(fds[fd] for fd in left)} do not end, not even on SIGKILL"
            )
