# SPDX-License-Identifier: Apache-2.0
"""Programs and maps of the kernel by their numbers, and maps that live as long as a program.

To open an object by its number takes CAP_SYS_ADMIN, which an agent under its unit does not have:
there PermissionError says that nothing was looked at.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.event_log import EventLog

log = EventLog(__name__)

_PROG_GET_FD_BY_ID, _MAP_GET_FD_BY_ID, _OBJ_INFO, _PROG_BIND_MAP = 13, 14, 15, 35
_INFO_BYTES: Final = 88
_TAG, _PROGRAM_NAME, _MAP_NAME = slice(8, 16), slice(64, 80), slice(24, 40)
"""Of `struct bpf_prog_info` and `struct bpf_map_info` (include/uapi/linux/bpf.h)."""


class ProgramInfo(NamedTuple):
    """What the kernel says of a program.

    Attributes:
        id: its number.
        name: at most 15 characters.
        tag: 16 hex digits of a hash of its instructions.
        maps: numbers of the maps that it uses or that are bound to it.
    """

    id: int
    name: str
    tag: str
    maps: frozenset[int]


def bind(program: int, maps: Iterable[int]) -> None:
    """Have maps live for as long as a program does; those that it uses do anyway.

    Raises:
        OSError: the kernel refused; one before 5.10 does not know this, which is only logged.
    """
    for fd in maps:
        try:
            bpf.command(_PROG_BIND_MAP, struct.pack("<III", program, fd, 0))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            reason = (
                "the kernel is older than 5.10: a program whose pins are lost cannot be adopted"
            )
            log.warning("maps_not_bound", reason=reason)
            return


@contextmanager
def program(number: int) -> Iterator[int]:
    """Open a program by its number, until the end; raise FileNotFoundError if it is gone."""
    fd = bpf.command(_PROG_GET_FD_BY_ID, struct.pack("<III", number, 0, 0))
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def opened_map(number: int) -> Iterator[int]:
    """Open a map by its number, until the end; raise FileNotFoundError if it is gone."""
    fd = bpf.command(_MAP_GET_FD_BY_ID, struct.pack("<III", number, 0, 0))
    try:
        yield fd
    finally:
        os.close(fd)


def program_info(fd: int) -> ProgramInfo:
    """Read what the kernel says of a program."""
    info = _info(fd)
    number = int.from_bytes(info[4:8], "little")
    maps = frozenset(bpf.program_maps(fd))
    return ProgramInfo(number, _text(info[_PROGRAM_NAME]), info[_TAG].hex(), maps)


def map_name(fd: int) -> str:
    """Read the kernel's name of a map."""
    return _text(_info(fd)[_MAP_NAME])


def _info(fd: int) -> bytes:
    info = ctypes.create_string_buffer(_INFO_BYTES)
    address = ctypes.addressof(info)
    bpf.command(_OBJ_INFO, struct.pack("<IIQ", fd, _INFO_BYTES, address))
    return info.raw


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii", "replace")
