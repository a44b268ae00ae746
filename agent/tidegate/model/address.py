# SPDX-License-Identifier: Apache-2.0
"""Write addresses of both families as 16 bytes, the form that the data plane compares.

IPv4 is mapped as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2), which never appears on a wire, so that
the families cannot be confused. Which addresses a document may have is not decided here.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from tidegate.model.values import Address, Network

MAPPED_BITS: Final = 96
"""Bits before an IPv4 address in its mapped form."""


def packed(address: Address) -> bytes:
    """Return an address as 16 bytes: IPv6, or IPv4 mapped into it."""
    if isinstance(address, IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def unpacked(address: bytes) -> Address:
    """Return the address of 16 bytes."""
    whole = IPv6Address(address)
    return whole.ipv4_mapped or whole


def mapped_length(network: Network) -> int:
    """Return the prefix length of a network in its 16-byte form."""
    return network.prefixlen + (MAPPED_BITS if isinstance(network, IPv4Network) else 0)


def packed_network(network: Network) -> bytes:
    """Return a network as 17 bytes: its 16-byte address, and the prefix length in that form."""
    return packed(network.network_address) + bytes([mapped_length(network)])


def unpacked_network(form: bytes) -> Network:
    """Return the network of 17 bytes."""
    address, length = unpacked(form[:16]), form[16]
    if isinstance(address, IPv4Address):
        return IPv4Network((address, length - MAPPED_BITS))
    return IPv6Network((address, length))
