# SPDX-License-Identifier: Apache-2.0
"""Next hops as the kernel of a real namespace has them, whatever makes the route."""

import subprocess
import threading
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from support.lab.wire import Wire
from tidegate.dataplane.links import Gateways
from tidegate.dataplane.network import merging
from tidegate.dataplane.network.merge_watch import MergeWatch
from tidegate.dataplane.network.watch import LinkWatch
from tidegate.errors import DataplaneError
from tidegate.lab import netns

pytestmark = pytest.mark.root

ROUTER = b"\2\0\0\0\0\x0b"
FAR, FARTHER, FAR6 = "203.0.113.1", "203.0.113.2", "2001:db8:2::1"


@pytest.fixture
def wire() -> Iterator[Wire]:
    """Give a host without addresses and routes, and its neighbour."""
    with Wire() as wire:
        yield wire


@pytest.mark.parametrize(
    ("route", "hop"),
    [
        ("route add default via 10.0.0.1", "10.0.0.1"),
        ("-4 route add default via inet6 fe80::1 dev lb0", "fe80::1"),
        ("route add 203.0.113.0/24 via 10.0.0.9", "10.0.0.9"),
        ("route add default table 77 via 10.0.0.9", "10.0.0.9"),
        ("route add 203.0.113.0/24 nhid 1", "10.0.0.9"),
        ("route add 203.0.113.0/24 nhid 2", "fe80::1"),
        ("route add 203.0.113.0/24 nhid 3", "10.0.0.9"),
        ("route add default nexthop via 10.0.0.9 dev lb0 nexthop via 10.0.0.1 dev lb0", "10.0.0.9"),
        ("route add 203.0.113.0/24 dev lb0 proto static via inet6 fe80::9", "fe80::9"),
    ],
)
@pytest.mark.parametrize("compat", ["0", "1"])
def test_an_ipv4_route_of_any_kind(wire: Wire, route: str, hop: str, compat: str) -> None:
    """IPv6 next hops (RFC 8950), nexthop objects and groups, other tables, multipath."""
    wire.sysctl("ipv4/nexthop_compat_mode", compat)
    wire.address("10.0.0.2/24")
    wire.at_host(
        "nexthop add id 1 via 10.0.0.9 dev lb0",
        "nexthop add id 2 via fe80::1 dev lb0",
        "nexthop add id 3 group 1/2",
        "rule add to 203.0.113.0/24 lookup 77",
        route,
    )
    link = wire.link(FAR, FARTHER)
    assert (link.gateway4, link.gateway4_mac) == (ip_address(hop), ROUTER)
    assert link.warnings == ()
    assert link.missing({4}) is None


@pytest.mark.parametrize(
    ("routes", "hops"),
    [
        (["-6 route add default via fe80::1 dev lb0"], {"fe80::1"}),
        (["nexthop add id 6 via fe80::9 dev lb0", "-6 route add default nhid 6"], {"fe80::9"}),
        (
            [
                "nexthop add id 5 via fe80::1 dev lb0",
                "nexthop add id 6 via fe80::9 dev lb0",
                "nexthop add id 7 group 5/6",
                "-6 route add default nhid 7",
            ],
            {"fe80::1", "fe80::9"},
        ),
        (
            ["-6 route add default nexthop via fe80::1 dev lb0 nexthop via fe80::9 dev lb0"],
            {"fe80::1", "fe80::9"},
        ),
    ],
)
@pytest.mark.parametrize("compat", ["0", "1"])
def test_an_ipv6_route_of_any_kind(
    wire: Wire, routes: list[str], hops: set[str], compat: str
) -> None:
    """The kernel spreads backends over a multipath route; any of its hops is right for all."""
    wire.sysctl("ipv4/nexthop_compat_mode", compat)
    wire.at_host(*routes)
    backends = [str(ip_address(FAR6) + n) for n in range(40)]
    link = wire.link(*backends)
    assert str(link.gateway6) in hops
    assert link.gateway6_mac == ROUTER
    assert link.warnings == ()


def test_routes_that_differ_are_named(wire: Wire) -> None:
    """Most backends decide for all; the others are named, for the data plane has one next hop."""
    wire.address("10.0.0.2/24")
    wire.at_host("route add default via 10.0.0.1", "route add 203.0.113.3 via 10.0.0.9")
    link = wire.link(FAR, FARTHER, "203.0.113.3")
    assert str(link.gateway4) == "10.0.0.1"
    assert len(link.warnings) == 1
    assert "web/b3 (203.0.113.3)" in link.warnings[0]
    assert "web/b1" not in link.warnings[0]


