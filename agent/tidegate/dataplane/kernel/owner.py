# SPDX-License-Identifier: Apache-2.0
"""Whose data plane it is: written to a map that lives as long as the program.

Pins say it by their place. A program whose pins are lost says it by this map, so that an agent
knows its own from that of another Tidegate on the same host.
"""

import msgspec

from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.maps import OWNER_BYTES
from tidegate.errors import DataplaneError

_KEY = bytes(4)


class Owner(msgspec.Struct, frozen=True):
    """An agent's data plane among all.

    Attributes:
        fleet: its name; empty for none.
        host: the host's name in it.
        pins: the folder of its pins.
    """

    fleet: str = ""
    host: str = ""
    pins: str = ""

    def __str__(self) -> str:
        """Return it as part of a sentence."""
        return f"host {self.host!r} of fleet {self.fleet!r} with pin_dir {self.pins}"


def write(fd: int, owner: Owner) -> None:
    """Write it to its map.

    Raises:
        DataplaneError: the names are longer than the map has room for.
        OSError: the kernel refused.
    """
    text = msgspec.json.encode(owner)
    if len(text) > OWNER_BYTES:
        raise DataplaneError(
            f"pin_dir {owner.pins[:40]}… is too long: fleet, host and pin_dir have "
            f"{OWNER_BYTES} bytes together; choose a shorter one"
        )
    bpf.map_update(fd, _KEY, text.ljust(OWNER_BYTES, b"\0"))


def read(fd: int) -> Owner | None:
    """Read it from its map; None if the map holds none."""
    text = bpf.map_lookup(fd, _KEY, OWNER_BYTES) or b""
    try:
        return msgspec.json.decode(text.rstrip(b"\0"), type=Owner)
    except msgspec.DecodeError:
        return None
