# SPDX-License-Identifier: Apache-2.0
"""Addresses that a document may not have on this host, whatever the keyspace says. Pure.

* A VIP's address is not one of the host's own: the VIP would take the host's own connections, the
  one to etcd among them, and no later document could undo it. A network may cover own addresses,
  as the data plane leaves them out of it. The host's document may allow an address.
* A backend's address is not that of a VIP (packets to it would be balanced again), not one of the
  host's own, and not within the outer source prefixes, whose addresses are nobody's. It may be
  within a network that is a VIP, unless that takes what is sent there (`loops`).

What is in force already stays until its document is changed: a service is not taken away because an
address was added to a host. It is reported all the same.
"""

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from tidegate.model.values import Address, Network, Vip


@dataclass(frozen=True)
class HostAddresses:
    """What the checks know of the host; empty where documents are checked away from one.

    Attributes:
        own: addresses of its interfaces.
        source4: outer source addresses of packets to backends.
        source6: likewise.
        allowed: own addresses that VIPs may have all the same.
    """

    own: frozenset[Address] = frozenset()
    source4: IPv4Network | None = None
    source6: IPv6Network | None = None
    allowed: frozenset[Address] = frozenset()


ANYWHERE = HostAddresses()


def vip_fault(vip: Vip, host: HostAddresses) -> str:
    """Return why a VIP may not be served by this host, without the field; empty if it may."""
    if vip.is_network or vip.address not in host.own - host.allowed:
        return ""
    return (
        f"is {vip.address}, an address of this host itself, whose own connections the VIP would "
        "take; give it another one, or remove the address from the host"
    )


def backend_fault(address: Address, vips: Collection[Vip], host: HostAddresses) -> str:
    """Return why a backend may not have an address, without the field; empty if it may.

    Args:
        address: of the backend.
        vips: that take what is sent to it.
        host: where it is to be reached from.
    """
    if vips:
        name = min(vip.name for vip in vips)
        return f"is {address}, an address of the VIP {name}; packets to it would come back"
    if address in host.own:
        return f"is {address}, an address of this host itself; a backend needs one of its own"
    prefix = _outer_source(address, host)
    if prefix is not None:
        return (
            f"is {address}, within the outer source prefix {prefix} of this host's agent, "
            "whose addresses are nobody's"
        )
    return ""


def _outer_source(address: Address, host: HostAddresses) -> Network | None:
    """Return the outer source prefix that an address is in, if any."""
    if isinstance(address, IPv4Address):
        return host.source4 if host.source4 is not None and address in host.source4 else None
    if isinstance(address, IPv6Address) and host.source6 is not None and address in host.source6:
        return host.source6
    return None
