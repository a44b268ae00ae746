# SPDX-License-Identifier: Apache-2.0
"""How many flows find no room in a connection table that was made for as many."""

from dataclasses import replace
from typing import Final

import pytest

from support.documents.roster import VIP4, backend, desired, generations, vip
from support.packets.frames import ip4, tcp
from support.packets.kernel import BUILD, CAPACITY, Kernel

pytestmark = pytest.mark.root

FLOWS: Final = 1 << 17


def without_room(flows: int) -> int:
    """Send two packets of each of so many flows of a VIP; return how many have no entry."""
    build = replace(BUILD, capacity=replace(CAPACITY, flows=FLOWS))
    vips = [vip("web", VIP4, insert_limit=1_000_000_000)]
    (generation,) = generations(desired(vips, [backend("b1"), backend("b2")]))
    with Kernel(build) as kernel:
        kernel.install(generation)
        frame = bytearray(tcp("A", ip4("10.64.0.0")))
        for number in range(flows):
            frame[26:30] = (0x0A400000 + number).to_bytes(4)
            for _ in range(2):
                kernel.run(bytes(frame))
        (counters,) = kernel.vip_counters().values()
        without = flows - len(kernel.entries("flows"))
    assert counters.packets == 2 * flows
    assert counters.untracked == 2 * without, "what found no room was not counted"
    return without


def test_one_flow_in_250_finds_a_full_table_without_room() -> None:
    """Each has spoken twice, so none makes room; three places of a pair are for other VIPs."""
    assert FLOWS / 1000 < without_room(FLOWS) <= FLOWS / 250


def test_one_in_ten_thousand_a_table_half_full() -> None:
    """So has a VIP in a table for twice as many."""
    assert without_room(FLOWS // 2) <= FLOWS / 2 / 10_000
