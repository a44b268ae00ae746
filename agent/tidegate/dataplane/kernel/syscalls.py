# SPDX-License-Identifier: Apache-2.0
"""bpf(2) for the commands that libbcc does not offer or offers without what we need.

libbcc cannot create a map of maps from a descriptor, pin, open a pin or test-run; and to load a
program it would bring all of clang into the process. The attribute layouts are the kernel's UAPI
(include/uapi/linux/bpf.h, `union bpf_attr`), which does not change.
Every failure raises OSError with the kernel's errno; callers add what they were doing.
"""

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy.typing as npt

_NUMBERS: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
_ATTR_BYTES: Final = 144
_INSTRUCTION: Final = 8
_LOG_BYTES: Final = 1 << 24
"""More than any verifier's log of ours; the kernel takes part of a longer one, and ENOSPC."""

_MOST_MAPS: Final = 64
"""The kernel's limit for one program (MAX_USED_MAPS)."""

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY = 0, 1, 2, 3, 4
_PROG_LOAD = 5
_OBJ_PIN, _OBJ_GET, _PROG_TEST_RUN, _OBJ_INFO = 6, 7, 10, 15
_MAP_LOOKUP_BATCH, _MAP_UPDATE_BATCH = 24, 26
LINK_CREATE, LINK_UPDATE, _ENABLE_STATS = 28, 29, 32

HASH, ARRAY, PERCPU_ARRAY, LRU_HASH, LPM_TRIE, ARRAY_OF_MAPS = 1, 2, 6, 9, 11, 12
RINGBUF: Final = 27
F_NO_PREALLOC: Final = 1 << 0
_F_RDONLY: Final = 1 << 3
F_MMAPABLE: Final = 1 << 10
ANY, NOEXIST, EXIST = 0, 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


class MapInfo(NamedTuple):
    """The kernel's description of a map."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


def _bpf(command: int, attr: bytes) -> tuple[int, bytes]:
    """Call bpf(2); return its result and the attribute as the kernel left it."""
    buffer = ctypes.create_string_buffer(attr, _ATTR_BYTES)
    return _call(command, buffer), buffer.raw


def command(number: int, attr: bytes) -> int:
    """Give bpf(2) a command that has no function here; return its result."""
    return _bpf(number, attr)[0]


def _call(command: int, attr: ctypes.Array[ctypes.c_char]) -> int:
    result: int = _libc.syscall(_NUMBERS[platform.machine()], command, attr, len(attr))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def map_create(
    kind: int,
    name: str,
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: int = 0,
    inner_fd: int = 0,
) -> int:
    """Create a map and return its descriptor. Sizes in bytes; the name is cut to 15."""
    attr = struct.pack(
        "<IIIIIII16s",
        kind,
        key_size,
        value_size,
        max_entries,
        flags,
        inner_fd,
        0,
        name.encode()[:15],
    )
    return _bpf(_MAP_CREATE, attr)[0]


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """Read the value of a key, or None. For a per-CPU map the size is that of all CPUs' values."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value = ctypes.create_string_buffer(value_size)
    attr = struct.pack("<IxxxxQQQ", fd, _address(key_buffer), _address(value), 0)
    try:
        _bpf(_MAP_LOOKUP, attr)
    except FileNotFoundError:
        return None
    return value.raw


def map_update(fd: int, key: bytes, value: bytes | memoryview, flags: int = ANY) -> None:
    """Write one element. A contiguous writable buffer is passed on without a copy."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    if isinstance(value, bytes):
        holder = ctypes.create_string_buffer(value, len(value))
        address = _address(holder)
    else:
        address = ctypes.addressof(ctypes.c_char.from_buffer(value))
    _bpf(_MAP_UPDATE, struct.pack("<IxxxxQQQ", fd, _address(key_buffer), address, flags))


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """Write `count` elements, whose keys and values are packed one after another, in one call."""
    if count == 0:
        return
    key_buffer = ctypes.create_string_buffer(keys, len(keys))
    value_buffer = ctypes.create_string_buffer(values, len(values))
    attr = struct.pack(
        "<QQQQIIQQ", 0, 0, _address(key_buffer), _address(value_buffer), count, fd, ANY, 0
    )
    _bpf(_MAP_UPDATE_BATCH, attr)


def map_delete(fd: int, key: bytes) -> bool:
    """Delete a key; return False if it was not there."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    try:
        _bpf(_MAP_DELETE, struct.pack("<IxxxxQ", fd, _address(key_buffer)))
    except FileNotFoundError:
        return False
    return True


