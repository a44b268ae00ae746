# SPDX-License-Identifier: Apache-2.0
"""Options of VIPs, pools and backends, and the settings: what arrives and what is refused."""

import json
from ipaddress import ip_network

import pytest

from support.documents.keyspaces import WEB, Contents, check, refused, vip
from tidegate.model.values import BackendKey, Quic, SourceRoute, SynLimit, Vip


def service(**options: object) -> Contents:
    """Return one VIP with these options, and the pools web and canary."""
    return {"pools/web": {}, "pools/canary": {}, "vips/shop": vip() | options}


def test_a_vip_may_be_a_network_and_any_port() -> None:
    """A full-length network is the plain address."""
    good = check(service(address="192.0.2.0/24", port=0)).desired.vips["shop"]
    assert (str(good.network), good.port, good.is_network) == ("192.0.2.0/24", 0, True)
    full = check(service(address="2001:db8::1/128")).desired.vips["shop"]
    plain = check(service(address="2001:db8::1")).desired.vips["shop"]
    assert full == plain
    assert not plain.is_network


def test_only_equal_services_conflict() -> None:
    """An address within a network, and any port beside one port, are other services."""
    addresses = ["192.0.2.0/24", "192.0.2.0/25", "192.0.2.0", "192.0.2.0/32"]
    vips = {f"vips/{i}": vip() | {"address": text} for i, text in enumerate(addresses)}
    any_port = {"vips/any": vip() | {"address": "192.0.2.0", "port": 0}}
    validation = check({"pools/web": {}} | vips | any_port)
    assert set(validation.desired.vips) == {"0", "1", "2", "any"}
    assert refused(validation) == [("vips/3", "address", "reference")]


def test_every_option_of_a_vip_arrives() -> None:
    """The value has what the document says, with networks parsed and in order."""
    options = {
        "protocol": "udp",
        "tracking": "transition",
        "hash": "source",
        "udp_idle_timeout": 30,
        "tcp_idle_timeout": 1800,
        "unserved": "reject",
        "insert_limit": 1000,
        "syn_limit": {"rate": 10, "prefix4": 16},
        "mss_clamp": 1400,
        "echo": False,
        "quic": {"server_id_length": 8},
        "source_routes": {"198.51.100.0/24": "canary", "10.0.0.0/8": "web"},
        "deny": ["203.0.113.7/32", "203.0.113.0/30"],
        "flow_sampling": 64,
        "sorry_pool": "canary",
    }
    desired, rejections = check(service(**options))
    assert rejections == ()
    assert desired.vips["shop"] == Vip(
        *("shop", ip_network("192.0.2.1"), 443, "udp", "web", "transition", "source", 30, 1800),
        *(1000, SynLimit(10, 16, 56), 1400, False, Quic(8, 1)),
        (
            SourceRoute(ip_network("10.0.0.0/8"), "web"),
            SourceRoute(ip_network("198.51.100.0/24"), "canary"),
        ),
        (ip_network("203.0.113.0/30"), ip_network("203.0.113.7/32")),
        *(64, "canary", "reject"),
    )


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"quic": {"server_id_length": 8}}, "quic", 'quic needs protocol "udp"'),
        (
            {"protocol": "udp", "quic": {"server_id_length": 15, "offset": 6}},
            "quic",
            "ends at byte 21 of connection ids",
        ),
        ({"syn_limit": {"rate": 0}}, "syn_limit.rate", "an object with rate (a whole number from"),
        ({"mss_clamp": 535}, "mss_clamp", "a whole number from 536 to 65535 or null"),
        ({"source_routes": {"10.0.0.1/8": "web"}}, "source_routes", "write 10.0.0.0/8 instead"),
        ({"source_routes": {"10.0.0.1": "web"}}, "source_routes", "such as 192.0.2.0/24"),
        ({"source_routes": {"fd00::/8": "web"}}, "source_routes", "have IPv4 addresses"),
        ({"deny": ["fd00::/8"]}, "deny", "have IPv4 addresses"),
        ({"deny": ["10.0.0.0/8", "10.0.0.0/8"]}, "deny", "has 10.0.0.0/8 twice"),
        (
            {"source_routes": {"10.0.0.0/8": "web"}, "deny": ["10.0.0.0/8"]},
            "deny",
            "which source_routes has too",
        ),
        ({"deny": [f"10.0.{i}.0/24" for i in range(101)]}, "source_routes", "the limit is 100"),
        ({"source_routes": {"10.0.0.0/8": "a b"}}, "source_routes", "each a name"),
        ({"address": "192.0.2.1/24"}, "address", "write 192.0.2.0/24 instead"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: dict[str, object], field: str, words: str
) -> None:
    """Each refusal names the field and says what is allowed."""
    validation = check(service(**options))
    assert validation.desired.vips == {}
    (rejection,) = validation.rejections
    assert rejection.field.startswith(field)
    assert words in rejection.reason


