# SPDX-License-Identifier: Apache-2.0
"""A thread without some of its capabilities."""

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager

CAP_SYS_ADMIN, CAP_PERFMON = 21, 38


@contextmanager
def without_capabilities(*numbers: int) -> Iterator[None]:
    """Take capabilities from this thread's effective set (capset(2)) until the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("<Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    words = list(struct.unpack("<6I", data.raw))  # effective, permitted, inheritable; twice
    for number in numbers:
        words[3 * (number // 32)] &= ~(1 << number % 32)
    assert libc.capset(header, struct.pack("<6I", *words)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, data.raw) == 0