def map_items(fd: int, key_size: int, value_size: int, capacity: int) -> tuple[bytes, bytes, int]:
    """Read all keys, all values and their number, in one batch of up to `capacity`."""
    keys = ctypes.create_string_buffer(max(1, key_size * capacity))
    values = ctypes.create_string_buffer(max(1, value_size * capacity))
    # The kernel's cursor is a key for hashes and 32 bits for their batches; either fits here.
    cursor = ctypes.create_string_buffer(max(4, key_size))
    attr = struct.pack(
        "<QQQQIIQQ", 0, _address(cursor), _address(keys), _address(values), capacity, fd, 0, 0
    )
    buffer = ctypes.create_string_buffer(attr, _ATTR_BYTES)
    # ENOENT means that this batch was the last; the count is written all the same.
    with contextlib.suppress(FileNotFoundError):
        _call(_MAP_LOOKUP_BATCH, buffer)
    count = struct.unpack_from("<I", buffer, 32)[0]
    return keys.raw[: key_size * count], values.raw[: value_size * count], count


def map_batches(
    fd: int, key_size: int, value_size: int, size: int
) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield keys and values of a hash that may change meanwhile, in batches of about `size`.

    An element that is there all the time comes once. The kernel reads whole buckets, so a batch
    has to hold the fullest one.
    """
    keys, values = (ctypes.create_string_buffer(n * size) for n in (key_size, value_size))
    cursor, following = ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)
    is_first, is_last = True, False
    while not is_last:
        attr = struct.pack(
            "<QQQQIIQQ",
            0 if is_first else _address(cursor),
            _address(following),
            _address(keys),
            _address(values),
            size,
            fd,
            0,
            0,
        )
        buffer = ctypes.create_string_buffer(attr, _ATTR_BYTES)
        try:
            _call(_MAP_LOOKUP_BATCH, buffer)
        except FileNotFoundError:
            is_last = True
        count = struct.unpack_from("<I", buffer, 32)[0]
        yield keys.raw[: key_size * count], values.raw[: value_size * count], count
        cursor.raw, is_first = following.raw, False


def array_values(fd: int, first: int, room: npt.NDArray[Any], count: int) -> None:
    """Read `count` values of an array of any kind into `room`, from the element `first` on.

    `room` is contiguous and holds them exactly; of a per-CPU array, all CPUs' values of each.
    """
    keys = ctypes.create_string_buffer(4 * count)
    # The kernel goes on after the element that the cursor names.
    cursor = ctypes.create_string_buffer(max(0, first - 1).to_bytes(4, "little"), 4)
    attr = struct.pack(
        "<QQQQIIQQ",
        _address(cursor) if first else 0,
        _address(cursor),
        _address(keys),
        room.ctypes.data,
        count,
        fd,
        0,
        0,
    )
    buffer = ctypes.create_string_buffer(attr, _ATTR_BYTES)
    with contextlib.suppress(FileNotFoundError):  # the last element of the map was among them
        _call(_MAP_LOOKUP_BATCH, buffer)
    found = struct.unpack_from("<I", buffer, 32)[0]
    if found != count:
        raise OSError(errno.ERANGE, f"the array has {first + found} elements, not {first + count}")


def map_walk(fd: int, key_size: int, value_size: int) -> tuple[bytes, bytes, int]:
    """Read all keys, all values and their number, key by key, as every kind of map allows."""
    keys: list[bytes] = []
    values: list[bytes] = []
    key: bytes | None = None
    while (key := map_next_key(fd, key, key_size)) is not None:
        value = map_lookup(fd, key, value_size)
        if value is not None:
            keys.append(key)
            values.append(value)
    return b"".join(keys), b"".join(values), len(keys)


def map_next_key(fd: int, key: bytes | None, key_size: int) -> bytes | None:
    """Return the key after this one, the first for None; None at the end."""
    key_buffer = ctypes.create_string_buffer(key, key_size) if key is not None else None
    following = ctypes.create_string_buffer(key_size)
    attr = struct.pack(
        "<IxxxxQQ", fd, _address(key_buffer) if key_buffer else 0, _address(following)
    )
    try:
        _bpf(_MAP_NEXT_KEY, attr)
    except FileNotFoundError:
        return None
    return following.raw


def pin(fd: int, path: str) -> None:
    """Pin a map or program on a bpffs."""
    name = ctypes.create_string_buffer(path.encode())
    _bpf(_OBJ_PIN, struct.pack("<QII", _address(name), fd, 0))


def open_pin(path: str, *, read_only: bool = False) -> int:
    """Open what is pinned at this path; return its descriptor."""
    name = ctypes.create_string_buffer(path.encode())
    flags = _F_RDONLY if read_only else 0
    return _bpf(_OBJ_GET, struct.pack("<QII", _address(name), 0, flags))[0]


def object_id(fd: int) -> int:
    """Return the kernel's id of a program or map; both have it in the second word of their info."""
    return int.from_bytes(object_info(fd, 88)[4:8], "little")


