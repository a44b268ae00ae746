# SPDX-License-Identifier: Apache-2.0
"""The VIPs as routes of a table of their own, from which a routing daemon announces them.

Why not as addresses of a device: an address is local. The kernel would answer marked probes to a
VIP itself instead of sending them out to the tunnel (the `local` table comes before all others),
and it would drop the backends' answers to them, whose source would be its own address.

A route of a table that no rule looks up changes nothing for any packet of this host. It is of
type blackhole, so it needs no device, and it stays when a link goes down or the agent dies. Routes
are ours by their protocol number; others in the table are left alone.
"""

import socket
from ipaddress import ip_network
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tidegate.errors import DataplaneError
from tidegate.model.values import Network

PROTOCOL: Final = 84
"""rtnetlink(7) rtm_protocol, a number that /etc/iproute2/rt_protos leaves free."""
_BLACKHOLE: Final = 6
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


def keep_routes(table: int, wanted: frozenset[Network]) -> tuple[int, int]:
    """Make our routes of a table exactly these; return how many were added and removed.

    Raises:
        DataplaneError: the kernel refused one; those before it are as wanted.
    """
    with IPRoute() as netlink:
        try:
            there = _ours(netlink, table)
            for network in sorted(wanted - there, key=str):
                _change(netlink, "add", table, network)
            for network in sorted(there - wanted, key=str):
                _change(netlink, "del", table, network)
        except NetlinkError as error:
            raise DataplaneError(f"routes of table {table}: the kernel refused: {error}") from error
    return len(wanted - there), len(there - wanted)


def _change(netlink: Any, what: str, table: int, network: Network) -> None:  # noqa: ANN401
    family = _FAMILIES[network.version]
    kind = {"table": table, "proto": PROTOCOL, "type": _BLACKHOLE}
    netlink.route(what, dst=str(network), family=family, **kind)


def _ours(netlink: Any, table: int) -> frozenset[Network]:  # noqa: ANN401 - pyroute2 has no types
    found = []
    for version, family in _FAMILIES.items():
        for route in netlink.get_routes(family=family, table=table):
            if route["proto"] == PROTOCOL and route.get_attr("RTA_TABLE") == table:
                any_address = "0.0.0.0" if version == 4 else "::"  # noqa: PLR2004, S104
                address = route.get_attr("RTA_DST") or any_address
                found.append(ip_network(f"{address}/{route['dst_len']}"))
    return frozenset(found)
