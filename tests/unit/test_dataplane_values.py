# SPDX-License-Identifier: Apache-2.0
"""The data plane's encodings, without a kernel: enums, tables, ledger records, build constants."""

from importlib.resources import files
from ipaddress import IPv4Network, IPv6Network, ip_address

import msgspec
import numpy as np

from roster import backend, generations, web
from tidegate.dataplane import enums, layout, ledger, programs, tables
from tidegate.dataplane.maps import LEDGER_VALUE_BYTES
from tidegate.dataplane.publish import vip_tag
from tidegate.model.constants import MAX_BACKENDS, TABLE_SIZE
from tidegate.spec.state import vip_tag as vip_tag_of_the_specification

LONG = "n" * 63


def test_the_header_of_enums_is_the_generated_one() -> None:
    """bpf/enums.h says what the model says."""
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
    assert (again.windows, again.generation) == (table.windows, table.generation)
    assert table.window.any()


def test_slots_in_transition_are_flagged_for_packets() -> None:
    """The flag and the window index are two views of one thing."""
    table = (
        generations(web(backend("b1")), web(backend("b1"), backend("b2")))[-1].pools["web"].table
    )
    leaf = np.frombuffer(tables.encode(table), layout.TABLE)[0]
    assert np.array_equal(leaf["slots"]["fallback"] >> 31 == 1, table.window > 0)


def test_the_largest_table_layout_holds_every_slot() -> None:
    """Sizes agree with the build constants."""
    assert layout.TABLE["slots"].shape == (TABLE_SIZE,)
    assert layout.TABLE.itemsize % 8 == 0
    assert MAX_BACKENDS < 1 << 31  # the flag of a slot is the id's top bit


def test_the_ledger_tells_everything_but_the_tables() -> None:
    """Names, ids, documents and resting ids come back from the records."""
    steps = [web(backend("b1"), backend("b2"), delay=0), web(backend("b1"), delay=0)]
    generation = generations(*steps)[-1]
    found = ledger.contents(ledger.records(generation))
    assert found.vips == generation.vips
    assert found.backends == generation.backends
    assert found.pools == {n: (p.identity, p.pool) for n, p in generation.pools.items()}
    assert found.freed == generation.freed


def test_the_longest_record_fits() -> None:
    """63-character names and the longest addresses stay within a ledger value."""
    longest = str(ip_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
    big = 2**32 - 1
    records: list[ledger.Record] = [
        ledger.BackendRecord(big, LONG, LONG, longest, 65535, "quarantine", 2**40),
        ledger.VipRecord(big, LONG, longest, 65535, "tcp", LONG),
    ]
    for record in records:
        assert len(msgspec.msgpack.encode(record)) + 2 <= LEDGER_VALUE_BYTES


def test_a_vips_tag_is_the_same_for_the_agent_and_the_specification() -> None:
    """The flow hash must not depend on who computed it."""
    for placed in generations(web(backend("b1")))[-1].vips.values():
        assert vip_tag(placed.vip) == vip_tag_of_the_specification(placed.vip)


def test_a_full_length_source_prefix_is_one_fixed_address() -> None:
    """For networks that filter spoofed sources."""
    build = programs.Build(b"", IPv4Network("192.0.2.7/32"), IPv6Network("2001:db8::7/128"))
    constants = dict(build.constants())
    masks = [constants[m] for m in ("SOURCE4_MASK", "SOURCE6_MASK2", "SOURCE6_MASK3")]
    assert masks == ["0x0U", "0x0U", "0x0U"]
    assert constants["SOURCE4"] == "0x70200c0U"
