# SPDX-License-Identifier: Apache-2.0
"""The backends' end of the tunnel: loads bpf/decap.c with what it is to accept, and counts.

It stays attached when its object is closed. The balancer's end is `programs` and `plane`.

`python -m tidegate.dataplane.tunnel.tunnel > bpf/tunnel.h` renews the header with the outcomes.
"""

import os
import sys
from collections import Counter
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from tidegate.dataplane.kernel import maps, objects, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.compiler import Program, compile_program
from tidegate.dataplane.kernel.enums import enum_text
from tidegate.dataplane.kernel.loader import load
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.model.values import Address
from tidegate.spec.decap import ANYTHING, Accept, Outcome

_U32, _U64 = 4, 8
_ADDRESS_BYTES: Final = 20
"""`struct address` of bpf/decap.c: family, then address, both in network order."""

_MOST_ADDRESSES: Final = 256
_MOST_SOURCES: Final = 256
PORT_SHAPE: Final = maps.Shape(bpf.ARRAY, _U32, _U32, 1)
"""Of a map that no program reads: which GUE port the program beside it was built for."""
_YES: Final = (1).to_bytes(_U32, "little")


class CountedProgram:
    """A loaded program with a per-CPU array of counters, closed together."""

    def __init__(self, program: int, fds: dict[str, int], counts: str, size: int) -> None:
        self.program = program
        self._fds = fds
        self._counts = counts
        self._size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors; what is attached or pinned stays."""
        os.close(self.program)
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def pin_counters(self, path: Path) -> None:
        """Pin the counters on a BPF file system, for `read_counters` of another process."""
        bpf.pin(self._fds[self._counts], str(path))

    def _read(self) -> list[int]:
        return read_totals(self._fds[self._counts], self._size)


def read_totals(fd: int, size: int) -> list[int]:
    """Read a per-CPU array of 64-bit counters, summed over the CPUs."""
    cpus = maps.cpu_count()
    _, values, count = bpf.map_items(fd, _U32, _U64 * cpus, size)
    totals = np.frombuffer(values, "<u8").reshape(count, cpus).sum(axis=1)
    return [int(total) for total in totals]


def create_map(name: str, shape: maps.Shape) -> int:
    """Create a map without a pin; return its descriptor.

    Raises:
        CapabilityError: not allowed.
    """
    try:
        return bpf.map_create(
            shape.kind,
            f"tg_{name}",
            shape.key_size,
            shape.value_size,
            shape.max_entries,
            shape.flags,
        )
    except PermissionError as error:
        raise CapabilityError(
            f"may not create BPF map {name!r}: run as root, or with CAP_BPF and CAP_NET_ADMIN"
        ) from error


# Backends: out of the tunnel


def decap_shapes() -> dict[str, maps.Shape]:
    """Return the maps of bpf/decap.c."""
    return {
        "decap_addresses": maps.Shape(bpf.HASH, _ADDRESS_BYTES, _U32, _MOST_ADDRESSES),
        "decap_sources": maps.Shape(
            bpf.LPM_TRIE, _U32 + _ADDRESS_BYTES, _U32, _MOST_SOURCES, bpf.F_NO_PREALLOC
        ),
        "decap_counts": maps.Shape(bpf.PERCPU_ARRAY, _U32, _U64, len(Outcome)),
    }


def compile_decap(accept: Accept) -> Program:
    """Compile bpf/decap.c for what it is to accept; unused checks are left out."""
    constants = [("GUE_PORT", str(accept.gue_port)), ("COUNT", "1")]
    if accept.addresses:
        constants.append(("CHECK_DESTINATION", "1"))
    if accept.sources:
        constants.append(("CHECK_SOURCE", "1"))
    return compile_program("decap", tuple(constants))


class Decap(CountedProgram):
    """bpf/decap.c, loaded with maps of its own."""

    def __init__(self, accept: Accept = ANYTHING) -> None:
        """Compile and loads it.

        Raises:
            CompileError: with the compiler's or the verifier's messages.
            CapabilityError: not root, or no bcc.
            DataplaneError: more addresses or prefixes than there is room for.
        """
        _check_size("tunnel addresses", len(accept.addresses), _MOST_ADDRESSES)
        _check_size("source prefixes", len(accept.sources), _MOST_SOURCES)
        program = compile_decap(accept)
        shapes = decap_shapes()
        fds = {name: create_map(name, shape) for name, shape in shapes.items()}
        for address in accept.addresses:
            bpf.map_update(fds["decap_addresses"], _address(address), _YES)
        for network in accept.sources:
            bpf.map_update(fds["decap_sources"], _prefix(network), _YES)
        super().__init__(load(program, fds), fds, "decap_counts", len(Outcome))
        objects.bind(self.program, fds.values())  # those too that it does not use

    def attach(self, interface: str, mode: programs.XdpMode = "native") -> None:
        """Attach it to an interface of this network namespace; raise as `programs.attach`."""
        programs.attach(self.program, interface, mode)

    def pin(self, folder: Path) -> None:
        """Pin the maps under their names, for another process to read."""
        for name, fd in self._fds.items():
            bpf.pin(fd, str(folder / name))

    def counters(self) -> Counter[Outcome]:
        """Read the tunnel packets by outcome."""
        return named(Outcome, self._read())


def _check_size(what: str, wanted: int, most: int) -> None:
    if wanted > most:
        raise DataplaneError(f"{wanted} {what} are too many: decapsulation takes up to {most}")


def _address(address: Address) -> bytes:
    return address.version.to_bytes(4) + address.packed.ljust(16, b"\0")


def _prefix(network: IPv4Network | IPv6Network) -> bytes:
    """Return key of the prefix map: length in bits, family included, then the address."""
    length = 32 + network.prefixlen
    return length.to_bytes(_U32, "little") + _address(network.network_address)


def attach_decap(
    interface: str, accept: Accept = ANYTHING, mode: programs.XdpMode = "native"
) -> None:
    """Attach bpf/decap.c to a backend's interface, where it stays; raise as `Decap` does."""
    with Decap(accept) as decap:
        decap.attach(interface, mode)


def read_counters(path: Path) -> Counter[Outcome]:
    """Read the counters that a `Decap` pinned."""
    fd = bpf.open_pin(str(path))
    try:
        return named(Outcome, read_totals(fd, len(Outcome)))
    finally:
        os.close(fd)


def named(kind: Any, totals: list[int]) -> Counter[Any]:  # noqa: ANN401 - either of two enums
    """Return counters by the members of an enum, which count from 0; without those at 0."""
    return Counter({kind(i): total for i, total in enumerate(totals) if total})


def render() -> str:
    """Return the text of bpf/tunnel.h."""
    return "\n".join(
        [
            "/* SPDX-License-Identifier: GPL-2.0-only */",
            "/* Generated from agent/tidegate/spec/decap.py, where each has its meaning.",
            " * Renew with: python -m tidegate.dataplane.tunnel.tunnel > bpf/tunnel.h */",
            "#pragma once",
            "",
            enum_text(Outcome, "DECAP_", "OUTCOMES"),
            "",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(render())