def object_info(fd: int, size: int) -> bytes:
    """Return the kernel's info of a program, map or link, of this many bytes at the most."""
    info = ctypes.create_string_buffer(size)
    _bpf(_OBJ_INFO, struct.pack("<IIQ", fd, len(info), _address(info)))
    return info.raw


def map_info(fd: int) -> MapInfo:
    """Read the type, id and sizes of a map."""
    return MapInfo(*struct.unpack_from("<IIIIII", object_info(fd, 88)))


class Loaded(NamedTuple):
    """The result of loading a program: its descriptor or -1, the kernel's errno, its log."""

    fd: int
    errno: int
    log: str


def program_load(kind: int, name: str, code: bytes, log_level: int) -> Loaded:
    """Load a program of licence GPL. The name is cut to 15 bytes; a refusal is no exception."""
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(_LOG_BYTES)
    attr = struct.pack(
        "<IIQQIIQII16s",
        kind,
        len(code) // _INSTRUCTION,
        _address(instructions),
        _address(licence),
        log_level,
        len(log),
        _address(log),
        0,
        0,
        name.encode()[:15],
    )
    fd, number = -1, 0
    try:
        fd, _ = _bpf(_PROG_LOAD, attr)
    except OSError as error:
        number = error.errno or 0
    return Loaded(fd, number, log.value.decode(errors="replace"))


def program_maps(fd: int) -> set[int]:
    """Read the kernel's ids of the maps that a program uses."""
    ids = ctypes.create_string_buffer(4 * _MOST_MAPS)
    info = ctypes.create_string_buffer(88)
    struct.pack_into("<IQ", info, 52, _MOST_MAPS, _address(ids))
    _bpf(_OBJ_INFO, struct.pack("<IIQ", fd, len(info), _address(info)))
    count = min(struct.unpack_from("<I", info, 52)[0], _MOST_MAPS)
    return set(struct.unpack_from(f"<{count}I", ids))


class ProgramTime(NamedTuple):
    """How often a program ran, and ns it took, over all CPUs, while statistics were on."""

    id: int
    nanoseconds: int
    runs: int


def program_time(fd: int) -> ProgramTime:
    """Read the kernel's statistics of a program; zero where they were never on."""
    info = ctypes.create_string_buffer(224)
    _bpf(_OBJ_INFO, struct.pack("<IIQ", fd, len(info), _address(info)))
    return ProgramTime(
        int.from_bytes(info.raw[4:8], "little"), *struct.unpack_from("<QQ", info, 192)
    )


def enable_stats() -> int:
    """Turn on run-time statistics of all programs of the host until the descriptor is closed."""
    return _bpf(_ENABLE_STATS, struct.pack("<I", 0))[0]


class Run(NamedTuple):
    """The result of a test-run: return value, the frame that it left, ns per repetition."""

    verdict: int
    frame: bytes
    duration: int


def run(fd: int, frame: bytes, ifindex: int = 0, repeat: int = 1) -> Run:
    """Run an XDP program on one frame (BPF_PROG_TEST_RUN).

    Args:
        fd: program.
        frame: at least 14 bytes, or the kernel refuses it.
        ifindex: interface that the program sees as the frame's; 0 for the loopback.
        repeat: the kernel does not restore the frame between repetitions.
    """
    source = ctypes.create_string_buffer(frame, len(frame))
    result = ctypes.create_string_buffer(len(frame) + 512)
    context = b""
    if ifindex:
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        context = struct.pack("<IIIIII", 0, len(frame), 0, ifindex, 0, 0)
    context_buffer = ctypes.create_string_buffer(context, len(context)) if context else None
    attr = struct.pack(
        "<IIIIQQIIIIQQ",
        fd,
        0,
        len(frame),
        len(result),
        _address(source),
        _address(result),
        repeat,
        0,
        len(context),
        0,
        _address(context_buffer) if context_buffer else 0,
        0,
    )
    _, after = _bpf(_PROG_TEST_RUN, attr)
    verdict, _, size = struct.unpack_from("<III", after, 4)
    duration = struct.unpack_from("<I", after, 36)[0]
    return Run(verdict, result.raw[:size], duration)
