# SPDX-License-Identifier: Apache-2.0
"""The bits that say which addresses may be a VIP's: never a no for an address that is one."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import numpy as np
import pytest

from support.documents.roster import backend, desired, generations, vip
from tidegate.dataplane.kernel import layout
from tidegate.dataplane.publish.address_bits import address_bits, host_bit, network_bits
from tidegate.model.address import packed
from tidegate.model.values import Address, Network

FEW = 70_000


def bits(*addresses: str) -> tuple[set[int], set[int]]:
    """Return which bits of hosts and of networks VIPs set."""
    vips = [vip(f"v{i}", address) for i, address in enumerate(addresses)]
    generation = generations(desired(vips, [backend("b1")]))[-1]
    found = np.frombuffer(address_bits(generation), layout.ADDRESS_BITS)[0]
    hosts, networks = (
        np.flatnonzero(np.unpackbits(found[name].view("u1"), bitorder="little"))
        for name in ("hosts", "networks")
    )
    return set(hosts.tolist()), set(networks.tolist())


def bit_of(address: Address) -> int:
    """Return the bit that a packet to this address looks at among those of networks."""
    first = packed(address)[:4] if address.version == 6 else address.packed
    if address.version == 4:
        return int.from_bytes(first[:2])
    return int.from_bytes(first, "little") * 0x9E3779B1 % 2**32 >> 16


def test_each_address_has_one_bit() -> None:
    """Whatever the VIPs there; none where no VIP is."""
    assert bits() == (set(), set())
    hosts, networks = bits("192.0.2.1", "192.0.2.2", "2001:db8::1")
    assert hosts == {host_bit(ip_address(a)) for a in ("192.0.2.1", "192.0.2.2", "2001:db8::1")}
    assert networks == set()


@pytest.mark.parametrize("length", [8, 9, 12, 15, 16, 17, 24, 31])
def test_a_v4_network_has_the_bits_of_its_addresses(length: int) -> None:
    """By the first 16 bits: a network that is shorter covers several."""
    network = ip_network(("10.64.0.0", length), strict=False)
    assert bits(str(network)) == (set(), {bit_of(a) for a in some(network)})


@pytest.mark.parametrize("length", [8, 12, 16, 17, 20, 29, 31, 32, 33, 48, 64, 127])
def test_a_v6_network_has_the_bits_of_its_addresses(length: int) -> None:
    """By a hash of the first 32 bits; of a very short one, every bit."""
    network = ip_network(("2001:db8::", length), strict=False)
    hosts, networks = bits(str(network))
    assert hosts == set()
    assert networks >= {bit_of(a) for a in some(network)}
    if length >= 20:  # else hardly a bit is left out, whatever the hash
        assert networks == {bit_of(a) for a in some(network)}
    assert len(networks) == len(network_bits(network))


def some(network: Network) -> list[Address]:
    """Return an address of each part of a network that has a bit of its own, and some others."""
    part = 16 if isinstance(network, IPv4Network) else 32
    inner = min(FEW, 2 ** max(0, part - network.prefixlen))
    size = network.num_addresses // inner if inner < FEW else network.num_addresses // FEW
    return [network[i * size + i * 7919 % size] for i in range(inner)]


def test_bits_of_several_networks_are_joined() -> None:
    """Each sets its own."""
    first, second = IPv4Network("10.0.0.0/15"), IPv6Network("2001:db8::/31")
    found = bits(str(first), str(second))[1]
    assert found == {*network_bits(first).tolist(), *network_bits(second).tolist()}
