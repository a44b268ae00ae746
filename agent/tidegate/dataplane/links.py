# SPDX-License-Identifier: Apache-2.0
"""Interfaces as the data plane needs them: MAC and MTU, and the next hops and their MACs.

The kernel's own tables are the source. It is asked for the way to each backend out of the
interface, as `ip route get` asks, so whatever makes that way (nexthop objects, an IPv6 next hop of
an IPv4 route, rules, VRFs) is the kernel's to know. The state is read again at any change
(network/watch.py), so that a lost message costs nothing. The balancer's packets bypass the stack,
so nothing else keeps a neighbour entry alive: we ask the kernel to (NTF_USE).
"""

from collections.abc import Iterable, Mapping
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
from tidegate.dataplane.network import devices
from tidegate.dataplane.network.devices import Device
from tidegate.dataplane.network.merging import Stack
from tidegate.dataplane.network.next_hops import NO_BACKENDS, Backends, Choice, choose
from tidegate.dataplane.network.rtnetlink import RouteSocket
from tidegate.errors import DataplaneError
from tidegate.model.constants import MAX_INTERFACE_INDEX
from tidegate.model.values import Address

FAMILIES: Final = (4, 6)
_NO_MAC: Final = b"\0" * 6
_OUTSIDE: Final[Mapping[int, Address]] = {
    4: IPv4Address("193.0.14.129"),
    6: IPv6Address("2001:7fd::1"),
}
"""Addresses that only a default route covers (a root name server's): the kernel tells the way to an
address, and its default route only among all others. Nothing is sent there."""


@dataclass(frozen=True)
class Gateways:
    """Next hops from the agent's file; None asks the kernel. That of IPv4 may be an IPv6 address.

    Packets keep their family: of a next hop only its MAC goes into them (RFC 8950).
    """

    ipv4: Address | None = None
    ipv6: Address | None = None


_NO_ADDRESS: Final = (1 << 64) - 1
"""In place of a MAC address: no such is so long."""


@dataclass(frozen=True)
class Link:
    """An interface as the data plane sees it. A gateway without MAC is not resolved yet.

    Attributes:
        mtu: largest IP packet that it carries, bytes.
        gateway4: next hop of encapsulated IPv4 packets, of either family.
        program: the XDP program that is on it.
        queues: that it receives on; each can be another CPU's.
        others: MAC addresses beside its own whose frames are ours, five at most; None: any.
        ports: indexes under which the program sees its frames too (network/devices.py).
        home: the device that has its addresses and routes, if that is another.
        faults: by family, why its packets do not reach backends though there is a next hop.
        warnings: what somebody should know of its next hops.
        refusal: why it cannot have the program; empty if it can.
        is_up: whether it has a carrier.
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
    others: tuple[bytes, ...] | None = ()
    ports: tuple[int, ...] = ()
    home: str = ""
    faults: tuple[tuple[int, str], ...] = ()
    warnings: tuple[str, ...] = ()
    refusal: str = ""
    is_up: bool = True

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

    def missing(self, needed: Iterable[int]) -> str | None:
        """Return why it cannot forward packets of these families, as a sentence, or None."""
        return "; ".join(filter(None, map(self._missing, sorted(needed)))) or None

    def _missing(self, family: int) -> str | None:
        hop, mac = (
            (self.gateway4, self.gateway4_mac)
            if family == 4  # noqa: PLR2004 - a family
            else (self.gateway6, self.gateway6_mac)
        )
        name = self.home or self.interface
        if not self.is_up:
            return f"{self.interface} has no carrier, and IPv{family} backends need it"
        if hop is None and mac is None:
            return (
                f"{self.interface}: no route for IPv{family}, which backends in force need: add one"
                f" out of {name}, such as a default route, or name ipv{family} of [gateway] in the "
                "agent's file"
            )
        if mac is None:
            asked = "ARP" if hop is not None and hop.version == 4 else "neighbour discovery"  # noqa: PLR2004 - a family
            return (
                f"{self.interface}: the MAC address of the IPv{family} next hop {hop} is not "
                f"resolved yet: does it answer {asked} on {name}?"
            )
        return dict(self.faults).get(family)


def read(
    interface: str,
    gateways: Gateways,
    backends: Backends = NO_BACKENDS,
    macs: tuple[bytes, ...] = (),
) -> tuple[Link, Stack]:
    """Read an interface's facts, and ask the kernel to resolve next hops that are not fresh.

    Raises:
        DataplaneError: the interface does not exist, or the kernel does not answer.
    """
    with IPRoute() as netlink, RouteSocket() as routes:
        message = _message(netlink, ifname=interface)
        device = Device.of(message)
        home = devices.home(device, lambda index: Device.of(_message(netlink, index=index)))
        others = _all(netlink) if device.is_stacked or device.kind == "veth" else ()
        ports = devices.bond_ports(device, others)
        hops = {
            f: _next_hop(routes, f, home, getattr(gateways, f"ipv{f}"), backends) for f in (4, 6)
        }
    link = Link(
        interface=interface,
        index=device.index,
        mac=home.mac or _NO_MAC,
        mtu=min(device.mtu, home.mtu),
        gateway4=hops[4].hop,
        gateway6=hops[6].hop,
        gateway4_mac=hops[4].mac,
        gateway6_mac=hops[6].mac,
        program=attachment(message),
        queues=message.get_attr("IFLA_NUM_RX_QUEUES") or 1,
        ports=tuple(port.index for port in ports),
        home="" if home.index == device.index else home.name,
        faults=tuple((family, each.fault) for family, each in hops.items() if each.fault),
        warnings=tuple(each.warning for each in hops.values() if each.warning),
        refusal=devices.refusal(device),
        is_up=device.is_up,
        others=(*macs, *([device.mac] if device.mac and device.mac != home.mac else [])),
    )
    return link, Stack(device, (device, *ports), others)


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
        others=link.others,
    )


def _own(link: Link) -> list[int]:
    """Return the MAC addresses whose frames are ours, as the program compares them."""
    found = [int.from_bytes(mac, "little") for mac in (link.mac, *(link.others or ()))]
    return found + [_NO_ADDRESS] * (layout.OWN_MACS - len(found))


def _message(netlink: Any, **which: object) -> Any:  # noqa: ANN401 - pyroute2 has no types
    try:
        return netlink.link("get", **which)[0]
    except NetlinkError as error:
        raise DataplaneError(f"there is no interface {which.popitem()[1]!r}") from error


def _all(netlink: Any) -> tuple[Device, ...]:  # noqa: ANN401 - pyroute2 has no types
    return tuple(Device.of(each) for each in netlink.get_links())


@dataclass(frozen=True)
class _NextHop:
    hop: Address | None
    mac: bytes | None
    fault: str = ""
    warning: str = ""


def _next_hop(
    routes: RouteSocket, family: int, device: Device, named: Address | None, backends: Backends
) -> _NextHop:
    """Find the next hop of a family's packets out of a device."""
    if named is not None:
        return _NextHop(named, routes.neighbours([named], device.index)[0].mac)
    hops = routes.next_hops(backends.of(family), device.index)
    routers = list(dict.fromkeys(hop for to, hop in hops.items() if hop not in {None, to}))
    macs = _macs(routes, [hop for hop in routers if hop], device.index) if len(routers) > 1 else {}

    def default() -> Address | None:
        outside = _OUTSIDE[family]
        hop = routes.next_hops([outside], device.index)[outside]
        return None if hop == outside else hop

    choice = choose(hops, default, lambda hop: macs.get(hop) is not None)
    if choice.hop is None:
        return _NextHop(None, None)
    mac = macs.get(choice.hop) or _macs(routes, [choice.hop], device.index)[choice.hop]
    fault = _unreached(family, device, choice, backends)
    return _NextHop(choice.hop, mac, fault, fault or _differing(routes, device, choice, backends))


