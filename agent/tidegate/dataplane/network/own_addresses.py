# SPDX-License-Identifier: Apache-2.0
"""The addresses of this host's interfaces, which a VIP that is a network leaves out.

Without this a network VIP over the host's own address would take the answers of etcd, and nobody
could tell the host otherwise. All addresses of all interfaces count, of both families, the loopback
among them. They are written where the program looks; what is in the map is read again each time,
so an entry that somebody deleted comes back.
"""

import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tidegate.dataplane.kernel import maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.errors import DataplaneError
from tidegate.event_log import EventLog
from tidegate.model.address import packed
from tidegate.model.values import Address

log = EventLog(__name__)

_MAP: Final = "own_addresses"
_PRESENT: Final = (1).to_bytes(4, "little")


def read() -> frozenset[Address]:
    """Read the addresses of all interfaces of this network namespace.

    Raises:
        DataplaneError: the kernel did not say.
    """
    try:
        with IPRoute() as netlink:
            found = [
                message
                for family in (socket.AF_INET, socket.AF_INET6)
                for message in netlink.get_addr(family=family)
            ]
    except (NetlinkError, OSError) as error:
        raise DataplaneError(f"cannot read this host's own addresses: {error}") from error
    return frozenset(ip_address(text) for text in map(_local, found) if text)


def _local(message: Any) -> str | None:  # noqa: ANN401 - pyroute2 has no types
    """Return a message's own address: of a point-to-point link IFA_ADDRESS is the peer's."""
    text: str | None = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return text


def write(fd: int, addresses: Iterable[Address]) -> bool:
    """Make the map hold exactly these; what comes is written before anything goes.

    Returns:
        Whether it held anything else.

    Raises:
        DataplaneError: the kernel refused, as for more than the map holds.
    """
    wanted = {packed(address) for address in addresses}
    try:
        there = maps.read_all(_MAP, fd).keys()
        for key in sorted(wanted - there):
            bpf.map_update(fd, key, _PRESENT)
        for key in sorted(there - wanted):
            bpf.map_delete(fd, key)
    except OSError as error:
        raise DataplaneError(f"cannot write this host's own addresses: {error}") from error
    return wanted != there


class OwnAddresses:
    """What the program was last told, from the first `follow` on.

    Args:
        fd: of the map.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.addresses: frozenset[Address] = frozenset()

    def follow(self) -> None:
        """Read them, and tell the program if they changed.

        Raises:
            DataplaneError: they cannot be read or written; the program keeps what it has.
        """
        found = read()
        if write(self._fd, found) or found != self.addresses:
            log.info("own_addresses", count=len(found))
        self.addresses = found
