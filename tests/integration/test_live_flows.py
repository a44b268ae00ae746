# SPDX-License-Identifier: Apache-2.0
"""Live flows of real packets: counted as the metrics have them, and tidied as the agent does it."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from support.crash.bench import FLOWS, SMALL, Bench, Packets, everything
from support.packets.kernel import ticks
from tidegate.dataplane import sweep
from tidegate.dataplane.inspect.counter_reader import CounterReader
from tidegate.dataplane.kernel.lines import MappedLines
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.dataplane.sweep import Sweeper
from tidegate.errors import DataplaneError
from tidegate.model.generation import NOTHING, Generation
from tidegate.planner import plan
from tidegate.spec.lines import ENDING, Entry

pytestmark = pytest.mark.root

WANTED = everything()
FIRST = plan(WANTED, NOTHING, 1000)
FULL = ("web6", "api", "dns", "net")
"""VIPs whose flows all have entries."""


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    built = Bench()
    yield built
    built.close()


@pytest.fixture
def publisher(bench: Bench) -> Iterator[Publisher]:
    """Give what the first generation is published with."""
    with closing(bench.start(FIRST)) as found:
        yield found


@contextmanager
def reading(bench: Bench, publisher: Publisher) -> Iterator[CounterReader]:
    """Give a reader of the bench's maps."""
    with closing(CounterReader(bench.maps, publisher, SMALL, bench.pins)) as reader:
        yield reader


@contextmanager
def sweeping(bench: Bench, publisher: Publisher) -> Iterator[Sweeper]:
    """Give what tidies the bench's table."""
    pairs = SMALL.pairs["flows"]
    with closing(Sweeper(bench.maps["flows"], pairs, publisher)) as sweeper:
        yield sweeper


def established(bench: Bench, *names: str) -> dict[str, dict[tuple[str, int], str | None]]:
    """Open flows to VIPs; return where they go, by VIP."""
    packets = Packets(bench.program, FIRST)
    return {name: packets.establish({name: WANTED.vips[name]}) for name in names}


def entries(bench: Bench) -> list[Entry]:
    """Return the connection table."""
    with MappedLines(bench.maps["flows"], SMALL.pairs["flows"]) as table:
        return list(table.entries().values())


def age(bench: Bench, seconds: int) -> None:
    """Make every entry older by at least so many seconds."""
    with MappedLines(bench.maps["flows"], SMALL.pairs["flows"], writable=True) as table:
        states = table.lines["states"]
        older = (states >> 16) - (ticks(seconds) + 2) & 0xFFFF
        table.lines["states"] = older << 16 | states & 0xFFFF


def counted(reader: CounterReader, generation: Generation) -> dict[str, int]:
    """Return the live flows of each VIP, and check that backends have as many."""
    census = reader.census()
    assert census.vips.sum() == census.backends.sum()
    ids = {placed.identity.id: name for name, placed in generation.vips.items()}
    return {ids[int(i)]: int(census.vips[i]) for i in np.flatnonzero(census.vips)}


def test_a_census_counts_what_packets_follow(bench: Bench, publisher: Publisher) -> None:
    """By VIP and backend; who has said FIN is an entry and no flow; after closing there is none."""
    flows = established(bench, *FULL)
    owners = [owner for name in FULL for owner in flows[name].values()]
    with reading(bench, publisher) as reader:
        assert counted(reader, FIRST) == dict.fromkeys(FULL, FLOWS)
        backends = reader.census().backends
        for key, placed in FIRST.backends.items():
            assert backends[placed.identity.id] == owners.count(key.name)
        packets = Packets(bench.program, FIRST)
        for i in range(10):
            packets.send(WANTED.vips["web6"], 20_000 + i, "FA")
        assert counted(reader, FIRST) == dict.fromkeys(FULL, FLOWS) | {"web6": FLOWS - 10}
        census = reader.census()
        assert census.entries["flows"] == len(entries(bench)) == len(FULL) * FLOWS
        assert reader.limits["flows"] == SMALL.flows
    with pytest.raises(DataplaneError, match="closed"):
        reader.census()


def test_idle_flows_make_room_and_may_speak_again(bench: Bench, publisher: Publisher) -> None:
    """A sweep ends what was silent for too long; of TCP a packet revives it where it was."""
    before = established(bench, "web6", "dns")
    with reading(bench, publisher) as reader, sweeping(bench, publisher) as sweeper:
        assert sweeper.sweep() == (0, 0)
        age(bench, WANTED.vips["web6"].tcp_idle_timeout)
        assert counted(reader, FIRST) == {}
        assert sweeper.sweep() == (FLOWS, FLOWS)
        assert {each.flags & ENDING for each in entries(bench)} == {ENDING}
        again = Packets(bench.program, FIRST).established({"web6": WANTED.vips["web6"]})
        assert again == before["web6"]
        assert counted(reader, FIRST) == {"web6": FLOWS}
        assert sweeper.sweep() == (0, 0)


def test_a_gone_vip_leaves_no_entries(bench: Bench, publisher: Publisher) -> None:
    """Nor does a backend; while the kernel may hold more than is known, nothing is taken away."""
    flows = established(bench, *FULL)
    vips = {name: each for name, each in WANTED.vips.items() if name != "web6"}
    gone = next(iter(flows["dns"].values()))
    servers = {key: each for key, each in WANTED.backends.items() if key.name != gone}
    wanted = replace(WANTED, vips=vips, backends=servers)
    after = plan(wanted, plan(wanted, FIRST, 2000), 100_000)  # when its flows have had their time
    assert gone not in {key.name for key in after.backends}
    with sweeping(bench, publisher) as sweeper:
        publisher.publish(after, time.monotonic())
        publisher.is_certain = False
        assert sweeper.sweep() == (0, 0)
        publisher.is_certain = True
        swept = sweeper.sweep()
    left = [owner for name in FULL if name != "web6" for owner in flows[name].values()]
    left = [owner for owner in left if owner != gone]
    assert swept == (0, len(FULL) * FLOWS - len(left))
    assert len(entries(bench)) == len(left)


def test_a_large_table_is_tidied_in_parts(
    bench: Bench, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call looks at so many lines, and the last one at the rest."""
    monkeypatch.setattr(sweep, "LINES", 1000)
    established(bench, "web6")
    age(bench, WANTED.vips["web6"].tcp_idle_timeout)
    with sweeping(bench, publisher) as sweeper:
        found = [sweeper.sweep()]
        while sweeper.is_under_way:
            found.append(sweeper.sweep())
    assert len(found) == -(-2 * SMALL.pairs["flows"] // 1000)
    assert sum(each.ended for each in found) == FLOWS


def test_a_vip_that_moved_leaves_no_entries(bench: Bench, publisher: Publisher) -> None:
    """It has another id; what spoke before the change is nobody's, what speaks after it stays."""
    established(bench, "web6", "dns")
    age(bench, 30)
    moved = replace(WANTED.vips["web6"], port=81)
    after = plan(replace(WANTED, vips=WANTED.vips | {"web6": moved}), FIRST, 2000)
    with reading(bench, publisher) as reader, sweeping(bench, publisher) as sweeper:
        publisher.publish(after, time.monotonic())
        sweeper.follow()
        packets = Packets(bench.program, after)
        packets.establish({"web6": moved})
        assert counted(reader, after) == {"web6": FLOWS, "dns": FLOWS}
        assert sweeper.sweep() == (0, FLOWS)
        assert counted(reader, after) == {"web6": FLOWS, "dns": FLOWS}
        assert sweeper.sweep() == (0, 0)