def test_a_router_that_answers_goes_before_one_that_does_not(wire: Wire) -> None:
    """Also if most routes lead to the dead one."""
    wire.address("10.0.0.2/24")
    wire.at_host("route add default via 10.0.0.66", "route add 203.0.113.3 via 10.0.0.9")
    assert str(wire.link(FAR, FARTHER, "203.0.113.3").gateway4) == "10.0.0.9"


def test_one_backend_on_the_link_is_its_own_next_hop(wire: Wire) -> None:
    """It takes no router."""
    wire.address("10.0.0.2/24")
    link = wire.link("10.0.0.9")
    assert (str(link.gateway4), link.gateway4_mac) == ("10.0.0.9", ROUTER)
    assert link.missing({4}) is None


def test_several_backends_on_the_link_need_a_router(wire: Wire) -> None:
    """Each has a MAC of its own; without a router that forwards to them the host is not ready."""
    wire.address("10.0.0.2/24")
    lacking = wire.link("10.0.0.1", "10.0.0.9").missing({4}) or ""
    assert "web/b2 (10.0.0.9)" in lacking
    assert "[gateway]" in lacking
    wire.at_host("route add default via 10.0.0.77")
    wire.at_host("neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev lb0")
    link = wire.link("10.0.0.1", "10.0.0.9")
    assert (str(link.gateway4), link.missing({4})) == ("10.0.0.77", None)
    assert "web/b1 (10.0.0.1), web/b2 (10.0.0.9)" in link.warnings[0]


@pytest.mark.parametrize(
    "route",
    [
        "route add 192.0.2.0/24 via 10.0.0.1",
        "route add blackhole 203.0.113.0/24",
        "route add unreachable default",
        "-6 route add default via fe80::1 dev lb0",
    ],
)
def test_no_route_is_no_next_hop(wire: Wire, route: str) -> None:
    """The kernel assumes such addresses on the link if it is asked for a device; we do not."""
    wire.address("10.0.0.2/24")
    wire.at_host(route)
    link, _ = wire.read(FAR)
    assert link.gateway4 is None
    lacking = link.missing({4}) or ""
    assert "lb0: no route for IPv4" in lacking
    assert "ipv4 of [gateway]" in lacking
    assert link.missing({6} if "-6" in route else set()) is None or link.gateway6


def test_the_agents_file_may_name_an_ipv6_next_hop(wire: Wire) -> None:
    """For IPv4, on a link without IPv4 addresses."""
    named = Gateways(ipv4=ip_address("fe80::9"))
    link = wire.link(FAR, gateways=named)
    assert (str(link.gateway4), link.gateway4_mac) == ("fe80::9", ROUTER)


def test_a_backend_by_another_interface_is_not_reached(wire: Wire) -> None:
    """Packets leave by the interface that they came by; a route out of another does not help."""
    wire.at_host("link add lb1 type veth peer name up1", "link set lb1 up", "link set up1 up")
    wire.at_host("addr add 10.1.0.2/24 dev lb1", "route add default via 10.1.0.1 dev lb1")
    link, _ = wire.read(FAR)
    assert "lb0: no route for IPv4" in (link.missing({4}) or "")
    wire.address("10.0.0.2/24")
    wire.at_host("route add default via 10.0.0.1 dev lb0 metric 900")
    assert str(wire.link(FAR).gateway4) == "10.0.0.1"


def test_without_a_carrier_it_is_not_ready(wire: Wire) -> None:
    """A neighbour entry that stays does not help."""
    wire.address("10.0.0.2/24")
    wire.at_host("route add default via 10.0.0.1")
    wire.at_host("neigh add 10.0.0.1 lladdr 02:00:00:00:00:0b dev lb0")
    assert wire.link(FAR).missing({4}) is None
    wire.at_neighbour("link set up0 down")
    assert "lb0 has no carrier" in (wire.read(FAR)[0].missing({4}) or "")


@pytest.mark.parametrize(
    "change",
    [
        "nexthop replace id 1 via fe80::9 dev lb0",
        "rule add to 203.0.113.0/24 lookup 77",
        "route add 203.0.113.0/24 via 10.0.0.1",
        "neigh add 10.0.0.9 lladdr 02:00:00:00:00:0c dev lb0",
        "addr add 10.3.0.2/24 dev lb0",
        "link set lb0 mtu 1400",
    ],
)
def test_every_change_of_the_way_wakes_the_agent(wire: Wire, change: str) -> None:
    """Without compatibility mode the kernel tells of a changed nexthop object alone."""
    wire.sysctl("ipv4/nexthop_compat_mode", "0")
    wire.address("10.0.0.2/24")
    wire.at_host("nexthop add id 1 via fe80::1 dev lb0", "route add default nhid 1")
    woken = threading.Event()
    with netns.entered(wire.host):
        watch = LinkWatch(woken.set)
    watch.start()
    try:
        woken.wait(0.3)  # of what came before
        woken.clear()
        wire.at_host(change)
        assert woken.wait(5)
    finally:
        watch.stop()


