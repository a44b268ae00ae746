# SPDX-License-Identifier: Apache-2.0
"""Interfaces as the data plane needs them: MAC and MTU, and the gateways' MACs.

The kernel's own tables are the source: the default route names the gateway, the neighbour table its
MAC. A netlink socket wakes us on any change of link, neighbour or route; the state is then read
again, so that a lost message costs nothing. The balancer's packets bypass the stack, so nothing
else keeps the neighbour entry alive: we ask the kernel to (NTF_USE).
"""

import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

import numpy as np
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tidegate import spec
from tidegate.dataplane.kernel import layout
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.programs import Attachment, attachment
from tidegate.errors import DataplaneError
from tidegate.model.constants import MAX_INTERFACE_INDEX
from tidegate.model.values import Address

_GROUPS: Final = 0x1 | 0x4 | 0x40 | 0x400  # RTMGRP_LINK, _NEIGH, _IPV4_ROUTE, _IPV6_ROUTE
_NTF_USE: Final = 1
_NUD_VALID: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # a MAC that the stack itself would use
_NUD_FRESH: Final = 0x02 | 0x40 | 0x80  # reachable, noarp, permanent
_MAIN_TABLE: Final = 254
_SETTLE_MS: Final = 20
_NO_MAC: Final = b"\0" * 6


@dataclass(frozen=True)
class Gateways:
    """Next hops from the agent's file; None means that of the default route."""

    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None


@dataclass(frozen=True)
class Link:
    """An interface as the data plane sees it. A gateway without MAC is not resolved yet.

    Attributes:
        mtu: largest IP packet that it carries, bytes.
        program: the XDP program that is on it.
        queues: that it receives on; each can be another CPU's.
    """

    interface: str
    index: int
    mac: bytes
    mtu: int
    gateway4: Address | None
    gateway6: Address | None
    gateway4_mac: bytes | None
    gateway6_mac: bytes | None
    program: Attachment | None
    queues: int = 1

    def log_fields(self) -> dict[str, object]:
        """Return the fields of an event that reports it."""
        return {
            "interface": self.interface,
            "mtu": self.mtu,
            "gateway4": self.gateway4,
            "gateway4_mac": self.gateway4_mac.hex(":") if self.gateway4_mac else None,
            "gateway6": self.gateway6,
            "gateway6_mac": self.gateway6_mac.hex(":") if self.gateway6_mac else None,
        }

    def missing(self) -> str | None:
        """Return why it cannot forward, as a sentence, or None."""
        if self.gateway4_mac or self.gateway6_mac:
            return None
        if self.gateway4 or self.gateway6:
            return f"{self.interface}: the gateway's MAC address is not resolved yet"
        return f"{self.interface}: no default route, and no gateway in the agent's file"


def read(interface: str, gateways: Gateways) -> Link:
    """Read an interface's facts, and ask the kernel to resolve a gateway that is not fresh.

    Raises:
        DataplaneError: the interface does not exist.
    """
    with IPRoute() as netlink:
        try:
            link = netlink.link("get", ifname=interface)[0]
        except NetlinkError as error:
            raise DataplaneError(f"there is no interface {interface!r}") from error
        index = link["index"]
        hop4 = gateways.ipv4 or _default_gateway(netlink, socket.AF_INET, index)
        hop6 = gateways.ipv6 or _default_gateway(netlink, socket.AF_INET6, index)
        return Link(
            interface=interface,
            index=index,
            mac=_mac(link.get_attr("IFLA_ADDRESS")) or _NO_MAC,
            mtu=link.get_attr("IFLA_MTU"),
            gateway4=hop4,
            gateway6=hop6,
            gateway4_mac=_neighbour(netlink, index, hop4),
            gateway6_mac=_neighbour(netlink, index, hop6),
            program=attachment(link),
            queues=link.get_attr("IFLA_NUM_RX_QUEUES") or 1,
        )


