# SPDX-License-Identifier: Apache-2.0
"""Waits until no packet is left in a program that was taken off its interfaces."""

import os

from tidegate.dataplane.kernel import syscalls as bpf


def wait_out_packets() -> None:
    """Return when every packet that a program looks at now has left it.

    A write to a map of maps returns after an RCU grace period (kernel/bpf/syscall.c,
    maybe_wait_bpf_programs); packets are handled within RCU's readers.

    Raises:
        OSError: the kernel refused.
    """
    inner = bpf.map_create(bpf.ARRAY, "tg_grace", 4, 4, 1)
    try:
        outer = bpf.map_create(bpf.ARRAY_OF_MAPS, "tg_grace", 4, 4, 1, 0, inner)
        try:
            bpf.map_update(outer, bytes(4), inner.to_bytes(4, "little"))
        finally:
            os.close(outer)
    finally:
        os.close(inner)
