# SPDX-License-Identifier: Apache-2.0
"""Named network namespaces: make, enter, list, and find the processes that live in one.

Only the network namespace is entered, never the mounts as `ip netns exec` does, which would hide
/sys/fs/bpf. Entering concerns the calling thread alone; a child that it starts inherits it.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pyroute2 import netns as pyroute2_netns

from tidegate.errors import CapabilityError, LabError
from tidegate.lab.plan import NETNS_ROOT

_CLONE_NEWNET: Final = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def create(name: str) -> None:
    """Make a named namespace.

    Raises:
        CapabilityError: not allowed here.
        LabError: the kernel refused for another reason.
    """
    try:
        pyroute2_netns.create(name)
    except PermissionError as error:
        raise CapabilityError(
            f"may not make network namespace {name}: run as root, and in a container with "
            "CAP_SYS_ADMIN and CAP_NET_ADMIN (docker run --privileged)"
        ) from error
    except OSError as error:
        raise LabError(f"cannot make network namespace {name}: {error.strerror}") from error


def remove(name: str) -> None:
    """Remove a namespace's name; it ends with its last process and socket."""
    with suppress(FileNotFoundError):
        pyroute2_netns.remove(name)


def named(prefix: str) -> list[str]:
    """Return names of existing namespaces that start with a prefix, sorted."""
    if not NETNS_ROOT.is_dir():
        return []
    return sorted(entry.name for entry in NETNS_ROOT.iterdir() if entry.name.startswith(prefix))


@contextmanager
def entered(name: str) -> Iterator[None]:
    """Run the body with the calling thread in a namespace.

    Raises:
        LabError: there is no such namespace.
        CapabilityError: may not enter it.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        try:
            there = os.open(NETNS_ROOT / name, os.O_RDONLY)
        except FileNotFoundError as error:
            raise LabError(f"there is no network namespace {name}") from error
        try:
            _set(there, name)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _set(home, "of this process")
    finally:
        os.close(home)


def _set(fd: int, name: str) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        reason = os.strerror(ctypes.get_errno())
        raise CapabilityError(
            f"may not enter network namespace {name} ({reason}): run as root, with CAP_SYS_ADMIN"
        )


def processes(names: list[str]) -> dict[int, str]:
    """Return processes whose network namespace is one of these: pid to namespace name.

    They are found by the namespace's inode, so also when their parent is gone. The calling
    process is never among them.
    """
    inodes: dict[tuple[int, int], str] = {}
    for name in names:
        with suppress(OSError):  # removed meanwhile
            status = (NETNS_ROOT / name).stat()
            inodes[status.st_dev, status.st_ino] = name
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # ended meanwhile, or a zombie
            status = (entry / "ns/net").stat()
            home = inodes.get((status.st_dev, status.st_ino))
            if home is not None:
                found[int(entry.name)] = home
    return found


def sysctl(settings: dict[str, str]) -> None:
    """Write settings of the namespace that the thread is in: path below /proc/sys/net to value.

    Raises:
        LabError: the kernel does not have a setting, or refused it.
    """
    for key, value in settings.items():
        try:
            Path("/proc/sys/net", key).write_text(value)
        except OSError as error:
            raise LabError(f"cannot set net/{key} to {value}: {error.strerror}") from error
