# SPDX-License-Identifier: Apache-2.0
"""Run a Python module under the system-call filter of a unit, as systemd would set it up.

python syscall_filter.py UNIT MODULE [ARGUMENT...]
"""

import ctypes
import re
import runpy
import struct
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

_SET_NO_NEW_PRIVS, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001


def allowed(unit: Path) -> set[str]:
    """Return the names of the system calls that a unit allows; systemd knows what its sets hold."""
    parser = ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text("utf-8"))
    names: set[str] = set()
    wanted = [*parser["Service"]["SystemCallFilter"].split(), "@default"]
    while wanted:
        name = wanted.pop()
        if name.startswith("@"):
            command = ["systemd-analyze", "syscall-filter", name]
            shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            wanted += [line.strip() for line in shown.splitlines()[1:] if line[:1] == " "]
            wanted = [each for each in wanted if not each.startswith("#")]
        else:
            names.add(name)
    return names


def numbers() -> dict[str, int]:
    """Return this machine's system calls, by name."""
    command = ["gcc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"__NR_(\w+) (\d+)\n", text)}


def install(calls: set[int]) -> None:
    """Let this process, and all that it starts, make these calls only; others are EPERM."""
    code = [(_LOAD, 0, 0, 0)]
    for number in sorted(calls):
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    code.append((_RETURN, 0, 0, _EPERM))
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
    program = ctypes.create_string_buffer(
        struct.pack("HxxxxxxQ", len(code), ctypes.addressof(text))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.c_void_p(ctypes.addressof(program))) == 0


if __name__ == "__main__":
    unit, module, *arguments = sys.argv[1:]
    known = numbers()
    install({known[name] for name in allowed(Path(unit)) if name in known})
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
