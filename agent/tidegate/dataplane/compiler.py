# SPDX-License-Identifier: Apache-2.0
"""Compiles the C of bpf/ with bcc, and loads what comes out against maps of our choice.

bcc would create a map for each table that a program declares. We let it, one element each, take the
bytecode, and put the descriptors of our own maps where it has those of bcc's. So a program can be
built before, and loaded beside, the one that runs, over the same pinned maps, and all of this needs
no more than CAP_BPF and CAP_NET_ADMIN (bcc's own way of reusing a pinned map opens it by id, which
the kernel grants to CAP_SYS_ADMIN alone).
"""

import ctypes
import errno
import os
import re
import struct
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from importlib.resources import as_file, files
from io import StringIO
from tempfile import TemporaryFile
from typing import Any, Final

from tidegate.errors import CapabilityError, CompileError, DataplaneError, TidegateError

_INCLUDE: Final = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)
_LD_IMM64, _PSEUDO_MAP_FD = 0x18, 1
_LOG_STATES, _LOG_SUMMARY = 1, 4

MOST_VERIFIED: Final = 150_000
"""Instructions that the verifier may look at; the kernel's own limit is a million."""

MOST_STACK: Final = 480
"""Bytes; the kernel's own limit is 512."""
_WARNINGS: Final = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unused-function")


class Kind(IntEnum):
    """Where a program runs: `enum bpf_prog_type` of include/uapi/linux/bpf.h."""

    SCHED_CLS = 3
    XDP = 6


@dataclass(frozen=True)
class Program:
    """A compiled program that is not loaded yet.

    Attributes:
        code: BPF instructions, 8 bytes each.
        tables: the map that each descriptor in the code stands for.
        leaves: each table's leaf size in bytes and its fields, as the compiler laid them out.
    """

    name: str
    code: bytes
    tables: Mapping[int, str]
    leaves: Mapping[str, "Leaf"]


@dataclass(frozen=True)
class Leaf:
    """Layout of a table's key and value: sizes in bytes, field names with their offsets."""

    key_size: int
    size: int
    key_fields: tuple[tuple[str, int], ...]
    fields: tuple[tuple[str, int], ...]


def source(name: str) -> str:
    """A file of bpf/ with its local headers in place.

    bcc rewrites map calls in the main file alone, so the headers are made part of it; #line keeps
    the compiler's messages on the real file and line.
    """
    folder = files("tidegate.bpf")

    def expand(file: str) -> str:
        text = folder.joinpath(file).read_text().replace("#pragma once\n", "\n")

        def replace(match: re.Match[str]) -> str:
            line = text.count("\n", 0, match.start()) + 2
            return f'{expand(match[1])}\n#line {line} "bpf/{file}"'

        return f'#line 1 "bpf/{file}"\n' + _INCLUDE.sub(replace, text)

    return expand(name)


def _fields(ctype: Any) -> tuple[tuple[str, int], ...]:  # noqa: ANN401 - ctypes has no such type
    names = getattr(ctype, "_fields_", ())
    return tuple((field[0], getattr(ctype, field[0]).offset) for field in names)


def _import_bcc() -> Any:  # noqa: ANN401 - bcc has no types
    try:
        import bcc  # noqa: PLC0415 - takes 60 ms, and most commands do without
    except ImportError as error:
        raise CapabilityError(
            "cannot import bcc: install Debian's python3-bpfcc (apt install python3-bpfcc), and "
            "run from a virtual environment of its Python (/usr/bin/python3 -m venv "
            f"--system-site-packages); the reason was: {error}"
        ) from error
    return bcc


@cache
def compile_program(program: str, constants: tuple[tuple[str, str], ...] = ()) -> Program:
    """Compiles bpf/<program>.c, whose program function has the same name.

    Args:
        program: file and function.
        constants: macros and their values.

    Raises:
        CompileError: with the compiler's messages; warnings count as errors.
        CapabilityError: bcc is not installed, or BPF maps may not be created.
    """
    return compile_text(program, source(f"{program}.c"), constants)


def compile_text(program: str, text: str, constants: tuple[tuple[str, str], ...]) -> Program:
    """Compiles C text that has a program function of this name; raises as `compile_program`."""
    bcc = _import_bcc()
    triplet = sysconfig.get_config_var("MULTIARCH") or ""
    flags = [
        *_WARNINGS,
        *(f"-D{key}={value}" for key, value in constants),
        "-I/usr/include",
        f"-I/usr/include/{triplet}",
    ]
    with as_file(files("tidegate.bpf").joinpath("shim")) as shim:
        os.environ["BCC_KERNEL_SOURCE"] = str(shim)
        module, messages = _quietly(bcc, text, flags)
    if module is None:
        raise CompileError(f"{program}.c does not compile:\n{messages}", messages)
    try:
        tables = {name: module[name.encode()] for name in _table_names(bcc, module)}
        leaves = {
            name: Leaf(
                ctypes.sizeof(table.Key),
                ctypes.sizeof(leaf),
                _fields(table.Key),
                _fields(leaf),
            )
            for name, table in tables.items()
            # In a per-CPU table bcc calls one CPU's value sLeaf, and Leaf the array of them all.
            for leaf in [getattr(table, "sLeaf", table.Leaf)]
        }
        descriptors = {table.map_fd: name for name, table in tables.items()}
        return Program(program, module.dump_func(program.encode()), descriptors, leaves)
    finally:
        module.cleanup()


