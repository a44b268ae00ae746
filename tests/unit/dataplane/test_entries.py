# SPDX-License-Identifier: Apache-2.0
"""What the maps must hold for a generation, read back field by field."""

from dataclasses import replace
from ipaddress import ip_network

import numpy as np
import pytest

from support.documents.roster import backend, desired, generations, vip, web
from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.publish import entries
from tidegate.model.constants import MAX_NETWORK_VIPS, MAX_ROUTES, MAX_VIPS
from tidegate.model.generation import Generation, Identity
from tidegate.model.tag import PROTOCOLS, flow_salt, vip_tag
from tidegate.model.values import BackendKey, Quic, SourceRoute, SynLimit, Vip

ICMP, ICMPV6, TCP, UDP = 1, 58, 6, 17
LONG = layout.VIP_LONG_WAY
ADDRESS = LONG | layout.ADDRESS_ENTRY
CANARY = SourceRoute(ip_network("198.51.100.0/24"), "canary")


def generation(*vips: Vip) -> Generation:
    return generations(desired(list(vips), [backend("b1")]))[-1]


def entry(value: bytes) -> dict[str, int]:
    """Return an entry of `vips` or `prefixes` by field."""
    fields = np.frombuffer(value, layout.VIP)[0]
    return {name: int(fields[name]) for name in layout.VIP.names or ()}


def test_every_option_is_in_the_entry() -> None:
    """Times, limits and the rest arrive where bpf/layout.h draws them."""
    service = vip(
        "web",
        "192.0.2.1",
        443,
        "udp",
        udp_idle_timeout=30,
        tcp_idle_timeout=1800,
        insert_limit=1000,
        syn_limit=SynLimit(10, 16, 48),
        mss_clamp=1400,
        quic=Quic(8, 2),
        flow_sampling=7,
    )
    placed = generation(service)
    found = entry(entries.vips(placed)[entries.vip_key(service.network, 443, UDP)])
    assert found == {
        "id": 1,
        "incarnation": 1,
        "pool": placed.pools["web"].identity.id,
        "flags": layout.VIP_LONG_WAY | layout.VIP_SYN_LONG_WAY | layout.VIP_SAMPLED,
        "tag": vip_tag(service),
        "salt": flow_salt(Identity(1, 1)),
        "idle": 30,
        "tcp_idle": 1800,
        "insert_rate": 1000,
        "syn_rate": 10,
        "syn_prefix4": 16,
        "syn_prefix6": 48,
        "mss": 1400,
        "quic_length": 8,
        "quic_offset": 2,
        "zero": 0,
        "sampling": 7,
        "unused": 0,
    }


def test_what_is_not_asked_for_is_zero() -> None:
    """Zero means: no SYN limit, no clamp, no QUIC, no events."""
    found = entry(entries.vips(generation(vip("a", "192.0.2.1")))[_key("192.0.2.1", 80, TCP)])
    off = ("syn_rate", "syn_prefix4", "syn_prefix6", "mss", "quic_length", "quic_offset")
    assert [found[name] for name in (*off, "sampling")] == [0] * 7
    assert (found["idle"], found["insert_rate"]) == (60, 100_000)


def _key(network: str, port: int, protocol: int) -> bytes:
    return entries.vip_key(ip_network(network), port, protocol)


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, 0),
        ({"tracking": "transition"}, layout.VIP_TRACK_TRANSITION),
        ({"tracking": "none"}, layout.VIP_TRACK_NONE),
        ({"hash": "source"}, layout.VIP_HASH_SOURCE | LONG),
        ({"hash": "source+port"}, layout.VIP_HASH_SOURCE_PORT | LONG),
        ({"source_routes": (CANARY,)}, layout.VIP_ROUTES | LONG),
        ({"deny": (ip_network("10.0.0.0/8"),)}, layout.VIP_ROUTES | LONG),
        ({"address": "192.0.2.0/24"}, layout.VIP_PREFIX | LONG),
        ({"syn_limit": SynLimit(9)}, layout.VIP_SYN_LONG_WAY),
        ({"mss_clamp": 1400}, layout.VIP_SYN_LONG_WAY),
        ({"protocol": "udp", "quic": Quic(2)}, LONG),
        ({"flow_sampling": 1}, layout.VIP_SAMPLED),
        ({"sorry_pool": "sorry", "insert_limit": 1, "echo": False}, 0),
    ],
)
def test_flags_say_how_a_vip_differs(options: dict[str, object], flags: int) -> None:
    """One flag per deviation from the default; pings are a matter of the ICMP entries."""
    address = str(options.pop("address", "192.0.2.1"))
    service = vip("web", address, **options)
    placed = generation(service)
    found = entries.vips(placed) | entries.prefixes(placed)
    key = entries.prefix_key if service.is_network else entries.vip_key
    protocol = PROTOCOLS[service.protocol]
    assert entry(found[key(service.network, 80, protocol)])["flags"] == flags


def test_a_vip_that_had_another_pool_says_so() -> None:
    """Its SYNs have to look for flows that began there; entries of addresses say nothing of it."""
    first, second = vip("web", "192.0.2.1"), vip("web", "192.0.2.1", pool="other")
    servers = [backend("b1"), backend("b2", pool="other")]
    placed = generations(desired([first], servers), desired([second], servers))[-1]
    found = entries.vips(placed)
    assert entry(found[_key("192.0.2.1", 80, TCP)])["flags"] == layout.VIP_MOVED
    assert entry(found[_key("192.0.2.1", 0, ICMP)])["flags"] == layout.VIP_ECHO | ADDRESS