def test_a_hundred_client_networks_are_accepted() -> None:
    """The limit itself is allowed."""
    deny = [f"10.0.{i}.0/24" for i in range(100)]
    assert len(check(service(deny=deny)).desired.vips["shop"].deny) == 100


def test_a_source_route_that_is_written_twice_is_refused() -> None:
    """JSON readers differ in which of two equal names counts, inside objects too."""
    text = json.dumps(service(source_routes={"10.0.0.0/8": "web"})["vips/shop"])
    twice = text.replace('{"10.0.0.0/8": "web"}', '{"10.0.0.0/8": "web", "10.0.0.0/8": "canary"}')
    validation = check({"pools/web": {}, "pools/canary": {}, "vips/shop": twice.encode()})
    assert refused(validation) == [("vips/shop", "10.0.0.0/8", "decode")]


def test_a_source_route_needs_a_pool_that_exists() -> None:
    """As the VIP's own pool does; without it the VIP stays as it was."""
    good = check(service()).desired
    validation = check(service(source_routes={"10.0.0.0/8": "gone"}), good)
    assert validation.desired.vips == good.vips
    assert refused(validation) == [("vips/shop", "source_routes", "reference")]
    assert 'names the pool "gone", which does not exist' in validation.rejections[0].reason


def test_a_deleted_pool_stays_while_a_source_route_uses_it() -> None:
    """A pool that only a source route names is in use."""
    routed = service(source_routes={"10.0.0.0/8": "canary"})
    good = check(routed).desired
    validation = check({k: v for k, v in routed.items() if k != "pools/canary"}, good)
    assert validation.desired == good
    assert refused(validation) == [("pools/canary", "", "reference")]


def servers(**ids: str) -> Contents:
    """Return backends of one pool with these QUIC server ids."""
    return {"pools/web": {}} | {
        f"pools/web/backends/{name}": {"address": f"198.51.100.{n}", "quic_server_id": server_id}
        for n, (name, server_id) in enumerate(ids.items(), 1)
    }


def test_a_server_id_belongs_to_the_backend_created_first() -> None:
    """Two backends of a pool cannot share one; letter case makes no difference."""
    validation = check(servers(z="0a0b", a="0A0B"))
    assert set(validation.desired.backends) == {BackendKey("web", "z")}
    assert validation.desired.backends[BackendKey("web", "z")].quic_server_id == b"\x0a\x0b"
    assert refused(validation) == [("pools/web/backends/a", "quic_server_id", "reference")]


def test_server_ids_of_two_pools_do_not_conflict() -> None:
    """An id is looked up within the pool."""
    contents = servers(a="0a") | {
        "pools/api": {},
        "pools/api/backends/a": {"address": "198.51.100.2", "quic_server_id": "0a"},
    }
    assert check(contents).rejections == ()


def test_a_loser_of_a_server_id_keeps_its_last_good_value() -> None:
    """Who has an id in force keeps it from whoever comes for it."""
    good = check(servers(a="0a", b="0b")).desired
    validation = check(servers(a="0b", b="0b"), good)
    assert validation.desired.backends == good.backends
    assert refused(validation) == [("pools/web/backends/a", "quic_server_id", "reference")]


