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


def test_one_flow_in_ten_thousand_at_most_finds_no_room() -> None:
    """Each has spoken twice, so none makes room for another."""
    build = replace(BUILD, capacity=replace(CAPACITY, flows=FLOWS))
    vips = [vip("web", VIP4, insert_limit=1_000_000_000)]
    (generation,) = generations(desired(vips, [backend("b1"), backend("b2")]))
    with Kernel(build) as kernel:
        kernel.install(generation)
        frame = bytearray(tcp("A", ip4("10.64.0.0")))
        for number in range(FLOWS):
            frame[26:30] = (0x0A400000 + number).to_bytes(4)
            for _ in range(2):
                kernel.run(bytes(frame))
        (counters,) = kernel.vip_counters().values()
        without = FLOWS - len(kernel.entries("flows"))
    assert counters.packets == 2 * FLOWS
    assert counters.untracked == 2 * without, "what found no room was not counted"
    assert without <= FLOWS / 10_000
