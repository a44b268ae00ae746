# SPDX-License-Identifier: Apache-2.0
"""What the kernel refuses is a refusal: the last generation stays in force, whole, until it works.

Real refusals that are provoked here: maps that are full (VIPs, networks, routes, server ids, and
both maps of the ledger), and no descriptor for a new table (EMFILE, which takes the way of ENOMEM).
The array of backends cannot be full, since it has an element for each id. Elsewhere an OSError is
raised at each step in turn, as the kernel would for want of memory, once and for good.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest

from crashes import SMALL, Bench, Packets, contents, everything, no_descriptors, open_maps
from roster import backend, generations, vip
from tidegate.dataplane import maps
from tidegate.dataplane import syscalls as bpf
from tidegate.dataplane.publish import Publisher
from tidegate.dataplane.steps import Step
from tidegate.errors import DataplaneError
from tidegate.model.values import Desired, Quic, SourceRoute
from tidegate.planner import plan

pytestmark = pytest.mark.root

NOW = 1_700_000_000
OLD = generations(everything(), now=NOW)[-1]


def more() -> Desired:
    """One more of everything: each keyed map needs room for it, and each table changes."""
    base = everything()
    routes = (SourceRoute(ip_network("10.0.0.0/8"), "web"),)
    vips = [
        vip("more", "192.0.2.77", source_routes=routes),
        vip("more-net", "198.19.0.0/24"),
        vip("more-quic", "192.0.2.78", 443, "udp", "api", quic=Quic(2)),
    ]
    servers = [
        backend("b9", "203.0.113.9"),
        backend("a9", "2001:db8:2::9", pool="api", quic_server_id=b"\x09\x09"),
    ]
    return replace(
        base,
        revision=2,
        vips=base.vips | {v.name: v for v in vips},
        backends=base.backends | {b.key: b for b in servers},
    )


NEW = plan(more(), OLD, NOW + 1)
BEFORE_SWAP = [*Step][: [*Step].index(Step.TABLES_SWAPPED)]
AFTER_SWAP = [
    step
    for step in [*Step][[*Step].index(Step.TABLES_SWAPPED) : [*Step].index(Step.TABLE_UNPINNED)]
    if step not in (Step.SLOT_CLEARED, Step.POOL_UNPINNED)  # no pool goes in this change
]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    built = Bench()
    yield built
    built.close()


@pytest.fixture
def published(bench: Bench) -> Iterator[Publisher]:
    publisher = bench.start(OLD)
    yield publisher
    publisher.close()


class Watch:
    """Flows and tables of the VIPs that are there all the time."""

    def __init__(self, bench: Bench) -> None:
        self.packets = Packets(bench.program, OLD, NEW)
        self.vips = {name: placed.vip for name, placed in OLD.vips.items()}
        self.flows = self.packets.establish(self.vips)
        self.tables = self.look()

    def look(self) -> dict[str, list[str | None]]:
        """Where new flows go, by VIP."""
        return {name: self.packets.table(service) for name, service in self.vips.items()}

    def assert_nothing_moved(self) -> None:
        """Every open flow is where it was."""
        assert self.packets.established(self.vips) == self.flows


def fill(bench: Bench, name: str) -> list[bytes]:
    """Elements of nobody until the map takes no more; returns their keys."""
    shape = maps.shapes(SMALL)[name]
    keys: list[bytes] = []
    for i in range(2 * shape.max_entries):
        tail = i.to_bytes(4, "big")
        key = bytearray(b"\xee" * shape.key_size)
        key[-4:] = tail
        if name in ("prefixes", "routes"):  # the length of the prefix comes first
            key[:4] = (8 * (shape.key_size - 4)).to_bytes(4, "little")
        try:
            bpf.map_update(bench.maps[name], bytes(key), bytes(shape.value_size))
        except OSError as error:
            if error.errno not in (errno.E2BIG, errno.ENOSPC, errno.ENOMEM):
                raise
            return keys
        keys.append(bytes(key))
    raise AssertionError(f"{name} is never full")


@pytest.mark.parametrize(
    "name", ["vips", "prefixes", "routes", "quic_servers", "ledger", "wide_ledger"]
)
def test_a_full_map_is_a_refusal(bench: Bench, published: Publisher, name: str) -> None:
    """Nothing moves; what was there is in force and what filled the map is gone; then it works."""
    watch, before = Watch(bench), contents(bench.maps, bench.pins)
    fill(bench, name)
    with pytest.raises(DataplaneError, match=f"publishing generation {NEW.number} failed"):
        published.publish(NEW, 0.0)
    watch.assert_nothing_moved()
    if published.is_certain:  # all is put back
        assert published.in_force is OLD
        assert contents(bench.maps, bench.pins) == before
    else:  # the swap was done: the last documents are the way back
        published.publish(plan(everything(), published.in_force, NOW + 2), 0.0)
        watch.assert_nothing_moved()
        assert published.in_force.digest == OLD.digest
    assert watch.look() == watch.tables
    published.publish(plan(more(), published.in_force, NOW + 3), 0.0)
    watch.assert_nothing_moved()
    assert published.in_force.digest == NEW.digest
    assert published.audit(deep=True) == []


def test_no_room_for_a_table_is_a_refusal(bench: Bench, published: Publisher) -> None:
    """Nothing is left of the attempt: no map, no pin, no entry, no record."""
    watch, before, held = Watch(bench), contents(bench.maps, bench.pins), open_maps()
    for _ in range(3):
        with no_descriptors(), pytest.raises(DataplaneError, match="Too many open files"):
            published.publish(NEW, 0.0)
        watch.assert_nothing_moved()
        assert contents(bench.maps, bench.pins) == before
        assert published.in_force is OLD
        assert published.audit(deep=True) == []
    assert open_maps() == held
    published.publish(NEW, 0.0)
    watch.assert_nothing_moved()
    assert published.audit(deep=True) == []


class Refusing:
    """A hook that raises what the kernel would, so many times."""

    def __init__(self, at: Step, times: int) -> None:
        self.at, self.times = at, times

    def __call__(self, step: Step) -> None:
        """Raises at its step, as often as it shall."""
        if step is self.at and self.times:
            self.times -= 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.mark.parametrize("step", BEFORE_SWAP, ids=lambda s: s.name)
def test_a_refusal_before_the_swap_leaves_no_trace(
    bench: Bench, published: Publisher, step: Step
) -> None:
    """The generation in force is the last one, and the kernel is as it was; then it works."""
    watch, before, held = Watch(bench), contents(bench.maps, bench.pins), open_maps()
    published.reached = Refusing(step, 1)
    with pytest.raises(DataplaneError, match=f"generation {OLD.number} stays in force"):
        published.publish(NEW, 0.0)
    assert contents(bench.maps, bench.pins) == before
    assert (published.in_force, published.is_certain) == (OLD, True)
    assert open_maps() == held
    watch.assert_nothing_moved()
    assert watch.look() == watch.tables
    published.publish(NEW, 0.0)
    watch.assert_nothing_moved()
    assert published.audit(deep=True) == []


@pytest.mark.parametrize("step", AFTER_SWAP, ids=lambda s: s.name)
def test_a_refusal_after_the_swap_has_a_way_back(
    bench: Bench, published: Publisher, step: Step
) -> None:
    """What is in force is known; the last documents, and then the new ones, move nobody."""
    watch = Watch(bench)
    published.reached = Refusing(step, 1)
    with pytest.raises(DataplaneError, match="each VIP is on its old or its new table"):
        published.publish(NEW, 0.0)
    watch.assert_nothing_moved()
    found = published.in_force
    assert found.number == NEW.number
    published.publish(plan(everything(), found, NOW + 2), 0.0)
    watch.assert_nothing_moved()
    assert watch.look() == watch.tables
    assert published.in_force.digest == OLD.digest
    assert published.audit(deep=True) == []
    published.publish(plan(more(), published.in_force, NOW + 3), 0.0)
    watch.assert_nothing_moved()
    assert published.in_force.digest == NEW.digest
    assert published.audit(deep=True) == []


@pytest.mark.parametrize("step", [*BEFORE_SWAP, *AFTER_SWAP], ids=lambda s: s.name)
def test_a_refusal_that_lasts_ends_when_its_cause_does(
    bench: Bench, published: Publisher, step: Step
) -> None:
    """Even putting back fails: flows stay where they are, and the first attempt that may works."""
    watch = Watch(bench)
    published.reached = Refusing(step, 1000)
    for second in range(2, 5):
        with pytest.raises(DataplaneError):
            published.publish(plan(more(), published.in_force, NOW + second), 0.0)
        watch.assert_nothing_moved()
    published.reached = Refusing(step, 0)
    published.publish(plan(more(), published.in_force, NOW + 9), 0.0)
    watch.assert_nothing_moved()
    assert published.in_force.digest == NEW.digest
    assert published.audit(deep=True) == []
