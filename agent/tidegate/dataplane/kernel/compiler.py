# SPDX-License-Identifier: Apache-2.0
"""The compiler of the C in bpf/: bcc, in a process of its own.

bcc brings all of clang. In the agent's process it would keep 110 MiB of memory for good, and an
error in it would end the agent: bcc 0.26 dies of a segmentation fault of some errors in syntax. So
a child compiles, gives back bytecode, and ends however it does; a program that kills the compiler
is refused like one that does not compile. What comes back is loaded by `loader`.

bcc would create a map for each table that a program declares. We let it, one element each, take the
bytecode, and later put the descriptors of our own maps where it has those of bcc's. So a program
can be built before, and loaded beside, the one that runs, over the same pinned maps, and all of
this needs no more than CAP_BPF and CAP_NET_ADMIN (bcc's own way of reusing a pinned map opens it by
id, which the kernel grants to CAP_SYS_ADMIN alone).
"""

import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

import msgspec

from tidegate.errors import CapabilityError, CompileError, DataplaneError

LONGEST_COMPILATION: Final = 60.0
"""Seconds; the largest program takes 1 s of a slow core."""
NO_BCC: Final = 3
"""Exit code of the compiling process where bcc cannot be imported."""
_INCLUDE: Final = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)


class Leaf(msgspec.Struct, frozen=True):
    """Layout of a table's key and value: sizes in bytes, field names with their offsets."""

    key_size: int
    size: int
    key_fields: tuple[tuple[str, int], ...]
    fields: tuple[tuple[str, int], ...]


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A compiled program that is not loaded yet.

    Attributes:
        code: BPF instructions, 8 bytes each.
        tables: the map that each descriptor in the code stands for.
        leaves: each table's leaf size in bytes and its fields, as the compiler laid them out.
    """

    name: str
    code: bytes
    tables: Mapping[int, str]
    leaves: Mapping[str, Leaf]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The input of the compiling process: C text, its program function, macros and values."""

    program: str
    text: str
    constants: tuple[tuple[str, str], ...]


def source(name: str) -> str:
    """Return the text of a file of bpf/ with its local headers in place.

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


@cache
def compile_program(program: str, constants: tuple[tuple[str, str], ...] = ()) -> Program:
    """Compile bpf/<program>.c, whose program function has the same name.

    Args:
        program: file and function.
        constants: macros and their values.

    Raises:
        CompileError: with the compiler's messages; warnings count as errors, and so does a compiler
            that dies.
        CapabilityError: bcc is not installed, or BPF maps may not be created.
        DataplaneError: no process can be started.
    """
    return compile_text(program, source(f"{program}.c"), constants)


def compile_text(program: str, text: str, constants: tuple[tuple[str, str], ...]) -> Program:
    """Compile C text that has a program function of this name; raise as `compile_program`."""
    request = Request(program=program, text=text, constants=constants)
    # -P: whatever folder the agent is in, nothing is imported from there.
    command = (sys.executable, "-P", "-m", "tidegate.dataplane.kernel.bcc_process")
    try:
        done = subprocess.run(
            command,
            input=msgspec.json.encode(request),
            capture_output=True,
            check=False,
            timeout=LONGEST_COMPILATION,
        )
    except subprocess.TimeoutExpired as error:
        sentence = f"the compiler took longer than {LONGEST_COMPILATION:g} s"
        raise _failure(program, sentence, error.stderr or b"") from error
    except OSError as error:
        raise DataplaneError(f"cannot start the compiler: {error.strerror}") from error
    if done.returncode == NO_BCC:
        raise CapabilityError(done.stderr.decode(errors="replace").strip())
    if done.returncode < 0:
        sentence = f"the compiler was ended by a signal ({signal.strsignal(-done.returncode)})"
        # Nobody else kills it: so the kernel does where memory has run out.
        cause = MemoryError() if done.returncode == -signal.SIGKILL else None
        raise _failure(program, sentence, done.stderr) from cause
    if done.returncode > 0:
        raise _failure(program, "", done.stderr)
    return msgspec.json.decode(done.stdout, type=Program)


def _failure(program: str, sentence: str, messages: bytes) -> CompileError:
    text = "\n".join(filter(None, (sentence, messages.decode(errors="replace"))))
    return CompileError(f"{program}.c does not compile:\n{text}", text)
