# SPDX-License-Identifier: Apache-2.0
"""Whose address a frame is for: of what the bits in front let through, the look-up decides."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import islice

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6EchoRequest
from scapy.layers.l2 import Dot1Q

from support.documents.roster import backend, desired, vip
from support.packets.both import Both, both_engines
from support.packets.frames import CLIENT4, CLIENT6, ETHER, ip4, ip6, tcp, udp
from support.packets.vip_map import address_at
from tidegate.dataplane.publish.address_bits import host_bit
from tidegate.dataplane.publish.vip_places import Places
from tidegate.model.decision import Reason
from tidegate.model.values import Address, Network
from tidegate.spec import Verdict

pytestmark = pytest.mark.root

LENGTHS4 = (8, 9, 15, 16, 17, 24, 31)
LENGTHS6 = (12, 16, 20, 31, 32, 33, 48, 127)


@pytest.fixture
def both() -> Iterator[Both]:
    with both_engines() as found:
        yield found


def to(address: Address) -> object:
    """Return the IP header of a packet to an address."""
    if address.version == 4:
        return ip4(CLIENT4, str(address))
    return ip6(CLIENT6, str(address))


def ping(address: Address) -> bytes:
    request = ICMP() if address.version == 4 else ICMPv6EchoRequest()
    return bytes(ETHER / to(address) / request)


def serve(both: Both, *addresses: str) -> None:
    vips = [vip(f"v{i}", address) for i, address in enumerate(addresses)]
    both.want(desired(vips, [backend("b1"), backend("b2")]))


def sharing(address: Address, first: Address, count: int) -> list[Address]:
    """Return addresses with the same bit as this one, from the first on."""
    wanted = host_bit(address)
    every = (first + i for i in range(1 << 24))
    return list(islice((a for a in every if host_bit(a) == wanted and a != address), count))


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_an_address_that_shares_a_vips_bit_passes(both: Both, address: str) -> None:
    """It is let through to the look-up, which knows it for nobody's."""
    serve(both, address)
    own = ip_address(address)
    assert both.send(tcp("S", to(own))).verdict is Verdict.TX
    firsts = IPv4Address("10.0.0.0"), IPv6Address("2001:db8:7::")
    for other in [a for first in firsts for a in sharing(own, first, 2)]:
        assert both.send(tcp("S", to(other))).verdict is Verdict.PASS
        assert both.send(udp(to(other))).verdict is Verdict.PASS


def edges(network: Network) -> tuple[list[Address], list[Address]]:
    """Return addresses at the edges of a network: those within, and those outside."""
    first, last = network[0], network[-1]
    middle = network[network.num_addresses // 2]
    return [first, middle, last], [first - 1, last + 1]


@pytest.mark.parametrize(
    "network",
    [ip_network(("100.64.0.0", length), strict=False) for length in LENGTHS4]
    + [ip_network(("2a00:1450::", length), strict=False) for length in LENGTHS6],
    ids=str,
)
def test_every_length_of_a_network_is_found(both: Both, network: Network) -> None:
    """Also shorter than what its bits depend on; what is outside passes."""
    serve(both, str(network), "192.0.2.1")
    within, outside = edges(network)
    for address in within:
        assert both.send(tcp("S", to(address))).verdict is Verdict.TX
        assert both.send(tcp("S", to(address), dport=81)).reason is Reason.UNSERVED
        assert both.send(ping(address)).verdict is Verdict.TX
    for address in outside:
        assert both.send(tcp("S", to(address))).verdict is Verdict.PASS


def test_vips_and_networks_side_by_side(both: Both) -> None:
    """An address of its own within a network, and one in the parts of two networks."""
    serve(both, "10.1.2.3", "10.1.0.0/16", "10.0.0.0/8", "2001:db8::/31", "2001:db8:1::9")
    for address in ("10.1.2.3", "10.1.2.4", "10.9.9.9", "2001:db8:1::9", "2001:db9::1"):
        assert both.send(tcp("S", to(ip_address(address)))).verdict is Verdict.TX
    assert both.send(tcp("S", to(ip_address("11.0.0.1")))).verdict is Verdict.PASS


def test_a_vip_that_goes_is_nobodys(both: Both) -> None:
    """Its bit goes with it, and a bit that another VIP needs stays."""
    own = ip_address("192.0.2.1")
    (other,) = sharing(own, IPv4Address("10.0.0.0"), 1)
    serve(both, str(own), str(other))
    assert both.send(tcp("S", to(own))).verdict is Verdict.TX
    serve(both, str(other))
    assert both.send(tcp("S", to(own))).verdict is Verdict.PASS
    assert both.send(tcp("S", to(other))).verdict is Verdict.TX


def test_tags_are_looked_behind(both: Both) -> None:
    """A frame with a VLAN tag is for a VIP or not by the address behind it."""
    serve(both, "192.0.2.1", "2001:db8::1")
    for address, verdict in (
        ("192.0.2.1", Verdict.TX),
        ("192.0.2.9", Verdict.PASS),
        ("2001:db8::1", Verdict.TX),
        ("2001:db8::9", Verdict.PASS),
    ):
        header = to(ip_address(address))
        assert both.send(tcp("S", Dot1Q(vlan=5) / header)).verdict is verdict  # type: ignore[operator]


def test_vips_that_share_a_place_are_all_found(both: Both) -> None:
    """Whichever of its two places each has, with ports of their own and with any port."""
    addresses = [address_at(Places(n, n + 1), 80, n) for n in range(1, 6)]
    extra = address_at(Places(1, 1), 80, 99)
    serve(both, *map(str, addresses))
    serve(both, *map(str, [*addresses, extra]))
    for address in [*addresses, extra]:
        assert both.send(tcp("S", to(address))).verdict is Verdict.TX
        assert both.send(tcp("S", to(address), dport=81)).reason is Reason.UNSERVED
