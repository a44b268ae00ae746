# SPDX-License-Identifier: Apache-2.0
"""What tells this host's data plane from all others, so that two hosts of one name are noticed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tidegate.dataplane.kernel import syscalls as bpf

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def instance(maps: Mapping[str, int]) -> str:
    """Return the boot id and the number that the kernel gave to the ledger.

    It is the same for as long as what is pinned is there, whatever becomes of the agent. Clones of
    a disk have other boots, and namespaces of one host have other ledgers.

    Args:
        maps: descriptors of the pinned maps by name.
    """
    return f"{_BOOT_ID.read_text('ascii').strip()}/{bpf.object_id(maps['ledger'])}"