def test_each_address_has_one_entry_for_icmp() -> None:
    """It stands for the VIP there with the lowest id, and pings are answered if any VIP says so."""
    two = [
        vip("a", "192.0.2.1", 80, echo=False),
        vip("b", "192.0.2.1", 443, pool="other"),
        vip("c", "2001:db8::1", echo=False),
    ]
    placed = generation(*two)
    found = entries.vips(placed)
    assert len(found) == 3 + 2
    first = entry(found[_key("192.0.2.1", 0, ICMP)])
    assert (first["id"], first["incarnation"]) == placed.vips["a"].identity
    assert first["pool"] == placed.pools["web"].identity.id
    assert (first["flags"], first["salt"]) == (layout.VIP_ECHO | ADDRESS, flow_salt(Identity(1, 1)))
    assert (first["idle"], first["tcp_idle"]) == (0, 0)
    second = entry(found[_key("2001:db8::1", 0, ICMPV6)])
    assert (second["id"], second["flags"]) == (placed.vips["c"].identity.id, ADDRESS)


def test_networks_are_in_the_other_map() -> None:
    """With their length behind protocol and port, and an entry for ICMP each."""
    placed = generation(vip("a", "192.0.2.0/24"), vip("b", "2001:db8::/33", 0, "udp"))
    assert entries.vips(placed) == {}
    keys = [np.frombuffer(key, layout.PREFIX_KEY)[0] for key in entries.prefixes(placed)]
    found = {(int(k["length"]), int(k["protocol"]), int(k["port"])) for k in keys}
    assert found == {
        (32 + 96 + 24, TCP, 80),
        (32 + 96 + 24, ICMP, 0),
        (32 + 33, UDP, 0),
        (32 + 33, ICMPV6, 0),
    }
    flags = [entry(value)["flags"] for value in entries.prefixes(placed).values()]
    assert all(flag & layout.VIP_PREFIX for flag in flags)


def test_a_full_length_network_is_an_address() -> None:
    """The exact look-up comes first, and is cheaper."""
    assert entries.prefixes(generation(vip("a", "192.0.2.1/32"))) == {}


def test_routes_lead_to_pools_or_nowhere() -> None:
    """A client network's pool, or the flag that denies it."""
    service = vip("a", "192.0.2.1", source_routes=(CANARY,), deny=(ip_network("10.0.0.0/8"),))
    placed = generation(service)
    found = entries.routes(placed)
    assert len(found) == 2
    canary = np.frombuffer(found[entries.route_key(1, CANARY.network)], layout.ROUTE)[0]
    assert tuple(canary) == (placed.pools["canary"].identity.id, 0)
    denied = found[entries.route_key(1, ip_network("10.0.0.0/8"))]
    assert tuple(np.frombuffer(denied, layout.ROUTE)[0]) == (0, layout.ROUTE_DENY)
    key = np.frombuffer(entries.route_key(1, CANARY.network), layout.ROUTE_KEY)[0]
    assert (int(key["length"]), int(key["vip"])) == (32 + 96 + 24, 1)
    assert bytes(key["source"]).hex() == "00" * 10 + "ffff" + "c6336400"


def test_server_ids_lead_to_backends() -> None:
    """By pool and length; shorter ids are padded with zeros."""
    placed = generations(web(backend("b1", quic_server_id=b"\x01\x02"), backend("b2")))[-1]
    ((key, value),) = entries.quic_servers(placed).items()
    pool = placed.pools["web"].identity.id
    assert key == pool.to_bytes(4, "little") + b"\x02" + b"\x01\x02".ljust(15, b"\0")
    identity = placed.backends[BackendKey("web", "b1")].identity
    assert tuple(np.frombuffer(value, layout.QUIC_SERVER)[0]) == identity


def test_a_draining_backend_yields_its_server_id() -> None:
    """Until then connections to it are still found by their id."""
    first = web(backend("b1", quic_server_id=b"\x01"), backend("b2"))
    gone = web(backend("b2"))
    again = web(backend("b2", quic_server_id=b"\x01"))
    for step, owner in ((gone, "b1"), (again, "b2")):
        placed = generations(first, step)[-1]
        (value,) = entries.quic_servers(placed).values()
        identity = placed.backends[BackendKey("web", owner)].identity
        assert tuple(np.frombuffer(value, layout.QUIC_SERVER)[0]) == identity


def test_the_order_of_vips_does_not_matter() -> None:
    """Content follows from names and ids alone."""
    placed = generation(*(vip(f"v{i}", f"192.0.2.{i % 3}", 80 + i) for i in range(9)))
    backwards = replace(placed, vips=dict(reversed(placed.vips.items())))
    assert entries.vips(placed) == entries.vips(backwards)


def test_as_many_entries_as_there_may_be_fit_their_maps_twice() -> None:
    """Old and new ones stand side by side while a generation is published."""
    sizes = {name: shape.max_entries for name, shape in maps.shapes(maps.Capacity()).items()}
    assert sizes["vips"] >= 2 * 2 * MAX_VIPS
    assert sizes["prefixes"] >= 2 * 2 * MAX_NETWORK_VIPS
    assert sizes["routes"] >= 2 * MAX_ROUTES
