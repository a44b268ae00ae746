# SPDX-License-Identifier: Apache-2.0
"""The tcx hook (Linux 6.6): a program at a device's egress that needs no queueing discipline.

It is a BPF link. Who deletes the `clsact` queueing discipline, and with it every tc filter, does
not touch it. It runs before those filters, and stays while it is pinned and the device is there.
"""

import errno
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.pins import pin_anew

_EGRESS: Final = 47
"""BPF_TCX_EGRESS of include/uapi/linux/bpf.h."""
_UNKNOWN: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
"""What kernels without tcx say."""


class Hook(NamedTuple):
    """What a pinned link does.

    Attributes:
        program: the program's id.
        device: index of its device; 0 once that has gone.
    """

    program: int
    device: int


def read(path: Path) -> Hook | None:
    """Return what the link at this path does, or None if there is none."""
    if not path.exists():
        return None
    fd = bpf.open_pin(str(path))
    try:
        return _hook(fd)
    finally:
        os.close(fd)


def attach(program: int, device: int, path: Path) -> bool:
    """Have a program run at a device's egress, in place of the one whose link is at this path.

    Args:
        program: descriptor of a loaded tc program.
        device: index.
        path: where the link is pinned.

    Returns:
        Whether the kernel has tcx.

    Raises:
        OSError: it refused otherwise.
    """
    there = read(path)
    if there is not None and there.device == device:
        fd = bpf.open_pin(str(path))
        try:
            bpf.command(bpf.LINK_UPDATE, struct.pack("<IIII", fd, program, 0, 0))
        finally:
            os.close(fd)
        return True
    try:
        fd = bpf.command(bpf.LINK_CREATE, struct.pack("<IIIIQQ", program, device, _EGRESS, 0, 0, 0))
    except OSError as error:
        if error.errno in _UNKNOWN:
            return False
        raise
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        pin_anew(fd, path)
    finally:
        os.close(fd)
    return True


def _hook(fd: int) -> Hook:
    info = bpf.object_info(fd, 64)
    # struct bpf_link_info: type, id, program, and behind padding the device.
    _, _, program, device = struct.unpack_from("<III4xI", info)
    return Hook(program, device)
