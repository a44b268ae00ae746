# SPDX-License-Identifier: Apache-2.0
"""The kernel's jiffies as programs see them, for what compares itself with a program."""

import os
import time
from functools import cache
from types import TracebackType
from typing import Final, Self

from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.loader import Kind
from tidegate.errors import CapabilityError
from tidegate.model.ticks import Clock

_SECOND_NS: Final = 1_000_000_000
_CALL_JIFFIES64: Final = bytes.fromhex("8500000076000000")
_EXIT: Final = bytes.fromhex("9500000000000000")
_FRAME: Final = bytes(14)


@cache
def clock() -> Clock:
    """Return the clock of this kernel: its coarse clocks step once a jiffy (time(7))."""
    return Clock(round(1 / time.clock_getres(_COARSE)))


_COARSE: Final = 6
"""CLOCK_MONOTONIC_COARSE of clock_gettime(2), which Python has no name for."""


class Jiffies:
    """Reads jiffies by a program of two instructions, from `with` to its end."""

    def __enter__(self) -> Self:
        loaded = bpf.program_load(Kind.XDP, "jiffies", _CALL_JIFFIES64 + _EXIT, 1)
        if loaded.fd < 0:
            raise CapabilityError(f"may not load BPF programs ({os.strerror(loaded.errno)})")
        self._fd = loaded.fd
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def now(self) -> int:
        """Return jiffies. They begin five minutes before 2^32, and a test-run returns 32 bits."""
        low = bpf.run(self._fd, _FRAME).verdict
        return low if low >> 31 else low | 1 << 32
