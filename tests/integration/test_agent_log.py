# SPDX-License-Identifier: Apache-2.0
"""An agent whose log goes into a pipe that nobody reads."""

import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from support.logs import logfmt
from tidegate.lab.agents import config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab
from tidegate.telemetry.log_output import FLUSH_SECONDS

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=1)]

CHANGES = 20
_PAGE = 4096


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Give a pipe of one page that is full to the last byte."""
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PAGE)
    os.write(writer, b"x" * (size - 1) + b"\n")
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def agent(bare_lab: Lab, pipe: tuple[int, int]) -> Iterator["subprocess.Popen[bytes]"]:
    """Give an agent that logs into that pipe, and has made some changes."""
    command = [sys.executable, "-m", "tidegate.cli.main", "agent", "run"]
    control = Control(bare_lab)
    with (
        StatusWatch(bare_lab, "lb1") as status,
        bare_lab.node("lb1").popen(
            [*command, "-c", str(config_path(bare_lab.spec, "lb1"))],
            stdout=subprocess.DEVNULL,
            stderr=pipe[1],
        ) as process,
    ):
        try:
            for number in range(CHANGES):
                written = control.put(f"pools/p{number}", {})
                status.wait_applied(written.revision, timeout=30)
            yield process
        finally:
            process.kill()


@pytest.mark.usefixtures("agent")
def test_the_log_is_there_once_it_is_read(pipe: tuple[int, int]) -> None:
    """Changes come into force while nobody reads, and each of them has its line."""
    text = b""
    while select.select([pipe[0]], [], [], 1.0)[0]:
        text += os.read(pipe[0], _PAGE)
    _, *lines = text.decode().splitlines()
    assert sum("generation number=" in line for line in lines) == CHANGES
    assert all(logfmt.read(line) for line in lines)


def test_a_stuck_stderr_does_not_keep_the_agent(agent: "subprocess.Popen[bytes]") -> None:
    """It ends in time, without the lines that nobody reads."""
    before = time.monotonic()
    agent.terminate()
    assert agent.wait(20) == 0
    assert time.monotonic() - before < FLUSH_SECONDS + 5
