# SPDX-License-Identifier: Apache-2.0
"""What the kernel refuses is a refusal: the last generation stays in force, whole, until it works.

Real refusals that are provoked here: maps that are full (networks, routes, server ids, and both
maps of the ledger), VIPs whose places are all taken, no memory for a new table (ENOMEM), and no
descriptor for one (EMFILE). The array of backends cannot be full, since it has an element for each
id. Elsewhere an OSError is raised at each step in turn, as the kernel would for want of memory,
once and for good.
"""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from support.crash.bench import SMALL, Bench, contents, everything, no_descriptors, open_maps
from support.crash.exhaustion import NEW, NOW, OLD, Watch, more
from support.documents.roster import vip
from support.packets.vip_map import address_at
from tidegate.dataplane.kernel import maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.dataplane.publish.steps import Step
from tidegate.dataplane.publish.vip_places import Places
from tidegate.errors import DataplaneError
from tidegate.planner import plan

pytestmark = pytest.mark.root


BEFORE_SWAP = [*Step][: [*Step].index(Step.TABLES_SWAPPED)]
NOT_HERE = (
    *(Step.SLOT_CLEARED, Step.POOL_UNPINNED),  # no pool goes in this change
    *(Step.EMPTIED_TAKEN_OUT, Step.EMPTIED_SWAPPED),  # and none is emptied
)
AFTER_SWAP = [
    step
    for step in [*Step][[*Step].index(Step.TABLES_SWAPPED) : [*Step].index(Step.TABLE_UNPINNED)]
    if step not in NOT_HERE
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


@pytest.mark.parametrize("name", ["prefixes", "routes", "quic_servers", "ledger", "wide_ledger"])
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


def test_vips_that_collide_are_refused(bench: Bench, published: Publisher) -> None:
    """Three for two places: a VIP is named and nothing is written; with one less it works."""
    three = [vip(f"x{n}", str(address_at(Places(11, 12), 80, n))) for n in range(3)]
    watch, before = Watch(bench), contents(bench.maps, bench.pins)
    ledger = maps.read_all("wide_ledger", bench.maps["wide_ledger"])
    for count in (3, 2):
        roster = everything()
        wanted = replace(roster, vips=roster.vips | {v.name: v for v in three[:count]})
        generation = plan(wanted, published.in_force, NOW + 4 - count)
        if count == 3:
            with pytest.raises(DataplaneError, match=r"no room for VIP .* port 80 protocol 6"):
                published.publish(generation, 0.0)
            assert contents(bench.maps, bench.pins) == before
            assert maps.read_all("wide_ledger", bench.maps["wide_ledger"]) == ledger
            assert (published.in_force, published.is_certain) == (OLD, True)
    published.publish(generation, 0.0)
    watch.assert_nothing_moved()
    assert published.audit(deep=True) == []


def test_no_memory_for_a_table_is_a_refusal() -> None:
    """In a memory control group that is full, nothing changes; with memory, it works."""
    folder = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "support.crash.short_of_memory"],
        env={**os.environ, "PYTHONMALLOC": "malloc", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "Cannot allocate memory" in found.pop("refused")
    assert found == {"kept": True, "done": True, "audit": []}


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
        """Raise at its step, as often as it shall."""
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
