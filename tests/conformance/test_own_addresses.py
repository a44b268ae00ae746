# SPDX-License-Identifier: Apache-2.0
"""The host's own addresses inside a VIP that is a network: the host keeps them."""

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6EchoRequest

from support.documents.roster import backend, desired, vip
from support.packets.both import Both, both_engines
from support.packets.frames import CLIENT4, CLIENT6, ETHER, ip4, ip6, tcp, udp
from tidegate.spec import Verdict

pytestmark = pytest.mark.root

OWN = ("10.0.0.9", "2001:db8:5::9")
OTHER = ("10.0.0.8", "2001:db8:5::8")


@pytest.fixture
def both() -> Iterator[Both]:
    with both_engines() as found:
        yield found


def to(address: str) -> object:
    """Return the IP header of a packet to an address."""
    is_v4 = ip_address(address).version == 4
    return ip4(CLIENT4, address) if is_v4 else ip6(CLIENT6, address)


def ping(address: str) -> bytes:
    request = ICMP() if ip_address(address).version == 4 else ICMPv6EchoRequest()
    return bytes(ETHER / to(address) / request)


def every_kind(address: str) -> list[bytes]:
    """Return frames to an address: of a VIP's port, of any port, and a ping."""
    header = to(address)
    return [tcp("S", header), tcp("A", header, dport=2379), udp(header), ping(address)]


def serve(both: Both, *vips: tuple[str, int]) -> None:
    named = [
        vip(f"v{protocol}{i}", address, port, protocol)  # type: ignore[arg-type]
        for i, (address, port) in enumerate(vips)
        for protocol in ("tcp", "udp")
    ]
    both.want(desired(named, [backend("b1"), backend("b2")]))


@pytest.mark.parametrize("port", [0, 80])
def test_a_network_leaves_own_addresses_out(both: Both, port: int) -> None:
    """All packets for them pass, pings too; those for their neighbours do not."""
    serve(both, ("10.0.0.0/8", port), ("2001:db8:5::/48", port))
    both.own(*OWN)
    for address in OWN:
        assert {both.send(frame).verdict for frame in every_kind(address)} == {Verdict.PASS}
    for address in OTHER:
        assert both.send(tcp("S", to(address))).verdict is Verdict.TX
        assert both.send(ping(address)).verdict is Verdict.TX


def test_an_address_that_leaves_the_host_is_the_vips(both: Both) -> None:
    """Addresses are followed: what is no longer the host's is balanced again."""
    serve(both, ("10.0.0.0/8", 80))
    both.own(*OWN)
    assert both.send(tcp("S", to(OWN[0]))).verdict is Verdict.PASS
    both.own(OTHER[0])
    assert both.send(tcp("S", to(OWN[0]))).verdict is Verdict.TX
    assert both.send(tcp("S", to(OTHER[0]))).verdict is Verdict.PASS


def test_nested_networks_leave_own_addresses_out(both: Both) -> None:
    """The longest network that covers one leaves it out, and no shorter one takes it then."""
    serve(both, ("10.0.0.0/8", 0), ("10.0.0.0/24", 80), ("0.0.0.0/0", 80))
    both.own(*OWN)
    assert {both.send(frame).verdict for frame in every_kind(OWN[0])} == {Verdict.PASS}


def test_a_vip_of_that_very_address_is_balanced(both: Both) -> None:
    """Such a document is refused before it comes here, but where the host's document allows it."""
    serve(both, ("10.0.0.0/8", 80), (OWN[0], 80))
    both.own(*OWN)
    assert both.send(tcp("S", to(OWN[0]))).verdict is Verdict.TX
    assert both.send(tcp("S", to(OWN[0]), dport=81)).verdict is Verdict.PASS


def test_an_error_about_an_own_flow_passes(both: Both) -> None:
    """ICMP errors for the host's own address are for its own connections."""
    serve(both, ("10.0.0.0/8", 0))
    both.own(*OWN)
    quoted = bytes(ip4(OWN[0], "198.51.100.7"))
    error = ICMP(type=3, code=4, nexthopmtu=1400)
    frame = bytes(ETHER / to(OWN[0]) / error / (quoted + bytes(8)))  # type: ignore[operator]
    assert both.send(frame).verdict is Verdict.PASS
