# SPDX-License-Identifier: Apache-2.0
"""Addresses that documents may not have on a host: its own, a VIP's, and the outer sources."""

from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from support.documents.keyspaces import WEB, Contents, refused, snapshot, vip
from tidegate.keyspace.documents.host_rules import HostAddresses
from tidegate.keyspace.documents.validate import Validation, validate
from tidegate.model.values import EMPTY, BackendKey, Desired

HOST = HostAddresses(
    own=frozenset(map(ip_address, ("192.0.2.1", "10.0.0.9", "2001:db8:5::9"))),
    source4=IPv4Network("10.254.0.0/16"),
    source6=IPv6Network("fd54::/64"),
)
ELSEWHERE = HostAddresses()
A = "pools/web/backends/a"


def check(contents: Contents, last: Desired = EMPTY, host: HostAddresses = HOST) -> Validation:
    return validate(snapshot(contents), last, None, host)


def served(address: str) -> Contents:
    return WEB | {"vips/shop": vip() | {"address": address}}


def backed(address: str) -> Contents:
    return WEB | {"vips/shop": vip(last=7), A: {"address": address}}


@pytest.mark.parametrize("port", [0, 443])
def test_a_vip_of_the_hosts_own_address_is_refused(port: int) -> None:
    """Whatever its port; the refusal names the key, the field and the address."""
    found = check(WEB | {"vips/shop": vip(port=port)})
    assert refused(found) == [("vips/shop", "address", "reference")]
    assert "192.0.2.1, an address of this host itself" in found.rejections[0].reason
    assert found.desired.vips == {}


def test_a_vip_that_moves_to_an_own_address_stays() -> None:
    """Its last good value stays in force, with its old address."""
    last = check(served("198.51.100.77")).desired
    found = check(served("2001:db8:5::9"), last)
    assert found.desired.vips == last.vips
    assert refused(found) == [("vips/shop", "address", "reference")]


def test_an_address_that_the_host_gets_takes_no_vip_away() -> None:
    """A VIP that is in force stays when the host gets its address later, and is reported."""
    last = check(WEB, host=ELSEWHERE).desired
    found = check(WEB, last)
    assert found.desired.vips == last.vips
    assert refused(found) == [("vips/shop", "address", "reference")]


@pytest.mark.parametrize("network", ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"])
def test_a_network_may_cover_own_addresses(network: str) -> None:
    """The data plane leaves them out of it."""
    assert check(served(network)).rejections == ()


def test_the_hosts_document_may_allow_an_address() -> None:
    """Then a VIP may have it, though it is the host's own."""
    allowed = HostAddresses(own=HOST.own, allowed=frozenset([ip_address("192.0.2.1")]))
    assert check(WEB, host=allowed).rejections == ()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.0.2.7", "an address of the VIP shop"),
        ("10.0.0.9", "an address of this host itself"),
        ("2001:db8:5::9", "an address of this host itself"),
        ("10.254.3.4", "within the outer source prefix 10.254.0.0/16"),
        ("fd54::1", "within the outer source prefix fd54::/64"),
    ],
)
def test_a_backend_of_such_an_address_is_refused(address: str, reason: str) -> None:
    """The refusal names the key, and what the address is."""
    found = check(backed(address))
    assert refused(found) == [(A, "address", "reference")]
    assert reason in found.rejections[0].reason
    assert found.desired.backends == {}


def test_a_backend_that_moves_to_such_an_address_stays() -> None:
    """It keeps its last good address."""
    last = check(backed("198.51.100.1")).desired
    assert check(backed("10.0.0.9"), last).desired.backends == last.backends


def test_a_backend_within_a_network_vip_is_no_fault() -> None:
    """What is sent to it is encapsulated, and no VIP takes that."""
    found = check(served("198.51.0.0/16") | {A: {"address": "198.51.100.1"}})
    assert found.rejections == ()
    assert BackendKey("web", "a") in found.desired.backends


GUE = {"encapsulation": "gue", "gue_port": 6081}


@pytest.mark.parametrize(
    ("options", "is_refused"),
    [
        ({"protocol": "udp", "port": 0}, True),
        ({"protocol": "udp", "port": 6081}, True),
        ({"protocol": "udp", "port": 6080}, False),
        ({"protocol": "tcp", "port": 0}, False),
    ],
)
def test_a_network_vip_may_not_take_gue(options: dict[str, object], is_refused: bool) -> None:
    """What is sent to a backend within it is UDP, and would come back with one header more."""
    network = vip() | {"address": "198.51.0.0/16", **options}
    documents = WEB | {"pools/web": GUE, "vips/shop": network, A: {"address": "198.51.100.1"}}
    assert refused(check(documents)) == [(A, "address", "reference")] * is_refused


def test_a_vip_over_a_backend_in_force_is_refused() -> None:
    """Who came last is refused: the VIP, though the backend's document is at fault in no way."""
    last = check(WEB | {A: {"address": "198.51.100.1"}}, host=ELSEWHERE).desired
    over = {"vips/other": vip(last=9) | {"address": "198.51.100.1"}, A: {"address": "198.51.100.1"}}
    found = check(WEB | over, last, ELSEWHERE)
    assert refused(found) == [("vips/other", "address", "reference")]
    assert "backend web/a" in found.rejections[0].reason
    assert (found.desired.vips, found.desired.backends) == (last.vips, last.backends)


def test_a_network_over_a_gue_backend_in_force_is_refused() -> None:
    """Likewise; and so is a pool that goes over to GUE under a network that takes it."""
    backends = {A: {"address": "198.51.100.1"}}
    network = {"vips/net": vip(last=9) | {"address": "198.51.0.0/16", "protocol": "udp", "port": 0}}
    by_gue = check(WEB | {"pools/web": GUE} | backends, host=ELSEWHERE).desired
    found = check(WEB | {"pools/web": GUE} | backends | network, by_gue, ELSEWHERE)
    assert refused(found) == [("vips/net", "address", "reference")]
    by_ipip = check(WEB | backends | network, host=ELSEWHERE).desired
    assert "net" in by_ipip.vips
    found = check(WEB | {"pools/web": GUE} | backends | network, by_ipip, ELSEWHERE)
    assert refused(found) == [("pools/web", "encapsulation", "reference")]
    assert found.desired.pools == by_ipip.pools


def test_an_address_may_change_hands_in_one_change() -> None:
    """The backend leaves it in the change in which a VIP gets it."""
    last = check(WEB | {A: {"address": "198.51.100.1"}}, host=ELSEWHERE).desired
    moved = {
        "vips/other": vip(last=9) | {"address": "198.51.100.1"},
        A: {"address": "198.51.100.2"},
    }
    assert check(WEB | moved, last, ELSEWHERE).rejections == ()


def test_away_from_a_host_only_vips_count() -> None:
    """A command that checks documents knows no host, but every VIP."""
    assert check(backed("10.0.0.9"), host=ELSEWHERE).rejections == ()
    assert refused(check(backed("192.0.2.7"), host=ELSEWHERE)) == [(A, "address", "reference")]
