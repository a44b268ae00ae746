# SPDX-License-Identifier: Apache-2.0
"""Why going back is planned anew, and is no swap to the old tables: flows that would move, do not.

Every backend serves all the time; so no flow has a reason to move.
"""

import os
from collections.abc import Callable

import pytest

from support.documents.roster import backend, desired, vip
from support.packets.frames import tcp
from support.packets.kernel import Kernel
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.publish import tables
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Desired
from tidegate.planner import plan

pytestmark = pytest.mark.root

OLD, NEW = range(40000, 40300), range(50000, 50300)
"""Source ports of flows that are born before the change, and after it."""

GoBack = Callable[[Kernel, Generation, Generation], None]


def roster(tracking: str, *names: str, drained: str = "") -> Desired:
    """Return a roster in which all serve; one that drains takes no new flows."""
    servers = [backend(n, state="drain" if n == drained else "active") for n in names]
    return desired([vip("web", "10.99.0.1", tracking=tracking)], servers)


CHANGES = {
    "a backend comes": (("b1", "b2", "b3"), ("b1", "b2", "b3", "b4"), ""),
    "a backend drains": (("b1", "b2", "b3"), ("b1", "b2", "b3"), "b2"),
}


def raw_swap(kernel: Kernel, before: Generation, _: Generation) -> None:
    """Put the old table in the outer map's slot, and nothing else, as if still loaded."""
    placed = before.pools["web"]
    fd = tables.fill(placed.table)
    bpf.map_update(
        kernel.maps["outer"], placed.identity.id.to_bytes(4, "little"), fd.to_bytes(4, "little")
    )
    os.close(fd)


def planned(kernel: Kernel, before: Generation, after: Generation) -> None:
    """Plan as `tidegate rollback` does: the old documents, from what is in force."""
    servers = {key: placed.backend for key, placed in before.backends.items()}
    wanted = Desired(
        1,
        {n: p.vip for n, p in before.vips.items()},
        {n: p.pool for n, p in before.pools.items()},
        servers,
    )
    again = plan(wanted, after, 1020)
    assert (again.number, again.digest) == (after.number + 1, before.digest)
    kernel.install(again)


def moved(change: str, tracking: str, go_back: GoBack) -> tuple[int, int]:
    """Count old and new flows that another backend gets after going back."""
    names, later, drained = CHANGES[change]
    with Kernel() as kernel:
        before = plan(roster(tracking, *names), NOTHING, 1000)
        kernel.install(before)
        for sport in OLD:
            kernel.run(tcp("S", sport=sport))
            kernel.run(tcp("A", sport=sport))
        after = plan(roster(tracking, *later, drained=drained), before, 1010)
        kernel.install(after)
        for sport in NEW:
            kernel.run(tcp("S", sport=sport))
            kernel.run(tcp("A", sport=sport))
        owners = {s: destination(kernel, s) for s in (*OLD, *NEW)}
        go_back(kernel, before, after)
        lost = [s for s, owner in owners.items() if destination(kernel, s) != owner]
        return sum(s in OLD for s in lost), sum(s in NEW for s in lost)


def destination(kernel: Kernel, sport: int) -> bytes:
    """Return the outer destination of a flow's next packet: each backend has its own."""
    return kernel.run(tcp("A", sport=sport))[1][30:34]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("tracking", ["full", "transition"])
def test_a_planned_rollback_moves_no_flow(change: str, tracking: str) -> None:
    """Neither those from before the change nor those that were born after it."""
    assert moved(change, tracking, planned) == (0, 0)


@pytest.mark.parametrize("change", CHANGES)
def test_the_old_table_would_move_flows(change: str) -> None:
    """It has no mark on the slots that the newer one had changed, where new flows are tracked."""
    old, new = moved(change, "transition", raw_swap)
    assert old == 0
    assert new > 0
