# SPDX-License-Identifier: Apache-2.0
"""Builds the rack's namespaces, links, addresses and routes through netlink.

Why some settings are as they are:

* An XDP program sees frames before their checksum is filled in where the sender offloads it, and
  what XDP_TX sends out again keeps the hole. So transmit checksums are off on every veth, and with
  them segmentation offload.
* XDP_TX on a veth delivers only to a peer that has an XDP program as well: the router's side of the
  LB links carries one that passes everything.
* GRO is on at the LB hosts, as it is on most: it comes after a program in native mode.
* Backends receive the inner packet on a link where its source does not live, and answer from the
  VIP on their loopback: no reverse-path filter.
* Addresses are usable at once (no duplicate address detection) and stay when a link goes down.
"""

import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import addressof, create_string_buffer
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tidegate.errors import LabError
from tidegate.lab import netns
from tidegate.lab.plan import NETNS_ROOT, NIC, ROUTER, VIPS4, VIPS6, LabSpec, Role, Station

_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_STXCSUM: Final = 0x17
_ETHTOOL_SGRO: Final = 0x2C
_IFA_F_NODAD: Final = 0x02

_EVERY_NODE: Final = {
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv6/conf/all/disable_ipv6": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/router_solicitations": "0",
    "ipv6/conf/all/keep_addr_on_down": "1",
    "ipv6/conf/default/keep_addr_on_down": "1",
}
_ROUTER: Final = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    # Spread flows, not hosts, over the LB hosts.
    "ipv4/fib_multipath_hash_policy": "1",
    "ipv6/fib_multipath_hash_policy": "1",
}
_LB: Final = {
    # As hosts with Docker, FRR or Kubernetes have it: what the balancer lets pass would circle.
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
}
_BACKEND: Final = {
    # A server may bind a VIP in the moment before it is on the loopback.
    "ipv4/ip_nonlocal_bind": "1",
    "ipv6/ip_nonlocal_bind": "1",
}


@contextmanager
def netlink(namespace: str) -> Iterator[Any]:
    """Return an IPRoute that acts in a namespace; its refusals come out as LabError."""
    with netns.entered(namespace):
        handle = IPRoute()
    try:
        yield handle
    except NetlinkError as error:
        raise LabError(f"{namespace}: the kernel refused: {error}") from error
    finally:
        handle.close()


def build(spec: LabSpec) -> None:
    """Make all namespaces and wire them up.

    Raises:
        LabError: the kernel refused something.
        CapabilityError: not allowed, or the host lacks network namespaces or veth.
    """
    stations = spec.stations()
    for node in (ROUTER, *(station.name for station in stations)):
        netns.create(spec.namespace(node))
        with netns.entered(spec.namespace(node)):
            netns.sysctl(_EVERY_NODE)
    with netlink(spec.namespace(ROUTER)) as router:
        _loopback(router)
        with netns.entered(spec.namespace(ROUTER)):
            netns.sysctl(_ROUTER)
        for station in stations:
            _uplink(router, spec, station)
        _route_vips(router, [station for station in stations if station.role is Role.LB])
    for station in stations:
        _station(spec, station)


def _loopback(handle: Any) -> None:  # noqa: ANN401 - pyroute2 has no types
    handle.link("set", index=1, state="up")


def _uplink(router: Any, spec: LabSpec, station: Station) -> None:  # noqa: ANN401
    """Make the veth pair of a node, and set up the router's end."""
    peer_namespace = str(NETNS_ROOT / spec.namespace(station.name))
    router.link(
        "add",
        ifname=station.uplink,
        kind="veth",
        mtu=station.mtu,
        peer={"ifname": NIC, "mtu": station.mtu, "net_ns_fd": peer_namespace},
    )
    index = router.link_lookup(ifname=station.uplink)[0]
    _address(router, index, station.address4(1), 24)
    _address(router, index, station.address6(1), 64)
    with netns.entered(spec.namespace(ROUTER)):
        checksums_in_software(station.uplink)
    router.link("set", index=index, state="up")


def _station(spec: LabSpec, station: Station) -> None:
    namespace = spec.namespace(station.name)
    with netns.entered(namespace):
        checksums_in_software(NIC)
        if station.role is Role.LB:
            _merges(NIC)
        netns.sysctl({Role.LB: _LB, Role.BACKEND: _BACKEND}.get(station.role, {}))
    with netlink(namespace) as handle:
        _loopback(handle)
        index = handle.link_lookup(ifname=NIC)[0]
        for host in station.hosts:
            _address(handle, index, station.address4(host), 24)
            _address(handle, index, station.address6(host), 64)
        handle.link("set", index=index, state="up")
        for gateway in (station.address4(1), station.address6(1)):
            handle.route("add", family=_family(gateway), dst="default", gateway=str(gateway))


def _route_vips(router: Any, lbs: list[Station]) -> None:  # noqa: ANN401
    hops4 = [{"gateway": str(lb.address4()), "hops": 0} for lb in lbs]
    hops6 = [{"gateway": str(lb.address6()), "hops": 0} for lb in lbs]
    for network, hops in ((VIPS4, hops4), (VIPS6, hops6)):
        family = socket.AF_INET if network.version == 4 else socket.AF_INET6  # noqa: PLR2004 - an IP version
        if len(hops) == 1:
            router.route("add", family=family, dst=str(network), gateway=hops[0]["gateway"])
        else:
            router.route("add", family=family, dst=str(network), multipath=hops)


def renew_link(spec: LabSpec, station: Station) -> None:
    """Delete a load balancer's interface, and make another one of the same name and addresses."""
    with netlink(spec.namespace(station.name)) as handle:
        handle.link("del", index=handle.link_lookup(ifname=NIC)[0])
    with netlink(spec.namespace(ROUTER)) as router:
        _uplink(router, spec, station)
        _route_vips(router, [station])
    _station(spec, station)


def add_loopback_address(namespace: str, address: IPv4Address | IPv6Address) -> None:
    """Put a VIP on a backend's loopback; nothing happens if it is there."""
    with netlink(namespace) as handle:
        _address(handle, 1, address, address.max_prefixlen)


def set_link(spec: LabSpec, station: Station, *, up: bool) -> None:
    """Connect or cut a node's link at the router, as pulling its cable would.

    Routes that went with the link are there again when it is back.
    """
    with netlink(spec.namespace(ROUTER)) as router:
        index = router.link_lookup(ifname=station.uplink)[0]
        router.link("set", index=index, state="up" if up else "down")


def _address(handle: Any, index: int, address: IPv4Address | IPv6Address, length: int) -> None:  # noqa: ANN401
    flags = {"flags": _IFA_F_NODAD} if isinstance(address, IPv6Address) else {}
    handle.addr("replace", index=index, address=str(address), prefixlen=length, **flags)


def _family(address: IPv4Address | IPv6Address) -> int:
    return socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6


def checksums_in_software(interface: str) -> None:
    """Turn transmit checksum offload off (`ethtool -K … tx off`) in the current namespace.

    Raises:
        LabError: the driver refused.
    """
    _ethtool(interface, _ETHTOOL_STXCSUM, 0, "turn checksum offload off")


def _merges(interface: str) -> None:
    """Turn GRO on (`ethtool -K … gro on`), as NICs have it."""
    _ethtool(interface, _ETHTOOL_SGRO, 1, "turn GRO on")


def _ethtool(interface: str, command: int, setting: int, what: str) -> None:
    value = create_string_buffer(struct.pack("II", command, setting), 8)
    request = struct.pack("16sQ8x", interface.encode(), addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
        except OSError as error:
            raise LabError(f"{interface}: cannot {what}: {error.strerror}") from error
