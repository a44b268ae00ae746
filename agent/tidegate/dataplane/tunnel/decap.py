# SPDX-License-Identifier: Apache-2.0
"""bpf/decap.c on a backend's interface: attached, found again by a later process, detached.

No process stays. What a later one must find is pinned in a folder per interface: the program, by
which it knows what is attached as ours, the counters, and what is accepted. The folder of a new
program is `next` until it is attached and `now` afterwards, so what is attached is pinned at any
moment, also after a crash between two steps. Where pins are lost, the program is known by its name
and maps, which live as long as it does. A foreign XDP program is never replaced.
"""

import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final, NamedTuple

from tidegate.dataplane.kernel import maps, objects, owner, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.owner import Owner
from tidegate.dataplane.kernel.pins import make_bpf_folder
from tidegate.dataplane.tunnel import tunnel
from tidegate.errors import DataplaneError
from tidegate.model.values import Address
from tidegate.spec.decap import Accept, Outcome

_NOW, _NEXT, _BEFORE = "now", "next", "before"
_PROGRAM, _COUNTS, _PORT = "program", "decap_counts", "gue_port"
_ADDRESSES, _SOURCES = "decap_addresses", "decap_sources"
_OWNER: Final = "owner"
_OWNER_SHAPE: Final = maps.shapes(maps.Capacity())[_OWNER]
_IPV4, _ADDRESS_AT = 4, 4


class Status(NamedTuple):
    """What is on an interface.

    Attributes:
        mode: how our program is attached; None if it is not.
        foreign: id of a foreign program there.
        counters: since our program was attached, whether or not it still is.
    """

    mode: programs.XdpMode | None
    foreign: int | None
    accept: Accept
    counters: Counter[Outcome]


def attach(
    interface: str, accept: Accept, mode: programs.ModeChoice, pins: Path
) -> programs.XdpMode:
    """Attach the program to an interface of this network namespace, in place of our last one.

    The exchange is atomic: no packet meets an interface without a program.

    Args:
        interface: its name.
        accept: what is taken out.
        mode: `auto` is native, or generic where the driver refuses native.
        pins: folder on a BPF file system; two network namespaces need two.

    Returns:
        The mode that it is attached in.

    Raises:
        CapabilityError: not root, no BPF file system, no bcc.
        DataplaneError: the interface does not exist, has a foreign program, or refused ours.
    """
    programs.interface_index(interface)
    with _locked(interface, pins) as folder:
        there = programs.attached(interface)
        if there is not None and there.program_id not in _ours(folder):
            raise _foreign(interface, there)
        shutil.rmtree(folder / _NEXT, ignore_errors=True)
        (folder / _NEXT).mkdir()
        with tunnel.Decap(accept) as decap:
            _pin(decap, accept, folder / _NEXT)
            found = _attach(decap, interface, mode, there)
        _take_over(folder)
    return found


def detach(interface: str, pins: Path) -> bool:
    """Detach our program from an interface, and remove its pins.

    Returns:
        Whether it was there.

    Raises:
        DataplaneError: the interface has a foreign program.
    """
    with _locked(interface, pins) as folder:
        there = programs.attached(interface) if _exists(interface) else None
        if there is not None and there.program_id not in _ours(folder):
            raise _foreign(interface, there)
        if there is not None:
            programs.detach(interface, there.mode)
        shutil.rmtree(folder)
    return there is not None


def status(interface: str, pins: Path) -> Status:
    """Read what is on an interface, what it accepts, and the outcomes of tunnel packets.

    Raises:
        DataplaneError: there is no such interface.
        CapabilityError: may not read the pins.
    """
    with _locked(interface, pins) as folder:
        there = programs.attached(interface)
        is_ours = there is not None and there.program_id in _ours(folder)
        place = next((p for p in (folder / _NOW, folder / _NEXT) if p.exists()), None)
        if place is None:
            accept, counters = Accept(), Counter[Outcome]()
        else:
            accept, counters = _accepted(place), tunnel.read_counters(place / _COUNTS)
    mode = there.mode if there is not None and is_ours else None
    return Status(
        mode, there.program_id if there is not None and not is_ours else None, accept, counters
    )


def _exists(interface: str) -> bool:
    try:
        programs.interface_index(interface)
    except DataplaneError:
        return False
    return True


