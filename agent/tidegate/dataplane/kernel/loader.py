# SPDX-License-Identifier: Apache-2.0
"""The loader of compiled programs: over given maps, with limits of our own on their size."""

import errno
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.compiler import Program
from tidegate.errors import CapabilityError, CompileError, DataplaneError, TidegateError

MOST_VERIFIED: Final = 250_000
"""Instructions that the verifier may look at; the kernel's own limit is a million."""

MOST_STACK: Final = 480
"""Bytes; the kernel's own limit is 512."""

_LD_IMM64, _PSEUDO_MAP_FD = 0x18, 1
_LOG_STATES, _LOG_SUMMARY = 1, 4


class Kind(IntEnum):
    """Where a program runs: `enum bpf_prog_type` of include/uapi/linux/bpf.h."""

    SCHED_CLS = 3
    XDP = 6


def load(program: Program, maps: Mapping[str, int], kind: Kind = Kind.XDP) -> int:
    """Load a program over these maps (table name to descriptor); return its descriptor.

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
    loaded = bpf.program_load(kind, program.name, bytes(code), _LOG_SUMMARY)
    if loaded.fd < 0 and loaded.errno == errno.EPERM:
        raise CapabilityError(
            f"may not load BPF program {program.name}: run as root, or with CAP_BPF, CAP_NET_ADMIN "
            "and CAP_PERFMON"
        )
    if loaded.fd < 0:
        explained = bpf.program_load(kind, program.name, bytes(code), _LOG_STATES)
        raise _refused(program.name, loaded.errno, explained.log)
    effort = Effort.of(loaded.log)
    if effort.instructions > MOST_VERIFIED or effort.stack > MOST_STACK:
        os.close(loaded.fd)
        raise CompileError(
            f"program {program.name} takes the verifier {effort.instructions:,} instructions and "
            f"{effort.stack} bytes of stack; {MOST_VERIFIED:,} and {MOST_STACK} are allowed",
            loaded.log,
        )
    return loaded.fd


@dataclass(frozen=True)
class Effort:
    """The verifier's effort for an accepted program: instructions checked, bytes of stack."""

    instructions: int
    stack: int

    @classmethod
    def of(cls, log: str) -> "Effort":
        """Read the summary at the end of a log; a number that is missing counts as 0."""
        processed = re.search(r"^processed (\d+) insns", log, re.MULTILINE)
        stack = re.search(r"^stack depth (\d+)", log, re.MULTILINE)
        return cls(int(processed[1]) if processed else 0, int(stack[1]) if stack else 0)


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
