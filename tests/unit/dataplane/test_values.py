# SPDX-License-Identifier: Apache-2.0
"""The data plane's encodings, without a kernel: enums, tables, ledger records, build constants."""

from dataclasses import fields, replace
from importlib.resources import files
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import msgspec
import numpy as np
import pytest

from support.documents.roster import backend, desired, generations, vip, web
from tidegate.dataplane.kernel import enums, layout, programs
from tidegate.dataplane.kernel.maps import WIDE_LEDGER_VALUE_BYTES
from tidegate.dataplane.publish import ledger, ledger_bytes, tables
from tidegate.dataplane.publish.ledger import Kind, MetaRecord, Place
from tidegate.errors import DataplaneError
from tidegate.model.address import packed_network, unpacked_network
from tidegate.model.checks import Check, Health
from tidegate.model.constants import (
    MAX_BACKENDS,
    MAX_POOLS,
    MAX_VIP_ROUTES,
    MAX_VIPS,
    TABLE_SIZE,
)
from tidegate.model.generation import (
    NOTHING,
    Generation,
    Identity,
    Level,
    PlacedBackend,
    PlacedPool,
    PlacedVip,
)
from tidegate.model.tag import flow_salt, vip_tag
from tidegate.model.values import (
    Backend,
    BackendKey,
    Desired,
    Pool,
    Quic,
    SourceRoute,
    SynLimit,
    Vip,
)
from tidegate.planner import plan
from tidegate.planner.levels import MOST
from tidegate.planner.transition import first_table

LONG = "n" * 63
SALT = 0xD0B155862FB1682B
TAG4 = int.from_bytes(bytes.fromhex("7234317d4ddf5f7a"), "little")
TAG6 = int.from_bytes(bytes.fromhex("0ce4502deeb5acd5"), "little")


def every_option() -> Desired:
    """Return a VIP, a pool and a backend with no field at its default."""
    service = vip(
        "quic",
        "2001:db8:1::/64",
        443,
        "udp",
        tracking="transition",
        hash="source",
        udp_idle_timeout=30,
        tcp_idle_timeout=1800,
        unserved="reject",
        insert_limit=1000,
        syn_limit=SynLimit(10, 16, 48),
        mss_clamp=1400,
        echo=False,
        quic=Quic(8, 2),
        source_routes=(SourceRoute(ip_network("2001:db8:2::/48"), "canary"),),
        deny=(ip_network("2001:db8:3::/48"),),
        flow_sampling=7,
        sorry_pool="sorry",
    )
    drain = {"state": "drain", "starts_at": 900, "drain_deadline": 2000}
    servers = [
        backend("b1", weight=7, quic_server_id=b"12345678", **drain),
        backend("b2", pool="canary"),
        backend("b3", pool="sorry"),
    ]
    options = {"encapsulation": "gue", "gue_port": 6081, "mtu": 1400}
    ramp = {
        "slow_start": 60,
        "slow_start_steps": 4,
        "max_removed_percent": 20,
        "health": Health(check=Check(type="tcp")),
    }
    return desired([service], servers, **options, **ramp)


def test_the_header_of_enums_is_the_generated_one() -> None:
    """bpf/enums.h equals the enums of `tidegate.model`."""
    assert files("tidegate.bpf").joinpath("enums.h").read_text() == enums.render()


def test_a_table_survives_encoding() -> None:
    """What is written to an inner map is read back equal, windows included."""
    table = (
        generations(web(backend("b1")), web(backend("b1"), backend("b2")))[-1].pools["web"].table
    )
    again = tables.decode(bytes(tables.encode(table)))
    assert np.array_equal(again.current, table.current)
    assert np.array_equal(again.fallback, table.fallback)
    assert np.array_equal(again.window, table.window)
    assert np.array_equal(again.tracked, table.tracked)
    assert (again.windows, again.generation) == (table.windows, table.generation)
    assert table.window.any()


