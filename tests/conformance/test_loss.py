# SPDX-License-Identifier: Apache-2.0
"""What can be lost: the whole connection table in the middle of a change, and a flood of SYNs."""

import random
import time

import pytest

from support.documents.roster import backend, desired, generations, vip
from support.packets.both import Both
from support.packets.frames import ip4, tcp
from support.packets.kernel import Kernel
from tidegate.model.decision import Decision
from tidegate.model.document_types import Tracking
from tidegate.model.values import Desired
from tidegate.spec import Verdict

pytestmark = pytest.mark.root

TRACKINGS = pytest.mark.parametrize("tracking", ["full", "transition"])
OLD, YOUNG = range(40000, 40100), range(50000, 50100)


def wanted(tracking: Tracking, numbers: list[int]) -> Desired:
    """Return a pool of these backends; those that leave drain."""
    vips = [vip("web", "10.99.0.1", tracking=tracking)]
    return desired(vips, [backend(f"b{i}") for i in numbers], delay=3600, window=3600)


@TRACKINGS
def test_only_flows_of_the_window_move_when_entries_are_lost(
    both: Both, tracking: Tracking
) -> None:
    """On specification and kernel: agent reinstalled, or another host took over, in the middle.

    Flows from before the window stay, through changes before and after the loss. Those that were
    born in it move where their slot's owner of before is another one: they are counted.
    """
    both.want(wanted(tracking, [1, 2, 3]))
    old = {s: both.send(tcp(f, sport=s)).backend for s in OLD for f in ("S", "A")}
    both.want(wanted(tracking, [1, 2, 3, 4, 5]))
    young = {s: both.send(tcp(f, sport=s)).backend for s in YOUNG for f in ("S", "A")}
    both.want(wanted(tracking, [2, 3, 4, 5, 6]))
    assert {s: both.send(tcp("A", sport=s)).backend for s in OLD} == old
    assert {s: both.send(tcp("A", sport=s)).backend for s in YOUNG} == young

    both.forget()
    found = {s: both.send(tcp("A", sport=s)) for s in YOUNG}
    moved = [s for s in YOUNG if found[s].backend != young[s]]
    both.want(wanted(tracking, [3, 4, 5, 6, 7]))
    assert {s: both.send(tcp("A", sport=s)).backend for s in OLD} == old

    assert 0 < len(moved) < len(YOUNG)
    assert {found[s].decision for s in moved} == {Decision.FALLBACK}
    first = {both.id_of(f"b{i}") for i in (1, 2, 3)}
    assert {found[s].backend for s in moved} <= first
    for s in YOUNG:  # and where they are now, they stay
        assert both.send(tcp("A", sport=s)).backend == found[s].backend


def flood(kernel: Kernel, chance: random.Random, syns: int, sources: int) -> None:
    """Send SYNs of random ports from each of so many clients in turn."""
    frame = bytearray(tcp("S", ip4("10.64.0.0")))
    for number in range(syns):
        frame[26:30] = (0x0A400000 + number % sources).to_bytes(4)
        frame[34:36] = chance.randrange(1024, 65536).to_bytes(2)
        kernel.run(bytes(frame))


def owners(kernel: Kernel) -> dict[int, bytes]:
    """Return where each old flow's next packet goes: the outer destination."""
    return {s: kernel.run(tcp("A", sport=s))[1][30:34] for s in OLD}


@TRACKINGS
def test_a_flood_moves_no_established_flow(tracking: Tracking) -> None:
    """200,000 SYNs of 100,000 clients, with changes of the roster in between.

    None writes an entry of the connection table, and the SYN table keeps to its size.
    """
    chance = random.Random(5)  # noqa: S311 - reproducible, not secret
    steps = generations(*(wanted(tracking, list(range(1, n))) for n in (4, 6, 9)))
    with Kernel() as kernel:
        kernel.install(steps[0])
        before = owners(kernel)
        for step in steps[1:]:
            kernel.install(step)
            flood(kernel, chance, 50_000, 100_000)
            assert owners(kernel) == before
            entries = kernel.entries("flows")
            flood(kernel, chance, 50_000, 100_000)
            assert kernel.entries("flows") == entries
            assert owners(kernel) == before
        (counters,) = kernel.vip_counters().values()
        assert counters.decisions[Decision.SYN] == 200_000
        assert len(kernel.entries("syns")) > 1000
        assert counters.tracked == len(entries) <= len(OLD)


def test_a_flood_of_acks_evicts_no_more_than_the_limit_allows() -> None:
    """Packets that pretend to be of established flows: beyond the limit they stay untracked."""
    vips = [vip("web", "10.99.0.1", insert_limit=100)]
    (generation,) = generations(desired(vips, [backend("b1"), backend("b2")]))
    with Kernel() as kernel:
        kernel.install(generation)
        frame = bytearray(tcp("A"))
        began = time.monotonic()
        for number in range(20_000):
            frame[26:30] = (0x0A400000 + number).to_bytes(4)
            assert kernel.run(bytes(frame))[0] is Verdict.TX
        took = time.monotonic() - began
        (counters,) = kernel.vip_counters().values()
        assert counters.tracked + counters.untracked == 20_000
        assert 100 <= counters.tracked <= 101 + 100 * took
        assert len(kernel.entries("flows")) == counters.tracked
