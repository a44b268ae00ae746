# SPDX-License-Identifier: Apache-2.0
"""A check by a program of the operator's: exit code 0 passes.

It does not travel the data path by itself: the program gets the destination and the mark in its
environment, and may use them. Whether programs may be run at all is for the agent's file to say.
"""

import asyncio
import contextlib
import os
import signal
from typing import Final

from tidegate.health.result import Result
from tidegate.health.tcp import Destination

_SHOWN: Final = 200


async def run(
    destination: Destination, command: tuple[str, ...], backend: str, limit: float
) -> Result:
    """Run a program, without a shell, in a process group of its own that ends with it.

    Args:
        destination: goes to the program as TIDEGATE_ADDRESS, TIDEGATE_PORT and TIDEGATE_MARK.
        command: the program's path and its arguments.
        backend: `pool/name`, as TIDEGATE_BACKEND.
        limit: seconds, after which the group is killed.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "TIDEGATE_BACKEND": backend,
        "TIDEGATE_ADDRESS": destination.address,
        "TIDEGATE_PORT": str(destination.port),
        "TIDEGATE_MARK": str(destination.mark),
    }
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
            limit=4096,
        )
    except OSError as error:
        reason = f"Cannot run {command[0]}: {error.strerror}."
        return Result("error", reason, loop.time() - began)
    try:
        async with asyncio.timeout(limit):
            _, said = await process.communicate()
    except TimeoutError:
        return Result("timeout", f"It did not end within {limit:g} s.", loop.time() - began)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    seconds = loop.time() - began
    if process.returncode == 0:
        return Result("passed", "", seconds)
    last = said.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
    how = f"exit code {process.returncode}" if (process.returncode or 0) > 0 else "a signal"
    return Result("mismatch", f"It ended with {how}: {last[0][:_SHOWN]}.", seconds)
