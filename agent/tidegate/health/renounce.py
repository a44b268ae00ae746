# SPDX-License-Identifier: Apache-2.0
"""Threads without rights, from which foreign programs are started.

Capabilities and `no_new_privs` belong to a thread in Linux, and a child has those of the thread
that forks. So a thread that gives up all of them once is a safe place to start programs from: there
is no moment between fork and exec in which anything has to be done right. Of the bounding set it
need not give up anything: with `no_new_privs` an exec gains no capability that the thread did not
have, not even as root (capabilities(7), cap_bprm_creds_from_file).

Such a thread may hang in an exec, if the program lies on a file system that does not answer. So it
is never the loop's own, and there are few.
"""

import ctypes
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Final

_THREADS: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def executor() -> ThreadPoolExecutor:
    """Return threads without rights."""
    return ThreadPoolExecutor(_THREADS, "tidegate-exec", initializer=renounce)


def renounce() -> None:
    """Take all capabilities from this thread, and the way to get any.

    Raises:
        OSError: the kernel refuses.
    """
    _call(_libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))))
    _call(_libc.prctl(_PR_CAP_AMBIENT, *map(ctypes.c_ulong, (_PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))))
    # glibc's capset is the bare system call: of this thread alone (capset(2)).
    head = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    none = ctypes.create_string_buffer(bytes(24))
    _call(_libc.capset(head, none))


def _call(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "cannot give up capabilities")
