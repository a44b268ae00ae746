# SPDX-License-Identifier: Apache-2.0
"""What a lab consists of: its nodes, their addresses and their links. Values only, no I/O.

    client1 ─┐                 ┌─ lb1 …
    client2 ─┤     router      ├─ b1 … bN
    ctl ─────┘ (top of rack)   └─

Each node has one link to the router. Link number k is 10.77.k.0/24 and fd77:0:0:k::/64; the router
is .1 and ::1, the node is .2 and ::2, and a backend is also .3 and ::3, so that its encapsulation
address can change. Clients reach a VIP because the router has a route for all VIPs to the LB hosts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Final

from tidegate.errors import LabError

STATE_ROOT: Final = Path("/run/tidegate/lab")
"""Each lab has a folder of its name here: state, configuration files, logs and etcd's data."""

NETNS_ROOT: Final = Path("/run/netns")
"""Where named namespaces are, as iproute2 has it."""

VIPS4: Final = IPv4Network("10.99.0.0/24")
VIPS6: Final = IPv6Network("fd99::/64")
OUTER4: Final = IPv4Network("10.254.0.0/16")
"""Outer source addresses of encapsulated packets: nobody's own, so nothing can answer to them."""
OUTER6: Final = IPv6Network("fd54::/64")

NIC: Final = "eth0"
"""The one interface of every node but the router, whose interfaces are `to-<node>`."""

ACCESS_MTU: Final = 1500
RACK_MTU: Final = 1600
"""LB hosts and backends: room for a full client packet and a 40-byte outer IPv6 header."""

HTTP_PORT: Final = 80
ECHO_PORT: Final = 7
ETCD_PORT: Final = 2379
ETCD_PEER_PORT: Final = 2380
ROUTER: Final = "router"
CONTROL: Final = "ctl"

_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,11}")
_MAX_LBS, _MAX_BACKENDS, _MAX_ETCD_MEMBERS = 64, 150, 9


class Role(StrEnum):
    """What a node is for."""

    ROUTER = "router"
    CLIENT = "client"
    CONTROL = "control"
    LB = "lb"
    BACKEND = "backend"


@dataclass(frozen=True, slots=True)
class Station:
    """A node at the end of a link to the router.

    Attributes:
        link: the number that its addresses are made of, 1 to 250.
        mtu: of both ends of its link, bytes.
    """

    name: str
    role: Role
    link: int
    mtu: int

    @property
    def uplink(self) -> str:
        """Name of the router's end of its link."""
        return f"to-{self.name}"

    def address4(self, host: int = 2) -> IPv4Address:
        """Return an address on its link: host 1 is the router, 2 the node, 3 a backend's second."""
        return IPv4Address(f"10.77.{self.link}.{host}")

    def address6(self, host: int = 2) -> IPv6Address:
        """Return the same for IPv6."""
        return IPv6Address(f"fd77:0:0:{self.link:x}::{host}")

    @property
    def hosts(self) -> tuple[int, ...]:
        """Host numbers of its own addresses."""
        return (2, 3) if self.role is Role.BACKEND else (2,)


@dataclass(frozen=True, slots=True)
class LabSpec:
    """The size and name of a lab.

    Attributes:
        name: 1 to 12 lower-case letters and digits, starting with a letter; prefix of everything.
        backends: 1 to 150.
        lbs: 1 to 64. VIP traffic is spread over them by the router (ECMP on the 5-tuple).
        vips: how many VIP addresses of each family the backends serve from the start.
        etcd_members: 1 to 9; a cluster of three is on ctl, ctl2 and ctl3.
    """

    name: str = "tg0"
    backends: int = 4
    lbs: int = 1
    vips: int = 1
    etcd_members: int = 1

    def check(self) -> None:
        """Refuse what cannot be built.

        Raises:
            LabError: names the value and what is allowed.
        """
        if not _NAME.fullmatch(self.name):
            raise LabError(
                f"lab name {self.name!r}: use 1 to 12 lower-case letters and digits, "
                "starting with a letter"
            )
        for what, value, most in (
            ("backends", self.backends, _MAX_BACKENDS),
            ("lbs", self.lbs, _MAX_LBS),
            ("vips", self.vips, 200),
            ("etcd_members", self.etcd_members, _MAX_ETCD_MEMBERS),
        ):
            if not 1 <= value <= most:
                raise LabError(f"{what} is {value}; a lab has 1 to {most}")

    @property
    def folder(self) -> Path:
        """The lab's own folder."""
        return STATE_ROOT / self.name

    @property
    def prefix(self) -> str:
        """What the names of the lab's namespaces, and of nobody else's, start with."""
        return f"{self.name}-"

    def namespace(self, node: str) -> str:
        """Return name of a node's network namespace."""
        return self.prefix + node

    def pin_dir(self, lb: str) -> Path:
        """Return where the agent of an LB host pins its maps."""
        return Path(f"/sys/fs/bpf/tidegate-{self.name}-{lb}")

    def stations(self) -> tuple[Station, ...]:
        """Return all nodes but the router."""
        return (
            Station(CONTROL, Role.CONTROL, 1, ACCESS_MTU),
            *(
                Station(f"{CONTROL}{n}", Role.CONTROL, n, ACCESS_MTU)
                for n in range(2, self.etcd_members + 1)
            ),
            *(Station(f"client{n}", Role.CLIENT, 10 + n, ACCESS_MTU) for n in (1, 2)),
            *(Station(f"lb{n}", Role.LB, 20 + n, RACK_MTU) for n in range(1, self.lbs + 1)),
            *(
                Station(f"b{n}", Role.BACKEND, 100 + n, RACK_MTU)
                for n in range(1, self.backends + 1)
            ),
        )


def etcd_endpoints(stations: Iterable[Station]) -> list[str]:
    """Return host:port of every member of etcd among these nodes."""
    return [f"{s.address4()}:{ETCD_PORT}" for s in stations if s.role is Role.CONTROL]


def vip4(number: int) -> IPv4Address:
    """Return the IPv4 address of VIP number 1, 2, …."""
    return VIPS4[number]


def vip6(number: int) -> IPv6Address:
    """Return the IPv6 address of VIP number 1, 2, …."""
    return VIPS6[number]