def bridged(wire: Wire) -> None:
    wire.at_host("link add br0 address 02:00:00:00:00:bb type bridge", "link set br0 up")
    wire.at_host("link set lb0 master br0", "addr add 10.0.0.2/24 dev br0")
    wire.at_host("route add default via 10.0.0.1")


@pytest.mark.parametrize("device", ["br0", "lb0"])
def test_a_bridge_or_its_port_has_the_bridges_routes(wire: Wire, device: str) -> None:
    """Addresses, neighbours and the MAC of the host are the bridge's."""
    bridged(wire)
    link = wire.link(FAR, device=device)
    assert (str(link.gateway4), link.gateway4_mac) == ("10.0.0.1", ROUTER)
    assert link.mac == b"\2\0\0\0\0\xbb"
    assert link.home == ("" if device == "br0" else "br0")


def test_a_device_without_ethernet_is_refused(wire: Wire) -> None:
    """The reason says what to name instead."""
    wire.at_host("tuntap add dev tun0 mode tun")
    link, _ = wire.read(device="tun0")
    assert "name the Ethernet device" in link.refusal


def ethtool(namespace: str, *words: str) -> None:
    with netns.entered(namespace):
        subprocess.run(["ethtool", "-K", *words], check=True, capture_output=True)


def test_generic_mode_is_refused_above_what_merges(wire: Wire) -> None:
    """GRO of a bridge's port comes before the program on the bridge; the remedy is a command."""
    bridged(wire)
    ethtool(wire.host, "lb0", "gro", "on")
    _, stack = wire.read(device="br0")
    with netns.entered(wire.host):
        with pytest.raises(DataplaneError, match="ethtool -K lb0 gro off"):
            MergeWatch(turns_off=True).refuse_generic(stack)
        assert merging.mergers(stack, "native") == []
        ethtool(wire.host, "lb0", "gro", "off")
        MergeWatch(turns_off=True).refuse_generic(stack)


def test_gro_of_the_device_itself_is_no_matter(wire: Wire) -> None:
    """The kernel spares a device that has a program in generic mode."""
    ethtool(wire.host, "lb0", "gro", "on")
    _, stack = wire.read()
    with netns.entered(wire.host):
        assert merging.mergers(stack, "generic") == []


def test_tso_of_a_veths_peer_is_merging(wire: Wire) -> None:
    """It is turned off, or generic mode is refused with the command; in native mode it is none."""
    wire.at_host("link add lb1 type veth peer name up1", "link set lb1 up")
    _, stack = wire.read(device="lb1")
    with netns.entered(wire.host):
        left_on, turned_off = MergeWatch(turns_off=False), MergeWatch(turns_off=True)
        left_on.look(stack, "native")
        assert left_on.problems == ()
        with pytest.raises(DataplaneError, match="ethtool -K up1 tx-tcp-segmentation off"):
            left_on.refuse_generic(stack)
        subprocess.run(merging.sentence(stack, "generic").split("`")[1].split(), check=True)
        left_on.refuse_generic(stack)
    ethtool(wire.host, "up1", "tso", "on")
    with netns.entered(wire.host):
        turned_off.refuse_generic(stack)
        assert merging.mergers(stack, "generic") == []


def test_a_peer_that_cannot_be_looked_at_is_a_warning(wire: Wire) -> None:
    """It is in another network namespace; in native mode it does not matter."""
    _, stack = wire.read()
    watch = MergeWatch(turns_off=True)
    with netns.entered(wire.host):
        watch.refuse_generic(stack)
        watch.look(stack, "generic")
        assert "another network namespace" in watch.problems[0]
        watch.look(stack, "native")
        assert watch.problems == ()


@pytest.mark.parametrize("turns_off", [True, False])
def test_what_the_nic_merges_is_turned_off_if_that_is_wanted(
    wire: Wire, turns_off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No veth has LRO, so its GRO stands in for it."""
    monkeypatch.setattr(merging, "_BY_NIC", {"rx-gro": "gro"})
    ethtool(wire.host, "lb0", "gro", "on")
    _, stack = wire.read()
    watch = MergeWatch(turns_off=turns_off)
    with netns.entered(wire.host):
        watch.look(stack, "native")
    assert bool(watch.problems) is not turns_off
    assert all("`ethtool -K lb0 gro off`" in each for each in watch.problems)