def _macs(routes: RouteSocket, hops: list[Address], index: int) -> dict[Address, bytes | None]:
    found = routes.neighbours(hops, index)
    return {hop: each.mac for hop, each in zip(hops, found, strict=True)}


def _unreached(family: int, device: Device, choice: Choice, backends: Backends) -> str:
    if not choice.unreached:
        return ""
    return (
        f"{device.name}: packets reach one IPv{family} backend only, {choice.hop}: "
        f"{backends.listed(choice.unreached)} are on the link too, each a next hop of its own, and "
        f"an interface has one: name a router as ipv{family} of [gateway] in the agent's file, or "
        "add a default route"
    )


def _differing(routes: RouteSocket, device: Device, choice: Choice, backends: Backends) -> str:
    """Return a sentence about backends whose own route leads elsewhere, or nothing.

    Another next hop of the same multipath route is none: either will do.
    """
    if not choice.differing:
        return ""
    differing = frozenset(choice.differing)
    agreeing = [each for each in backends.of(choice.differing[0].version) if each not in differing]
    shared = set(routes.paths(agreeing, device.index)) - {b""}
    paths = routes.paths(choice.differing, device.index)
    others = [to for to, path in zip(choice.differing, paths, strict=True) if path not in shared]
    if not others:
        return ""
    return (
        f"{device.name}: packets to {backends.listed(others)} go to {choice.hop} with all others, "
        "though their routes have another next hop or none: an interface has one for each family"
    )


def write(links_fd: int, link: Link) -> None:
    """Put an interface's facts where the program reads them, for each index that it may see.

    Raises:
        DataplaneError: an index is beyond what the map holds.
    """
    entry = np.array(
        [
            (
                (link.gateway4_mac or _NO_MAC) + link.mac,
                (link.gateway6_mac or _NO_MAC) + link.mac,
                link.mtu,
                link.gateway4_mac is not None,
                link.gateway6_mac is not None,
                link.others is None,
                0,
                _own(link),
            )
        ],
        layout.LINK,
    )
    for index in (link.index, *link.ports):
        if index >= MAX_INTERFACE_INDEX:
            raise DataplaneError(
                f"{link.interface} has index {index}; the data plane takes indexes below "
                f"{MAX_INTERFACE_INDEX}: restart the host, or use a network namespace of its own"
            )
        bpf.map_update(links_fd, index.to_bytes(4, "little"), entry.tobytes())
