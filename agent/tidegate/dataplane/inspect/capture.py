# SPDX-License-Identifier: Apache-2.0
"""Captures: reading frames from a pcap or pcapng file, and writing a pcap file, by libpcap.

libpcap is what tcpdump reads with, so it knows every variant: both byte orders, micro- and
nanoseconds, pcapng. It is called through ctypes, since the few functions that are needed have not
changed in twenty years. This is not for capturing from an interface.
"""

import ctypes
import errno
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from tidegate.errors import CapabilityError, ConfigError

_SONAMES: Final = ("libpcap.so.0.8", "libpcap.so.1")  # Debian's name, and everybody else's
_ETHERNET: Final = 1
_ERROR_BYTES: Final = 256  # PCAP_ERRBUF_SIZE
_LONGEST: Final = 262144  # MAXIMUM_SNAPLEN: libpcap refuses a longer frame
_NO_MORE: Final = -2  # PCAP_ERROR_BREAK: the end of the file


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("fraction", ctypes.c_long))


class _Header(ctypes.Structure):
    """struct pcap_pkthdr."""

    _fields_ = (("time", _Time), ("captured", ctypes.c_uint32), ("wire", ctypes.c_uint32))


class Frame(NamedTuple):
    """One frame of a capture, and whether the capture cut it (its snap length)."""

    data: bytes
    is_cut: bool


@cache
def _library() -> Any:  # noqa: ANN401 - ctypes has no such type
    for name in _SONAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
        for function, result, arguments in (
            ("pcap_open_offline", pointer, (text, text)),
            ("pcap_open_dead", pointer, (number, number)),
            ("pcap_datalink", number, (pointer,)),
            ("pcap_next_ex", number, (pointer, pointer, pointer)),
            ("pcap_geterr", text, (pointer,)),
            ("pcap_close", None, (pointer,)),
            ("pcap_datalink_val_to_name", text, (number,)),
            ("pcap_dump_open", pointer, (pointer, text)),
            ("pcap_dump", None, (pointer, pointer, text)),
            ("pcap_dump_file", pointer, (pointer,)),
            ("pcap_dump_flush", number, (pointer,)),
            ("pcap_dump_close", None, (pointer,)),
        ):
            entry = getattr(library, function)
            entry.restype, entry.argtypes = result, arguments
        return library
    raise CapabilityError(
        "cannot find libpcap, which reads captures: install it (Debian: apt install tcpdump)"
    )


def read(path: Path) -> Iterator[Frame]:
    """Yield the frames of a capture in order; `-` is standard input.

    Raises:
        ConfigError: no such file, not a capture, not of Ethernet, or broken behind some frame.
        CapabilityError: libpcap is not installed.
    """
    if str(path) != "-" and not path.is_file():
        what = "is no file" if path.exists() else os.strerror(errno.ENOENT)
        raise ConfigError(f"cannot read {path}: {what}")
    library = _library()
    message = ctypes.create_string_buffer(_ERROR_BYTES)
    handle = library.pcap_open_offline(os.fsencode(path), message)
    if not handle:
        raise ConfigError(f"cannot read {path}: {message.value.decode(errors='replace')}")
    try:
        _require_ethernet(library, handle, path)
        yield from _frames(library, handle, path)
    finally:
        library.pcap_close(handle)


def _require_ethernet(library: Any, handle: int, path: Path) -> None:  # noqa: ANN401
    kind = library.pcap_datalink(handle)
    if kind != _ETHERNET:
        name = library.pcap_datalink_val_to_name(kind)
        raise ConfigError(
            f"{path} was captured from a link of type {name.decode() if name else kind}; it must "
            "be Ethernet (EN10MB). A capture from `any` is not: name one interface (tcpdump -i)"
        )


def _frames(library: Any, handle: int, path: Path) -> Iterator[Frame]:  # noqa: ANN401
    header, data = ctypes.POINTER(_Header)(), ctypes.c_void_p()
    places = ctypes.byref(header), ctypes.byref(data)
    number = 0
    while (result := library.pcap_next_ex(handle, *places)) == 1:
        number += 1
        found = header.contents
        captured = int(found.captured)
        yield Frame(ctypes.string_at(data, captured) if captured else b"", found.wire > captured)
    if result != _NO_MORE:
        reason = library.pcap_geterr(handle).decode(errors="replace")
        raise ConfigError(f"{path} is broken behind frame {number}: {reason}")


class Writer:
    """A pcap file of Ethernet frames, from `with` to its end.

    The time of a frame is its number, in seconds: whoever reads the file finds the frame again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._library = _library()
        self._dead = self._library.pcap_open_dead(_ETHERNET, _LONGEST)
        self._dumper = self._library.pcap_dump_open(self._dead, os.fsencode(self._path))
        if not self._dumper:
            reason = self._library.pcap_geterr(self._dead).decode(errors="replace")
            self._library.pcap_close(self._dead)
            raise ConfigError(f"cannot write {self._path}: {reason}")
        return self

    def write(self, number: int, frame: bytes) -> None:
        """Append a frame."""
        header = _Header(_Time(number, 0), len(frame), len(frame))
        self._library.pcap_dump(self._dumper, ctypes.byref(header), frame)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # pcap_dump returns no errors; the stream under it remembers them.
        stream = ctypes.c_void_p(self._library.pcap_dump_file(self._dumper))
        failed = self._library.pcap_dump_flush(self._dumper) or ctypes.CDLL(None).ferror(stream)
        self._library.pcap_dump_close(self._dumper)
        self._library.pcap_close(self._dead)
        if failed and error is None:
            raise ConfigError(f"cannot write {self._path}: the disk is full or has failed")
