# SPDX-License-Identifier: Apache-2.0
"""A process that compiles one program with bcc, and ends: see `compiler`, which starts it.

    python -m tidegate.dataplane.kernel.bcc_process <request >answer

The request and the answer are JSON of `compiler.Request` and `compiler.Program`. The compiler's
messages go to stderr, and the exit code is 1 if it refused the text, 3 if bcc is not installed.
"""

import ctypes
import os
import sys
import sysconfig
from importlib.resources import as_file, files
from typing import Any, Final

import msgspec

from tidegate.dataplane.kernel.compiler import NO_BCC, Leaf, Program, Request

_WARNINGS: Final = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unused-function")


def main() -> int:
    """Read the request, write the answer, and return the exit code."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    answer = os.dup(1)
    os.dup2(2, 1)  # bcc writes some messages to stdout
    try:
        import bcc  # noqa: PLC0415 - its absence is an answer
    except ImportError as error:
        sys.stderr.write(
            "cannot import bcc: install Debian's python3-bpfcc (apt install python3-bpfcc), and "
            "run from a virtual environment of its Python (/usr/bin/python3 -m venv "
            f"--system-site-packages); the reason was: {error}\n"
        )
        return NO_BCC
    module = _compile(bcc, request)
    if module is None:
        return 1
    program = _program(bcc, module, request.program)
    with open(answer, "wb") as out:  # noqa: PTH123 - a descriptor
        out.write(msgspec.json.encode(program))
    return 0


def _compile(bcc: Any, request: Request) -> Any | None:  # noqa: ANN401 - bcc has no types
    triplet = sysconfig.get_config_var("MULTIARCH") or ""
    flags = [
        *_WARNINGS,
        *(f"-D{key}={value}" for key, value in request.constants),
        "-I/usr/include",
        f"-I/usr/include/{triplet}",
    ]
    with as_file(files("tidegate.bpf").joinpath("shim")) as shim:
        os.environ["BCC_KERNEL_SOURCE"] = str(shim)
        try:
            return bcc.BPF(text=request.text.encode(), cflags=flags)
        except Exception as error:
            if type(error) is not Exception:  # bcc raises the bare class, with our source in it
                raise
            return None


def _program(bcc: Any, module: Any, name: str) -> Program:  # noqa: ANN401
    tables = {table: module[table.encode()] for table in _table_names(bcc, module)}
    leaves = {
        table: Leaf(
            key_size=ctypes.sizeof(found.Key),
            size=ctypes.sizeof(leaf),
            key_fields=_fields(found.Key),
            fields=_fields(leaf),
        )
        for table, found in tables.items()
        # In a per-CPU table bcc calls one CPU's value sLeaf, and Leaf the array of them all.
        for leaf in [getattr(found, "sLeaf", found.Leaf)]
    }
    descriptors = {found.map_fd: table for table, found in tables.items()}
    code = module.dump_func(name.encode())
    return Program(name=name, code=code, tables=descriptors, leaves=leaves)


def _table_names(bcc: Any, module: Any) -> list[str]:  # noqa: ANN401
    lib = bcc.libbcc.lib
    lib.bpf_table_name.restype = ctypes.c_char_p  # bcc itself never calls these two
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    return [
        lib.bpf_table_name(module.module, index).decode()
        for index in range(lib.bpf_num_tables(module.module))
    ]


def _fields(ctype: Any) -> tuple[tuple[str, int], ...]:  # noqa: ANN401 - ctypes has no such type
    names = getattr(ctype, "_fields_", ())
    return tuple((field[0], getattr(ctype, field[0]).offset) for field in names)


if __name__ == "__main__":
    sys.exit(main())
