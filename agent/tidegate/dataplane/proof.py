# SPDX-License-Identifier: Apache-2.0
"""The proof of a compiled balancer on a fixed set of packets before it gets real ones.

The program is loaded over maps of its own, given a small generation, and run on a few frames by
test-run; the specification defines the expected result. A program that disagrees is refused, and
the one that runs stays.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from struct import pack
from typing import Final

from tidegate.dataplane import links
from tidegate.dataplane.kernel import maps, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.compiler import Program
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.errors import DataplaneError
from tidegate.model.features import Feature
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Backend, Desired, Pool, Vip
from tidegate.planner import plan
from tidegate.spec import Link, State, process
from tidegate.spec.balancer import NOON

_LOOPBACK: Final = 1
_LINK: Final = Link(b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x04", b"\x02\0\0\0\0\x06", 1500)
_CLIENT4, _VIP4 = ip_address("198.51.100.1").packed, ip_address("192.0.2.1")
_CLIENT6, _VIP6 = ip_address("2001:db8:1::1").packed, ip_address("2001:db8::1")
_MACS: Final = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x04"
_SYN, _ACK, _RST = 0x02, 0x10, 0x04


def prove(program: Program, build: programs.Build, pins: Path) -> None:
    """Compare the program with the specification.

    Args:
        program: compiled with `build`.
        build: what it was compiled with.
        pins: folder of the BPF file system; a folder in it is used, and removed.

    Raises:
        DataplaneError: the two disagree on a frame; the text has it in hex.
        CompileError: the verifier refuses the program.
    """
    place = pins / "proof"
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    with suppress(FileNotFoundError):  # the pins are gone; none is needed to run it
        (place / "tables").mkdir(parents=True)
    own = maps.create(maps.few(maps.shapes(build.capacity), ids=16))
    publisher = Publisher(own, place, grace=0)
    fd = -1
    try:
        fd = programs.load_balancer(program, own)
        links.write(own["links"], links.of_spec("lo", _LOOPBACK, _LINK))
        generation = _generation(build.features)
        publisher.publish(generation, 0.0)
        _compare(fd, build, generation)
    finally:
        publisher.close()
        own.close()
        if fd >= 0:
            os.close(fd)
        shutil.rmtree(place, ignore_errors=True)


def _compare(fd: int, build: programs.Build, generation: Generation) -> None:
    state = State(build.settings(), {_LOOPBACK: _LINK})
    state.install(generation)
    for frame in _frames(build.features):
        wanted = process(state, frame, _LOOPBACK, NOON)
        found = bpf.run(fd, frame)
        if (found.verdict, found.frame) != (wanted.verdict, wanted.frame):
            raise DataplaneError(
                "the new program disagrees with the specification and is not used: frame "
                f"{frame.hex()} gave verdict {found.verdict} and {found.frame.hex()}, not "
                f"{int(wanted.verdict)} and {wanted.frame.hex()}"
            )


def _generation(features: frozenset[Feature]) -> Generation:
    tcp = Vip("tcp4", ip_network(_VIP4), 80, "tcp", "p")
    vips = [tcp]
    if Feature.V6 in features:
        vips.append(Vip("tcp6", ip_network(_VIP6), 80, "tcp", "p"))
    if Feature.UDP in features:
        vips.append(replace(tcp, name="udp4", port=53, protocol="udp"))
    backends = [
        Backend("p", "b4", ip_address("203.0.113.1"), 1, "active"),
        Backend("p", "b6", ip_address("2001:db8:2::1"), 1, "active"),
    ]
    pool = Pool("p", deregistration_delay=0, transition_window=0)
    if Feature.GUE in features:
        pool = replace(pool, encapsulation="gue")
    return plan(
        Desired(1, {v.name: v for v in vips}, {"p": pool}, {b.key: b for b in backends}),
        NOTHING,
        now=1,
    )


def _frames(features: frozenset[Feature]) -> Iterator[bytes]:
    """Yield frames of new and established flows, pings, and frames that must not be touched."""
    yield _MACS + b"\x08\x06" + bytes(28)  # ARP
    yield _frame4(6, _tcp(_SYN, 1))[:40]
    yield _frame4(6, _tcp(_SYN, 1), to=ip_address("192.0.2.2").packed)
    yield _frame4(1, b"\x08\0\xf7\xff" + bytes(4))
    for port in range(8):
        for flags in (_SYN, _ACK, _ACK, _RST):
            yield _frame4(6, _tcp(flags, port))
            if Feature.V6 in features:
                yield _frame6(6, _tcp(flags, port))
        if Feature.UDP in features:
            yield _frame4(17, pack(">HHHH", 1024 + port, 53, 12, 0) + b"data")


def _tcp(flags: int, port: int) -> bytes:
    return pack(">HHIIBBHHH", 1024 + port, 80, port, 0, 5 << 4, flags, 0, 0, 0)


def _frame4(protocol: int, payload: bytes, to: bytes = _VIP4.packed) -> bytes:
    length = 20 + len(payload)
    header = pack(">BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, protocol, 0)
    return _MACS + b"\x08\x00" + header + _CLIENT4 + to + payload


def _frame6(protocol: int, payload: bytes) -> bytes:
    header = pack(">IHBB", 6 << 28, len(payload), protocol, 64)
    return _MACS + b"\x86\xdd" + header + _CLIENT6 + _VIP6.packed + payload
