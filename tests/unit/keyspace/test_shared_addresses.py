# SPDX-License-Identifier: Apache-2.0
"""An address of a pool has one name: what is refused, and who keeps what."""

from support.documents.keyspaces import Contents, check, refused, snapshot
from tidegate.keyspace.documents.parse_cache import ParseCache
from tidegate.keyspace.documents.validate import validate
from tidegate.model.values import EMPTY


def shared(**servers: str) -> Contents:
    """Return backends of one pool with these addresses."""
    there = {f"pools/web/backends/{n}": {"address": a} for n, a in servers.items()}
    return {"pools/web": {}} | there


def test_an_address_of_a_pool_belongs_to_one_backend() -> None:
    """The one that was created first, in whatever way the address is written."""
    validation = check(shared(z="fd01::1", a="fd01:0::1", b="fd01::2"))
    assert {key.name for key in validation.desired.backends} == {"z", "b"}
    assert refused(validation) == [("pools/web/backends/a", "address", "reference")]
    assert "address is that of the backend z" in validation.rejections[0].reason
    others = shared(a="198.51.100.1") | {
        "pools/api": {},
        "pools/api/backends/a": {"address": "198.51.100.1"},
    }
    assert check(others).rejections == ()


def test_who_has_an_address_in_force_keeps_it() -> None:
    """A new name waits until the old one is gone; then both are one change."""
    good = check(shared(a="198.51.100.1", b="198.51.100.2")).desired
    both = check(shared(n="198.51.100.1", a="198.51.100.1", b="198.51.100.1"), good)
    assert both.desired.backends == good.backends
    assert {key for key, field, _ in refused(both) if field == "address"} == {
        "pools/web/backends/n",
        "pools/web/backends/b",
    }
    renamed = check(shared(n="198.51.100.1", b="198.51.100.2"), both.desired)
    assert (refused(renamed), len(renamed.desired.backends)) == ([], 2)
    swapped = check(shared(a="198.51.100.2", b="198.51.100.1"), good)
    assert refused(swapped) == []


def test_a_broken_document_keeps_its_address() -> None:
    """What is in force in its place may not be taken by another name."""
    good = check(shared(a="198.51.100.1")).desired
    contents = shared(a="198.51.100.1", n="198.51.100.1") | {"pools/web/backends/a": b"{"}
    validation = check(contents, good)
    assert validation.desired.backends == good.backends
    assert ("pools/web/backends/n", "address", "reference") in refused(validation)


def test_the_cache_counts_addresses_as_they_come_and_go() -> None:
    """With a cache of earlier documents the outcome is that without one."""
    cache, last = ParseCache(), EMPTY
    steps = [
        shared(a="198.51.100.1", b="198.51.100.1"),
        shared(a="198.51.100.2", b="198.51.100.1"),
        shared(b="198.51.100.1", c="198.51.100.1"),
        shared(c="198.51.100.1"),
        shared(c="198.51.100.1", a="198.51.100.1", b="198.51.100.1"),
        shared(a="198.51.100.1"),
    ]
    for number, step in enumerate(steps):
        found = validate(snapshot(step, 1000 + number), last, cache)
        assert found == validate(snapshot(step, 1000 + number), last)
        last = found.desired
