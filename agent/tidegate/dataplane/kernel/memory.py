# SPDX-License-Identifier: Apache-2.0
"""The memory of arrays that user space may map (BPF_F_MMAPABLE), copied without a descriptor.

Python's own `mmap` duplicates the descriptor that it is given, and so fails on a host that has none
left: where rolling back and repairing have to work all the same.
"""

import ctypes
import os
from typing import Final

_PROT_READ, _MAP_SHARED = 1, 1
_FAILED: Final = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def array_memory(fd: int, size: int) -> bytes:
    """Copy all values of an array that has F_MMAPABLE, in one call; raise OSError."""
    address = _libc.mmap(None, size, _PROT_READ, _MAP_SHARED, fd, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        return ctypes.string_at(address, size)
    finally:
        _libc.munmap(address, size)