@contextmanager
def _locked(interface: str, pins: Path) -> Iterator[Path]:
    """Give the interface's folder to one process at a time; remove it if it is left empty."""
    make_bpf_folder(pins)
    fd = os.open(pins, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    # A BPF file system refuses dots, and no interface has a colon in its name.
    folder = pins / interface.replace(".", ":")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        folder.mkdir(mode=0o700, exist_ok=True)
        with suppress(DataplaneError):  # there is no such interface
            _put_back(programs.attached(interface), folder)
        yield folder
    finally:
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
        os.close(fd)


def _ours(folder: Path) -> set[int]:
    """Return the ids of pinned programs: one, or more after a crash during an exchange."""
    found: set[int] = set()
    for name in (_NOW, _NEXT, _BEFORE):
        path = folder / name / _PROGRAM
        if path.exists():
            fd = bpf.open_pin(str(path))
            found.add(bpf.object_id(fd))
            os.close(fd)
    return found


def _put_back(there: programs.Attachment | None, folder: Path) -> None:
    """Pin a program of ours again whose pins are lost; its maps live as long as it does.

    Ours is what names this folder as its owner.
    """
    if there is None or there.program_id in _ours(folder):
        return
    names = (_COUNTS, _ADDRESSES, _SOURCES, _PORT, _OWNER)
    wanted = {maps.kernel_name(name): name for name in names}
    with suppress(FileNotFoundError, PermissionError), ExitStack() as opened:
        fd = opened.enter_context(objects.program(there.program_id))
        info = objects.program_info(fd)
        found = [opened.enter_context(objects.opened_map(number)) for number in info.maps]
        named = {wanted.get(objects.map_name(each), ""): each for each in found}
        if info.name != "decap" or not named.keys() >= set(names):
            return
        if owner.read(named[_OWNER]) != Owner(pins=str(folder)):
            return
        shutil.rmtree(folder / _NOW, ignore_errors=True)
        (folder / _NOW).mkdir()
        for name in names:
            bpf.pin(named[name], str(folder / _NOW / name))
        bpf.pin(fd, str(folder / _NOW / _PROGRAM))


def _foreign(interface: str, there: programs.Attachment) -> DataplaneError:
    return DataplaneError(
        f"{interface} has an XDP program that `tidegate decap` did not attach "
        f"(id {there.program_id}): if it is not needed, detach it with "
        f"{programs.off_command(interface, there.mode)}"
    )


def _pin(decap: tunnel.Decap, accept: Accept, folder: Path) -> None:
    """Pin everything; the program last, since it makes the folder valid."""
    fds = {
        _PORT: tunnel.create_map(_PORT, tunnel.PORT_SHAPE),
        _OWNER: tunnel.create_map(_OWNER, _OWNER_SHAPE),
    }
    try:
        bpf.map_update(fds[_PORT], bytes(4), accept.gue_port.to_bytes(4, "little"))
        owner.write(fds[_OWNER], Owner(pins=str(folder.parent)))
        for name, fd in fds.items():
            bpf.pin(fd, str(folder / name))
        objects.bind(decap.program, fds.values())
    finally:
        for fd in fds.values():
            os.close(fd)
    decap.pin(folder)
    bpf.pin(decap.program, str(folder / _PROGRAM))


def _attach(
    decap: tunnel.Decap,
    interface: str,
    mode: programs.ModeChoice,
    there: programs.Attachment | None,
) -> programs.XdpMode:
    wanted: programs.XdpMode = "generic" if mode == "generic" else "native"
    if mode == "auto" and there is not None:
        wanted = there.mode  # to change it would take the program off for a moment
    elif there is not None and there.mode != wanted:
        raise DataplaneError(
            f"{interface} has the program in {there.mode} mode: `tidegate decap detach {interface}`"
            f" first, or keep --mode {there.mode}"
        )
    try:
        decap.attach(interface, wanted)
    except DataplaneError:
        if mode != "auto" or wanted == "generic":
            raise
        wanted = "generic"
        decap.attach(interface, wanted)
    return wanted


def _take_over(folder: Path) -> None:
    shutil.rmtree(folder / _BEFORE, ignore_errors=True)
    if (folder / _NOW).exists():
        (folder / _NOW).rename(folder / _BEFORE)
    (folder / _NEXT).rename(folder / _NOW)
    shutil.rmtree(folder / _BEFORE, ignore_errors=True)


def _accepted(folder: Path) -> Accept:
    """Read what a pinned program takes out."""
    sizes = tunnel.decap_shapes()
    keys = {}
    for name in (_ADDRESSES, _SOURCES):
        fd = bpf.open_pin(str(folder / name))
        found, _, count = bpf.map_walk(fd, sizes[name].key_size, sizes[name].value_size)
        os.close(fd)
        size = sizes[name].key_size
        keys[name] = [found[i * size : (i + 1) * size] for i in range(count)]
    fd = bpf.open_pin(str(folder / _PORT))
    port = int.from_bytes(bpf.map_lookup(fd, bytes(4), 4) or b"", "little")
    os.close(fd)
    networks = [_network(key) for key in keys[_SOURCES]]
    return Accept(
        frozenset(map(_address, keys[_ADDRESSES])),
        tuple(sorted(networks, key=lambda network: (network.version, network))),
        port,
    )


def _address(key: bytes) -> Address:
    is_v4 = int.from_bytes(key[:_ADDRESS_AT]) == _IPV4
    return ip_address(key[_ADDRESS_AT : _ADDRESS_AT + (4 if is_v4 else 16)])


def _network(key: bytes) -> IPv4Network | IPv6Network:
    bits = int.from_bytes(key[:4], "little") - 32
    return ip_network((_address(key[4:]), bits))
