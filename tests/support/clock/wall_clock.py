# SPDX-License-Identifier: Apache-2.0
"""A wall clock for one process and its children, which a test steps as NTP would.

A time namespace of the kernel has no wall clock of its own, so a small library that is loaded
before the C library shifts what that says. Monotonic clocks, sleeps and waits stay the machine's.
"""

import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

_SOURCE = Path(__file__).with_name("wall_clock.c")


class WallClock:
    """The clock of processes that are started with its `environment`.

    Args:
        folder: of the library and of the offset; must outlive those processes.
    """

    def __init__(self, folder: Path) -> None:
        self._library, self._offset = folder / "wall_clock.so", folder / "wall_clock.offset"
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([*command, "-o", str(self._library), str(_SOURCE)], check=True)
        self.set_ahead(0)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs in its environment to have this clock."""
        return {"LD_PRELOAD": str(self._library), "WALL_CLOCK_OFFSET": str(self._offset)}

    def set_ahead(self, seconds: int) -> None:
        """Step it, to be this much ahead of the machine's clock; in one write, as it is mapped."""
        with self._offset.open("r+b" if self._offset.exists() else "wb") as file:
            file.write(struct.pack("@q", seconds))
