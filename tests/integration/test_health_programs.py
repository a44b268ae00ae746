# SPDX-License-Identifier: Apache-2.0
"""Checks by programs that behave badly: what they may take, and that the next check is made."""

import asyncio
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidegate.health import command
from tidegate.health.result import Result
from tidegate.health.tcp import Destination

LIMIT = 3.0
"""Seconds that a check may take."""


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Give a loop that several checks share, as those of an agent do."""
    made = asyncio.new_event_loop()
    yield made
    made.run_until_complete(made.shutdown_asyncgens())
    made.close()


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def script(text: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", text)


def check(
    loop: asyncio.AbstractEventLoop, program: tuple[str, ...], limit: float = LIMIT
) -> Result:
    probe = command.run(Destination("192.0.2.10", 443, 7), program, "web/b1", limit)
    return loop.run_until_complete(probe)


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, or does so within ten seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if ") Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


BAD = {
    "floods stdout": ("yes", "timeout"),
    "floods stderr": ("yes >&2", "timeout"),
    "floods stderr and passes": ("head -c 3000000 /dev/zero >&2; exit 0", "passed"),
    "ignores SIGTERM": ("trap '' TERM INT HUP; while :; do sleep 1; done", "timeout"),
    "leaves a child with the pipe": ("sleep 600 & exit 0", "passed"),
    "leaves a child in the background and fails": ("sleep 600 & exit 3", "mismatch"),
    "leaves a daemon with the pipe": ("setsid sleep 7 & exit 0", "passed"),
    "closes its pipes and sleeps": ("exec <&- >&- 2>&-; sleep 600", "timeout"),
    "kills its own group": ("kill -KILL 0", "host"),
    "crashes": ("kill -SEGV $$", "mismatch"),
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_program_costs_one_check(loop: asyncio.AbstractEventLoop, how: str) -> None:
    """It ends in time, takes little memory, leaves no descriptor, and the next check is made."""
    text, code = BAD[how]
    assert check(loop, script("exit 0"), 10.0).passed
    before = descriptors()
    memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    result = check(loop, script(text))
    assert result.code == code, result
    assert time.monotonic() - began < LIMIT + 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 20_000  # KiB
    assert descriptors() <= before
    assert check(loop, script("exit 0"), 10.0).passed


def test_a_flood_of_words_takes_little_of_the_loop(loop: asyncio.AbstractEventLoop) -> None:
    """What a program says without end is read seldom, and the end of it is the reason."""
    before = time.thread_time()
    result = check(loop, script("yes >&2"), 2.0)
    assert result.code == "timeout"
    assert time.thread_time() - before < 0.2
    said = check(loop, script("head -c 500000 /dev/zero >&2; echo >&2; echo no disk >&2; exit 1"))
    assert (said.code, said.reason) == ("mismatch", "It ended with exit code 1: no disk.")


def test_a_program_has_no_rights_and_few_words(loop: asyncio.AbstractEventLoop) -> None:
    """No capability, none to be had, five variables, the root folder, three descriptors."""
    os.environ["TIDEGATE_ETCD_PASSWORD"] = "secret"  # noqa: S105 - that of nobody
    try:
        result = check(
            loop,
            script(
                "sleep 0.5; { "
                "grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|SigBlk)' /proc/self/status;"
                " cat /proc/self/oom_score_adj; pwd; ls /proc/$$/fd; env | cut -d= -f1 | sort;"
                " ulimit -Sn; } | tr '\\n\\t' '  ' >&2; exit 1"
            ),
        )
    finally:
        del os.environ["TIDEGATE_ETCD_PASSWORD"]
    none = "0000000000000000"
    assert result.reason.startswith(
        f"It ended with exit code 1: SigBlk: {none} CapInh: {none} CapPrm: {none} "
        f"CapEff: {none} CapAmb: {none} NoNewPrivs: 1 1000 / 0 1 2 "
    ), result.reason


@pytest.mark.root
def test_a_program_cannot_mark_a_socket(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """The agent may (CAP_NET_ADMIN); its child may not, though it is root."""
    tool = tmp_path / "mark"
    tool.write_text("import socket\nsocket.socket().setsockopt(1, 36, 7)\n")
    result = check(loop, ("/usr/bin/python3", str(tool)), 30.0)
    assert result.reason == (
        "It ended with exit code 1: PermissionError: [Errno 1] Operation not permitted."
    )


@pytest.mark.parametrize("kind", ["missing", "a folder", "not executable", "no program"])
def test_a_program_that_cannot_be_run_is_named(
    loop: asyncio.AbstractEventLoop, tmp_path: Path, kind: str
) -> None:
    """That is this host's fault, with the path and the system's words, and no verdict."""
    path = tmp_path / "check"
    match kind:
        case "a folder":
            path.mkdir()
        case "not executable":
            path.write_text("#!/bin/sh\n")
        case "no program":
            path.write_bytes(b"\0" * 64)
            path.chmod(0o755)
    result = check(loop, (str(path),))
    assert result.code == "host"
    assert result.reason.startswith(f"Cannot run {path}: ")


def test_a_cancelled_check_leaves_no_process(
    loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    """A check that is not wanted any more ends with its program, and has no descriptor left."""
    assert check(loop, script("exit 0"), 10.0).passed
    before, note = descriptors(), tmp_path / "pid"

    async def cancelled() -> None:
        to = Destination("192.0.2.10", 443, 7)
        probe = command.run(to, script(f"echo $$ > {note}; exec sleep 600"), "web/b1", 60.0)
        task = asyncio.ensure_future(probe)
        while not note.exists() or not note.read_text():  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    loop.run_until_complete(cancelled())
    assert is_gone(int(note.read_text()))
    assert descriptors() <= before
