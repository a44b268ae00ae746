# SPDX-License-Identifier: Apache-2.0
"""A network namespace of this process, with veths for the programs that are measured.

The kernel calls an attached program directly, and need not rewrite the caller before and after each
test run of it, for which it would wait until every CPU has left the old text: tens of milliseconds.
"""

import ctypes
import os
import subprocess
from itertools import count
from pathlib import Path
from typing import Final

from tidegate.dataplane.kernel import programs

_CLONE_NEWNET: Final = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """Made once by a process, which is in it from then on; it ends with the process."""

    def __init__(self) -> None:
        if _libc.unshare(_CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"cannot make a network namespace: {os.strerror(number)}")
        self._numbers = count()

    def pair(self) -> tuple[str, str]:
        """Make two interfaces that are each other's peer, and down."""
        number = next(self._numbers)
        names = f"near{number}", f"far{number}"
        _ip("link", "add", "name", names[0], "type", "veth", "peer", "name", names[1])
        return names

    def hold(self, program: int) -> None:
        """Attach a program to an interface that sees no packets."""
        programs.attach(program, self.pair()[0], "native")

    def link(self, near: int, far: int) -> tuple[int, str]:
        """Make a veth that is up, with a program at either end.

        Returns:
            Index of the near end, and the name of the far one.
        """
        names = self.pair()
        for name, program in zip(names, (near, far), strict=True):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            programs.attach(program, name, "native")
            _ip("link", "set", name, "up")
        return programs.interface_index(names[0]), names[1]


def received(interface: str) -> int:
    """Return how many frames an interface of this thread's namespace has received."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == interface:
            return int(figures.split()[1])
    raise KeyError(interface)


def _ip(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), check=True)