def of_spec(interface: str, index: int, link: spec.Link) -> Link:
    """Return an interface as the specification describes it, for a program without a real one."""
    return Link(
        interface=interface,
        index=index,
        mac=link.mac,
        mtu=link.mtu,
        gateway4=None,
        gateway6=None,
        gateway4_mac=link.gateway4,
        gateway6_mac=link.gateway6,
        program=None,
    )


def _mac(text: str | None) -> bytes | None:
    return bytes.fromhex(text.replace(":", "")) if text else None


def _default_gateway(netlink: Any, family: int, index: int) -> Address | None:  # noqa: ANN401
    """Return the next hop of the interface's default route with the lowest metric."""
    best: tuple[int, str] | None = None
    for route in netlink.get_default_routes(family=family, table=_MAIN_TABLE):
        metric = route.get_attr("RTA_PRIORITY") or 0
        for hop in route.get_attr("RTA_MULTIPATH") or [route]:
            via = hop.get_attr("RTA_GATEWAY")
            leaves = hop.get_attr("RTA_OIF") or hop.get("oif")
            if via and leaves == index and (best is None or metric < best[0]):
                best = (metric, via)
    if best is None:
        return None
    return IPv4Address(best[1]) if family == socket.AF_INET else IPv6Address(best[1])


def _neighbour(netlink: Any, index: int, hop: Address | None) -> bytes | None:  # noqa: ANN401
    """Return the MAC of a next hop; have the kernel probe for one that it is not sure of."""
    if hop is None:
        return None
    family = socket.AF_INET if hop.version == 4 else socket.AF_INET6  # noqa: PLR2004
    found = [
        entry
        for entry in netlink.get_neighbours(family=family, ifindex=index)
        if entry.get_attr("NDA_DST") == str(hop)
    ]
    state = found[0]["state"] if found else 0
    if not state & _NUD_FRESH:
        with suppress(NetlinkError):  # the link may be down; its coming up wakes us
            netlink.neigh(
                "replace", dst=str(hop), ifindex=index, family=family, flags=_NTF_USE, state=0
            )
    return _mac(found[0].get_attr("NDA_LLADDR")) if state & _NUD_VALID else None


def write(links_fd: int, link: Link) -> None:
    """Put an interface's facts where the program reads them.

    Raises:
        DataplaneError: its index is beyond what the map holds.
    """
    if link.index >= MAX_INTERFACE_INDEX:
        raise DataplaneError(
            f"{link.interface} has index {link.index}; the data plane takes indexes below "
            f"{MAX_INTERFACE_INDEX}: restart the host, or use a network namespace of its own"
        )
    entry = np.array(
        [
            (
                (link.gateway4_mac or _NO_MAC) + link.mac,
                (link.gateway6_mac or _NO_MAC) + link.mac,
                link.mtu,
                link.gateway4_mac is not None,
                link.gateway6_mac is not None,
                0,
            )
        ],
        layout.LINK,
    )
    bpf.map_update(links_fd, link.index.to_bytes(4, "little"), entry.tobytes())


class LinkWatch:
    """A watch that calls back on any change of links, neighbours or routes, from its own thread."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, _GROUPS))
        self._wake, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="links", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching and join the thread."""
        self._stop.send(b"x")
        self._thread.join()
        for each in (self._socket, self._wake, self._stop):
            each.close()

    def _run(self) -> None:
        both, only_stop = select.poll(), select.poll()
        both.register(self._socket, select.POLLIN)
        for poller in (both, only_stop):
            poller.register(self._wake, select.POLLIN)
        while self._wake.fileno() not in {fd for fd, _ in both.poll()}:
            # One change comes as several messages; they are handled together.
            if only_stop.poll(_SETTLE_MS):
                return
            self._drain()
            self._changed()

    def _drain(self) -> None:
        # BlockingIOError: no more. ENOBUFS: some were lost, one more reason to read afresh.
        with suppress(OSError):
            while True:
                self._socket.recv(65536, socket.MSG_DONTWAIT)
