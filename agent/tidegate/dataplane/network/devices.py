# SPDX-License-Identifier: Apache-2.0
"""Devices and how they are stacked: where frames are seen, and where addresses and routes live.

* A port of a bridge or a bond has no routes of its own. Its frames are those of the topmost
  device, which has the addresses, the routes, the neighbours and the MAC.
* On a bond in native mode the kernel runs the program in the ports' drivers: it sees a port's
  index (`ingress_ifindex`), and what it transmits leaves by the bond's own choice of a port. In
  generic mode it sees the bond's. So the facts are written for both.
* A bridge, and a VLAN of a device, take a program in generic mode only, and it sees their index.
* A port of a VRF keeps its own neighbours; a route that is asked for by device comes from the
  VRF's table. The VRF device itself receives nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

_ETHERNET: Final = (1, 772)
"""ARPHRD_ETHER and ARPHRD_LOOPBACK (include/uapi/linux/if_arp.h)."""
_JOINED: Final = frozenset({"bridge", "bond", "team"})
_BONDS: Final = frozenset({"bond", "team"})
_LOWER_UP: Final = 0x10000


@dataclass(frozen=True, slots=True)
class Device:
    """A device of this network namespace.

    Attributes:
        kind: bridge, bond, vlan, veth, …; empty for a NIC.
        master: index of what it is a port of; 0 for nothing.
        port_kind: what kind that is.
        lower: index of what it stands on, for a veth its peer; 0 for nothing, and where that is in
            another network namespace.
        type: ARPHRD_*.
        is_up: whether it has a carrier.
    """

    index: int
    name: str
    kind: str = ""
    master: int = 0
    port_kind: str = ""
    lower: int = 0
    type: int = 1
    mac: bytes = b""
    mtu: int = 1500
    is_up: bool = True

    @classmethod
    def of(cls, link: Any) -> Self:  # noqa: ANN401 - a netlink message
        """Read a netlink link message."""
        info = link.get_attr("IFLA_LINKINFO")
        is_elsewhere = link.get_attr("IFLA_LINK_NETNSID") is not None
        return cls(
            index=link["index"],
            name=link.get_attr("IFLA_IFNAME"),
            kind=(info and info.get_attr("IFLA_INFO_KIND")) or "",
            master=link.get_attr("IFLA_MASTER") or 0,
            port_kind=(info and info.get_attr("IFLA_INFO_SLAVE_KIND")) or "",
            lower=0 if is_elsewhere else link.get_attr("IFLA_LINK") or 0,
            type=link["ifi_type"],
            mac=bytes.fromhex((link.get_attr("IFLA_ADDRESS") or "").replace(":", "")),
            mtu=link.get_attr("IFLA_MTU"),
            is_up=bool(link["flags"] & _LOWER_UP),
        )

    @property
    def is_stacked(self) -> bool:
        """Whether frames come to it through another device of this host."""
        return self.kind in _JOINED or (self.kind not in {"", "veth"} and self.lower != 0)


def home(device: Device, get: Callable[[int], Device]) -> Device:
    """Return the device that has the addresses and routes of another: itself, or what joins it.

    Args:
        device: of which it is.
        get: reads a device by index.
    """
    while device.master and device.port_kind in _JOINED:
        device = get(device.master)
    return device


def bond_ports(device: Device, others: Iterable[Device]) -> tuple[Device, ...]:
    """Return the ports of a bond, of bonds in a bond too; nothing for any other device."""
    if device.kind not in _BONDS:
        return ()
    known = tuple(others)
    ports = [each for each in known if each.master == device.index]
    return tuple(p for port in ports for p in (port, *bond_ports(port, known)))


def below(device: Device, others: Iterable[Device]) -> tuple[Device, ...]:
    """Return every device through which frames come to a device, the nearest first."""
    known = tuple(others)
    found = [each for each in known if each.master == device.index and device.kind in _JOINED]
    if device.kind not in _JOINED and device.is_stacked:
        found += [each for each in known if each.index == device.lower]
    return tuple(d for each in found for d in (each, *below(each, known)))


def refusal(device: Device) -> str:
    """Return why a device cannot have the program, and what to do; empty if it can."""
    if device.kind == "vrf":
        return (
            f"{device.name} is a VRF, which receives no frames: name its ports in `interfaces`; "
            "their routes are looked up in its table"
        )
    if device.type not in _ETHERNET:
        return (
            f"{device.name} is no Ethernet device (type {device.type}), and the program reads "
            "Ethernet frames: name the Ethernet device that its packets come from in `interfaces`"
        )
    return ""