@pytest.mark.parametrize("server_id", ["", "0", "0g", "00" * 16, 10])
def test_a_server_id_is_one_to_fifteen_bytes(server_id: object) -> None:
    """Anything else is refused with what is allowed."""
    backend = {"address": "198.51.100.1", "quic_server_id": server_id}
    (rejection,) = check({"pools/web": {}, "pools/web/backends/a": backend}).rejections
    assert rejection.field == "quic_server_id"
    assert "a string of 1 to 15 bytes in hexadecimal or null" in rejection.reason


def test_settings_have_the_seed_of_the_flow_hash() -> None:
    """A bad document keeps the last seed, a deleted one leaves it to the agent's file."""
    good = check(WEB | {"settings": {"hash_seed": "secret"}}).desired
    assert good.hash_seed == "secret"
    bad = check(WEB | {"settings": {"hash_seed": ""}}, good)
    assert bad.desired.hash_seed == "secret"
    assert refused(bad) == [("settings", "hash_seed", "schema")]
    assert check(WEB, good).desired.hash_seed is None


def test_a_pools_options_arrive() -> None:
    """Encapsulation, its port and the MTU."""
    options = {"encapsulation": "gue", "gue_port": 6081, "mtu": 1400}
    pool = check({"pools/web": options}).desired.pools["web"]
    assert (pool.encapsulation, pool.gue_port, pool.mtu) == ("gue", 6081, 1400)


def test_a_pools_mtu_leaves_room_for_the_smallest_ipv6_packet() -> None:
    """1280 bytes, 40 of outer IPv6 and 8 of UDP: below that a client could not be told an MTU."""
    assert check({"pools/web": {"mtu": 1328}}).desired.pools["web"].mtu == 1328
    (rejection,) = check({"pools/web": {"mtu": 1327}}).rejections
    assert (rejection.key, rejection.field, rejection.stage) == ("pools/web", "mtu", "schema")
    assert "1328" in rejection.reason


def _server(**options: object) -> Contents:
    return WEB | {"pools/web/backends/a": {"address": "198.51.100.1"} | options}


def test_times_of_a_backend_are_whole_seconds() -> None:
    """A part of a second does not count, so that all hosts mean the same one."""
    times = {"starts_at": "2026-01-31T12:00:00Z", "drain_deadline": "2026-01-31T12:00:00.999Z"}
    (a,) = check(_server(state="drain", **times)).desired.backends.values()
    assert (a.starts_at, a.drain_deadline) == (1_769_860_800, 1_769_860_800)


@pytest.mark.parametrize(
    ("options", "field", "reason"),
    [
        ({"starts_at": "2026-02-30T00:00:00Z"}, "starts_at", "not a time: day is out of range"),
        ({"starts_at": "tomorrow"}, "starts_at", "a time in UTC, such as 2026-01-31T12:00:00Z"),
        ({"starts_at": "2026-01-31T12:00:00+01:00"}, "starts_at", "a time in UTC, such as"),
        ({"drain_deadline": "2026-01-31T12:00:00Z"}, "drain_deadline", 'needs state "drain"'),
        (
            {"drain_deadline": "2026-01-31T12:00:00Z", "state": "disabled"},
            "drain_deadline",
            'needs state "drain"',
        ),
    ],
)
def test_a_bad_time_of_a_backend_is_refused(
    options: dict[str, object], field: str, reason: str
) -> None:
    """The field is named, with what is wrong."""
    validation = check(_server(**options))
    assert refused(validation) == [("pools/web/backends/a", field, "schema")]
    assert reason in validation.rejections[0].reason


def test_the_slow_start_of_a_pool_arrives() -> None:
    """With its own share of backends that one change may take away."""
    options = {"slow_start": 60, "slow_start_steps": 4, "max_removed_percent": 10}
    web = check(WEB | {"pools/web": options}).desired.pools["web"]
    assert (web.slow_start, web.slow_start_steps, web.max_removed_percent) == (60, 4, 10)
    for bad in ({"slow_start_steps": 1}, {"slow_start": -1}, {"max_removed_percent": 101}):
        (field,) = bad
        assert refused(check(WEB | {"pools/web": bad}))[0][1] == field