def test_slots_in_transition_are_flagged_for_packets() -> None:
    """The flag and the window index are two views of one thing; the other flag outlives it."""
    one, two = web(backend("b1"), window=60), web(backend("b1"), backend("b2"), window=60)
    moving = generations(one, two)[-1]
    closed = plan(two, moving, 1000 + 100)
    for generation in (moving, closed):
        table = generation.pools["web"].table
        fallback = np.frombuffer(tables.encode(table), layout.TABLE)[0]["slots"]["fallback"]
        assert np.array_equal(fallback & layout.IN_WINDOW > 0, table.window > 0)
        assert np.array_equal(fallback & layout.MAY_BE_TRACKED > 0, table.tracked)
        assert np.array_equal(fallback & layout.OWNER, table.fallback)
    assert closed.pools["web"].table.tracked.any()
    assert not closed.pools["web"].table.window.any()


def test_the_largest_table_layout_holds_every_slot() -> None:
    """Sizes agree with the build constants."""
    assert layout.TABLE["slots"].shape == (TABLE_SIZE,)
    assert layout.TABLE.itemsize % 8 == 0
    assert MAX_BACKENDS - 1 <= layout.OWNER  # the flags of a slot are the top bits of an id


def test_the_ledger_tells_everything_but_the_tables() -> None:
    """Names, ids, documents and resting ids come back from the records."""
    steps = [web(backend("b1"), backend("b2"), delay=0), web(backend("b1"), delay=0)]
    generation = generations(*steps)[-1]
    found = ledger.contents(ledger.records(generation))
    assert found.vips == generation.vips
    assert found.backends == generation.backends
    assert found.pools == {n: (p.identity, p.pool) for n, p in generation.pools.items()}
    assert found.freed == generation.freed


def test_the_ledger_tells_every_option() -> None:
    """No field of a VIP, a pool or a backend is lost on the way through the records."""
    generation = plan(every_option(), NOTHING, 1000)
    for placed in generation.vips.values():
        assert placed.unserved == ("web",)
        assert all(getattr(placed.vip, f.name) != f.default for f in fields(Vip))
    for in_pool in generation.pools.values():
        assert all(getattr(in_pool.pool, f.name) != f.default for f in fields(Pool))
    first = generation.backends[BackendKey("web", "b1")].backend
    assert all(getattr(first, f.name) != f.default for f in fields(Backend))
    written = {
        place: ledger_bytes.decode(ledger_bytes.encode(place, record))
        for place, record in ledger.records(generation).items()
    }
    found = ledger.contents(written)
    assert found.vips == generation.vips
    assert found.backends == generation.backends
    assert found.pools == {n: (p.identity, p.pool) for n, p in generation.pools.items()}


def test_the_ledger_tells_that_a_vip_has_moved() -> None:
    """And a record from before it could tell is of one that has not, with the default timeout."""
    placed = generations(web(backend("b1")))[-1]
    moved = replace(placed.vips["web4"], moved=True)
    records = ledger.records(replace(placed, vips={"web4": moved}))
    assert ledger.contents(records).vips == {"web4": moved}
    place = Place(Kind.VIP, moved.identity.id)
    record = records[place]
    assert msgspec.to_builtins(record)[-3:] == [4500, True, "drop"]
    older = msgspec.convert(msgspec.to_builtins(record)[:-2], ledger.Record)
    assert ledger.contents({**records, place: older}).vips == {"web4": placed.vips["web4"]}


def test_a_vips_salt_is_fixed() -> None:
    """Entries of flows outlive the agent; another use of the id has another one."""
    assert flow_salt(Identity(1, 1)) == SALT
    assert len({flow_salt(Identity(i, j)) for i in (1, 2) for j in (1, 2, 256)}) == 6


def test_a_record_from_before_slow_start_is_read() -> None:
    """Its state determines what the backend did: an older agent's pins are adopted as they are."""
    states = ("active", 50, True), ("drain", 0, True), ("quarantine", 0, False)
    for state, weight, reachable in states:
        old = ["backend", 1, "web", "b1", "10.1.0.1", 50, state, None, b""]
        value = msgspec.msgpack.encode(old)
        record = ledger_bytes.decode(len(value).to_bytes(2, "little") + value)
        placed = ledger.contents({Place(Kind.BACKEND, 1): record}).backends[BackendKey("web", "b1")]
        assert placed == PlacedBackend(
            Identity(1, 1), backend("b1", weight=50, state=state), weight, reachable
        )


