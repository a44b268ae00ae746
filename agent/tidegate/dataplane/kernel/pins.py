# SPDX-License-Identifier: Apache-2.0
"""The folder of a data plane's pins on the BPF file system, and the programs pinned in it."""

import ctypes
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.errors import CapabilityError

PROGRAM: Final = "program"
"""Name of the pin of the balancer that runs."""
NEXT_PROGRAM: Final = "program-next"
"""Name of the pin of the balancer that is about to replace it."""

_BPF_FS_MAGIC: Final = 0xCAFE4A11
_MOUNT_POINT: Final = Path("/sys/fs/bpf")
_MS_NOSUID_NODEV_NOEXEC: Final = 2 | 4 | 8


def make_plane_folder(pins: Path) -> None:
    """Make the folder of a data plane's pins; raise as `make_bpf_folder` does."""
    make_bpf_folder(pins)  # by itself, so that advice names it
    make_bpf_folder(pins / "tables")


def make_bpf_folder(pins: Path) -> None:
    """Make a folder for pins, and mount the BPF file system if it is missing.

    Raises:
        CapabilityError: it cannot be made there.
    """
    if not any(_is_bpf_fs(parent) for parent in [pins, *pins.parents] if parent.exists()):
        if _MOUNT_POINT not in pins.parents:
            raise CapabilityError(
                f"pin_dir {pins} is not on a BPF file system: mount one there "
                f"(`mkdir -p {pins} && mount -t bpf -o mode=0700 bpf {pins}`), or use a folder of "
                f"{_MOUNT_POINT}"
            )
        _mount()
    try:
        pins.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CapabilityError(
            f"cannot create {pins}: {error.strerror}. Run as root, or give the folder to the "
            "agent's user"
        ) from error


def _is_bpf_fs(path: Path) -> bool:
    buffer = ctypes.create_string_buffer(128)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        return False
    return int.from_bytes(buffer.raw[:8], "little") == _BPF_FS_MAGIC


def _mount() -> None:
    """Mount the BPF file system where systemd does; containers and minimal systems lack it."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.fsencode(_MOUNT_POINT)
    if libc.mount(b"bpf", place, b"bpf", _MS_NOSUID_NODEV_NOEXEC, b"mode=0700") != 0:
        raise CapabilityError(
            f"there is no BPF file system at {_MOUNT_POINT} and it cannot be mounted "
            f"({os.strerror(ctypes.get_errno())}): run `mount -t bpf bpf {_MOUNT_POINT}` as root"
        )


def pinned_programs(pins: Path) -> set[int]:
    """Return the ids of pinned programs: one, or two after a crash during a replacement."""
    return {number_at(pins / name) for name in (PROGRAM, NEXT_PROGRAM)} - {0}


def number_at(path: Path) -> int:
    """Return the number of what is pinned at a path; 0 if nothing is, or what is no BPF object.

    Raises:
        OSError: it cannot be told, as for want of descriptors.
    """
    try:
        fd = bpf.open_pin(str(path))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP):
            return 0
        raise
    try:
        return bpf.object_id(fd)
    finally:
        os.close(fd)


def pin_anew(fd: int, path: Path) -> None:
    """Pin a map or program, in place of what is pinned at this path."""
    path.unlink(missing_ok=True)
    bpf.pin(fd, str(path))


def empty_plane_folder(pins: Path) -> None:
    """Remove all pins of a folder and leave it ready for new ones; what is attached runs on."""
    for folder, _, names in os.walk(pins, topdown=False):
        for name in own_pins(names):
            (Path(folder) / name).unlink()
    next_maps = pins / "next"
    if next_maps.exists():
        next_maps.rmdir()


def own_pins(names: Iterable[str]) -> list[str]:
    """Leave out files of the kernel's own, which are at the top of a BPF file system."""
    return [name for name in names if "." not in name]
