# SPDX-License-Identifier: Apache-2.0
"""The wall clock that tests step is stepped, and nothing else about time is."""

import os
import subprocess
import sys
import time
from pathlib import Path

from support.clock.wall_clock import WallClock

# Prints, for each line of its input, how far its clocks are from the machine's, and how long a
# sleep and a child with a limit of time took. The machine's wall clock is the one of a new file.
_CLOCKS = """
import subprocess, sys, tempfile, time
import os
for line in sys.stdin:
    with tempfile.TemporaryFile() as fresh:
        ahead = time.time() - os.fstat(fresh.fileno()).st_mtime
    began = time.monotonic()
    time.sleep(0.05)
    subprocess.run(["sleep", "0.05"], timeout=20, capture_output=True, check=True)
    print(round(ahead), 0.1 <= time.monotonic() - began < 10, time.monotonic(), flush=True)
"""


def test_only_the_wall_clock_is_stepped(tmp_path: Path) -> None:
    """Forward and back at once; sleeps, limits of time and the monotonic clock go on."""
    clock = WallClock(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", _CLOCKS],
        env={**os.environ, **clock.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for seconds in (0, 3600, -3600, 0):
            clock.set_ahead(seconds)
            print("look", file=process.stdin, flush=True)
            ahead, is_plain, monotonic = process.stdout.readline().split()
            assert (int(ahead), is_plain) == (seconds, "True")
            assert abs(float(monotonic) - time.monotonic()) < 10
        process.stdin.close()