def test_the_longest_records_fit() -> None:
    """Longest names, addresses and numbers, and as many routes as a VIP may have."""
    big = 2**32 - 1
    longest = str(ip_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
    network = ip_network((longest, 127), strict=False)
    worst = vip(
        LONG,
        str(network),
        65535,
        "udp",
        LONG,
        tracking="transition",
        hash="source+port",
        udp_idle_timeout=big,
        tcp_idle_timeout=big,
        insert_limit=big,
        syn_limit=SynLimit(big, 32, 128),
        mss_clamp=65535,
        quic=Quic(15, 15),
        source_routes=tuple(
            SourceRoute(ip_network((2**128 - 1 - i, 128)), LONG) for i in range(MAX_VIP_ROUTES)
        ),
        flow_sampling=65536,
        sorry_pool=LONG,
    )
    unserved = (LONG,) * (MAX_VIP_ROUTES + 1)
    table = first_table(np.zeros(TABLE_SIZE, np.uint32), 1)
    wide = "\N{OLD PERSIAN NUMBER HUNDRED}"
    check = Check(
        type="exec",
        port=65535,
        interval=299.123456789,
        timeout=59.123456789,
        source4="255.255.255.255",
        source6="2001:db8:1111:2222:3333:4444:5555:6666",
        command=(wide * 100,) * 8,
    )
    pool = Pool(
        LONG,
        big,
        big,
        "gue",
        65535,
        65535,
        3600,
        16,
        100,
        Health(mode="external", check=check, most_per_minute=1000, hold_down=3600),
    )
    levels = tuple(Level(2**40 + each, MAX_BACKENDS) for each in range(MOST))
    key = BackendKey(LONG, LONG)
    server = Backend(
        LONG, LONG, ip_address(longest), 65535, "quarantine", b"\xff" * 15, 2**40, 2**40
    )
    generation = Generation(
        number=2**64 - 1,
        revision=2**63 - 1,
        digest="",
        vips={LONG: PlacedVip(Identity(MAX_VIPS - 1, big), worst, unserved, moved=True)},
        pools={LONG: PlacedPool(Identity(MAX_POOLS - 1, big), pool, table, b"", levels)},
        backends={
            key: PlacedBackend(Identity(MAX_BACKENDS - 1, big), server, 65535, False, 2**40)  # noqa: FBT003 - reachable
        },
    )
    records = ledger.records(generation)
    seed = wide * 128
    records[Place(Kind.META, 0)] = MetaRecord(2**64 - 1, 2**63 - 1, seed, LONG, LONG)
    for place, record in records.items():
        assert ledger_bytes.decode(ledger_bytes.encode(place, record)) == record


def test_a_record_that_does_not_fit_is_refused() -> None:
    """Never cut: half a record would be read as another one, or not at all."""
    meta = MetaRecord(1, 1, "x" * WIDE_LEDGER_VALUE_BYTES)
    with pytest.raises(DataplaneError, match="record meta/0 has"):
        ledger_bytes.encode(Place(Kind.META, 0), meta)


def test_a_vips_tag_is_fixed() -> None:
    """It is part of the flow hash: another one in a later version would move every flow.

    The expected numbers were computed with another implementation of BLAKE2b (b2sum of coreutils).
    """
    assert vip_tag(vip("a", "192.0.2.1", 443, "tcp")) == TAG4
    assert vip_tag(vip("b", "2001:db8:1::/64", 0, "udp")) == TAG6


def test_networks_survive_their_packed_form() -> None:
    """Of both families, and of any length."""
    for text in ("0.0.0.0/0", "192.0.2.0/24", "192.0.2.1/32", "::/0", "2001:db8::/33"):
        assert unpacked_network(packed_network(ip_network(text))) == ip_network(text)


def test_a_full_length_source_prefix_is_one_fixed_address() -> None:
    """For networks that filter spoofed sources."""
    build = programs.Build(b"", IPv4Network("192.0.2.7/32"), IPv6Network("2001:db8::7/128"))
    constants = dict(build.constants())
    masks = [constants[m] for m in ("SOURCE4_MASK", "SOURCE6_MASK2", "SOURCE6_MASK3")]
    assert masks == ["0x0U", "0x0U", "0x0U"]
    assert constants["SOURCE4"] == "0x70200c0U"