def _table_names(bcc: Any, module: Any) -> list[str]:  # noqa: ANN401
    lib = bcc.libbcc.lib
    lib.bpf_table_name.restype = ctypes.c_char_p  # bcc itself never calls these two
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    return [
        lib.bpf_table_name(module.module, index).decode()
        for index in range(lib.bpf_num_tables(module.module))
    ]


def _quietly(bcc: Any, text: str, flags: list[str]) -> tuple[Any, str]:  # noqa: ANN401
    """Runs bcc and returns the module or None, and what the compiler said."""
    with _captured() as messages:
        try:
            module = bcc.BPF(text=text.encode(), cflags=flags)
        except Exception as error:
            if type(error) is not Exception:  # bcc raises the bare class, with our source in it
                raise
            module = None
    return module, messages.getvalue()


@contextmanager
def _captured() -> Iterator[StringIO]:
    """Catches what C code writes to descriptor 2; it is complete when the block ends."""
    messages = StringIO()
    saved = os.dup(2)
    with TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            messages.write(sink.read().decode(errors="replace"))


def load(program: Program, maps: Mapping[str, int], kind: Kind = Kind.XDP) -> int:
    """Loads a program over these maps (table name to descriptor) and returns its descriptor.

    What tc runs (`SCHED_CLS`) has the limits of what the driver runs.

    Raises:
        CompileError: with the verifier's log; also for a program that it takes more work or stack
            to verify than ours may (MOST_VERIFIED, MOST_STACK).
        CapabilityError: not root, and a capability is missing.
        DataplaneError: a table that the program uses has no map.
    """
    code = bytearray(program.code)
    for at in range(0, len(code), 8):
        if code[at] == _LD_IMM64 and code[at + 1] >> 4 == _PSEUDO_MAP_FD:
            table = program.tables[struct.unpack_from("<i", code, at + 4)[0]]
            if table not in maps:
                raise DataplaneError(
                    f"program {program.name} uses map {table!r}, which is not there"
                )
            struct.pack_into("<i", code, at + 4, maps[table])
    # The log of every state takes five times as long as the verification: it is asked for only
    # when there is something to explain.
    fd, number, log = _load(program.name, bytes(code), kind, _LOG_SUMMARY)
    if fd < 0 and number == errno.EPERM:
        raise CapabilityError(
            f"may not load BPF program {program.name}: run as root, or with CAP_BPF, CAP_NET_ADMIN "
            "and CAP_PERFMON"
        )
    if fd < 0:
        _, number, log = _load(program.name, bytes(code), kind, _LOG_STATES)
        raise _refused(program.name, number, log)
    effort = Effort.of(log)
    if effort.instructions > MOST_VERIFIED or effort.stack > MOST_STACK:
        os.close(fd)
        raise CompileError(
            f"program {program.name} takes the verifier {effort.instructions:,} instructions and "
            f"{effort.stack} bytes of stack; {MOST_VERIFIED:,} and {MOST_STACK} are allowed",
            log,
        )
    return fd


@dataclass(frozen=True)
class Effort:
    """What the verifier says of a program that it took: instructions looked at, bytes of stack."""

    instructions: int
    stack: int

    @classmethod
    def of(cls, log: str) -> "Effort":
        """Reads the summary at the end of a log; a kernel that does not say counts as 0."""
        processed = re.search(r"^processed (\d+) insns", log, re.MULTILINE)
        stack = re.search(r"^stack depth (\d+)", log, re.MULTILINE)
        return cls(int(processed[1]) if processed else 0, int(stack[1]) if stack else 0)


def _load(name: str, code: bytes, kind: Kind, log_level: int) -> tuple[int, int, str]:
    """Descriptor or -1, errno, and the verifier's log."""
    lib = _import_bcc().libbcc.lib
    instructions = ctypes.create_string_buffer(code, len(code))
    log = ctypes.create_string_buffer(1 << 20)
    with _captured():  # libbcc would print the log too
        fd: int = lib.bcc_prog_load(
            *(kind, name.encode(), instructions, len(code), b"GPL", 0, log_level, log, len(log))
        )
        number = ctypes.get_errno()
    return fd, number, log.value.decode(errors="replace")


def _refused(name: str, number: int, log: str) -> TidegateError:
    if "prohibited for !root" in log:
        return CapabilityError(
            f"the verifier wants CAP_PERFMON for program {name}, whose packet offsets are not "
            "constants: run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
        )
    tail = "\n".join(log.splitlines()[-12:])
    return CompileError(
        f"the kernel refused program {name} ({os.strerror(number)}); its log: {tail}", log
    )
