# SPDX-License-Identifier: Apache-2.0
"""Parse addresses and networks as documents write them, or say what is wrong with them.

Reasons leave out the field, which only the caller knows. Nothing here looks at other documents.
"""

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from socket import AF_INET, inet_pton
from typing import Final

from tidegate.keyspace.documents.decode import shown
from tidegate.model.values import Address, Network

_LONGEST: Final = 64
_MULTICAST: Final = range(224, 240)  # first octet, RFC 5771
_CIDR: Final = re.compile(r"([0-9A-Fa-f.:]+)/(\d{1,3})")
_NO_PREFIX: Final = "it must be an IPv4 or IPv6 network, such as 192.0.2.0/24"

_UNROUTABLE: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "0.0.0.0/8"),
        ("127.0.0.0/8", "loopback addresses"),
        ("169.254.0.0/16", "link-local addresses"),
        ("224.0.0.0/4", "multicast addresses"),
        ("255.255.255.255/32", "the broadcast address"),
        ("::/128", "the unspecified address"),
        ("::1/128", "the loopback address"),
        ("::ffff:0:0/96", "IPv4-mapped addresses"),
        ("fe80::/10", "link-local addresses"),
        ("ff00::/8", "multicast addresses"),
    )
)


def parse_address(text: str) -> Address | str:
    """Parse an address that packets can be routed to; else return why not, without the field.

    Refused besides nonsense: unspecified and 0.0.0.0/8, loopback, multicast, broadcast, link-local
    (it needs an interface, and no router forwards it), scoped, and IPv4-mapped IPv6, which is
    another spelling of an IPv4 address that would not match IPv4 packets.
    """
    # Longer texts are wrong, and are not worth the cache's memory.
    return _parsed(text) if len(text) <= _LONGEST else _no_address(text)


def parse_service_network(text: str) -> Network | str:
    """Parse a VIP's address, or its network, which may have no unroutable address in it."""
    if "/" not in text:
        address = parse_address(text)
        return address if isinstance(address, str) else ip_network(address)
    network = parse_network(text)
    if isinstance(network, str):
        return network
    for unroutable, kind in _UNROUTABLE:
        if unroutable.version == network.version and unroutable.overlaps(network):
            return f"is {text}, which has {kind} in it; routers must forward all of it"
    return network


@lru_cache(maxsize=1 << 14)
def parse_network(text: str) -> Network | str:
    """Parse a network in CIDR notation; host bits must be zero."""
    match = _CIDR.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        return f"is {shown(text)}; {_NO_PREFIX}"
    try:
        address = ip_address(match[1])
        network = ip_network((address, int(match[2])), strict=False)
    except ValueError:
        return f"is {shown(text)}; {_NO_PREFIX}"
    if network.network_address != address:
        return f"is {text}, which has host bits; write {network} instead"
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return f"is {text}, an IPv4-mapped network; write the IPv4 network instead"
    return network


@lru_cache(maxsize=1 << 16)  # a change of one key reads all the others again
def _parsed(text: str) -> Address | str:
    try:
        if ":" not in text:
            packed = inet_pton(AF_INET, text)  # as strict as ipaddress, and in C
            kind = _unroutable_ipv4(packed)
            return _not_unicast(text, kind) if kind else IPv4Address(packed)
        address = IPv6Address(text)
    except (OSError, ValueError):
        return _no_address(text)
    if address.scope_id is not None:
        return f"is {shown(text)}, which names an interface; it must have no scope"
    if address.ipv4_mapped is not None:
        return f"is {text}, an IPv4-mapped address; write {address.ipv4_mapped} instead"
    kind = _unroutable_ipv6(address)
    return _not_unicast(text, kind) if kind else address


def _no_address(text: str) -> str:
    return f"is {shown(text)}; it must be an IPv4 or IPv6 address, without a prefix length"


def _not_unicast(text: str, kind: str) -> str:
    return f"is {text}, {kind}; it must be a unicast address that routers forward"


def _unroutable_ipv4(packed: bytes) -> str:
    first = packed[0]
    if first not in {0, 127, 169, 255} and first not in _MULTICAST:
        return ""
    if packed == bytes(4):
        return "the unspecified address"
    if packed == b"\xff\xff\xff\xff":
        return "the broadcast address"
    if packed[:2] == b"\xa9\xfe":
        return "a link-local address"
    if first in _MULTICAST:
        return "a multicast address"
    return {0: "an address of 0.0.0.0/8", 127: "a loopback address"}.get(first, "")


def _unroutable_ipv6(address: IPv6Address) -> str:
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_loopback:
        return "a loopback address"
    if address.is_multicast:
        return "a multicast address"
    return "a link-local address" if address.is_link_local else ""
