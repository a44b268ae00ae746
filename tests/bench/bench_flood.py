# SPDX-License-Identifier: Apache-2.0
"""A SYN flood through the loaded program: 2,400,000 SYNs of 1,200,000 clients, by test-run.

A thousand flows are established first, and looked at after each tenth of the flood; the roster
changes twice during it. Prints the rate, and fails if a flow moved or an entry was lost. The rate
is that of single test-runs from Python, most of which is not the program's: what a SYN costs the
program alone is in bench_dataplane.py.
"""

import random
import time

from support.documents.roster import backend, desired, generations, vip
from support.packets.frames import ip4, tcp
from support.packets.kernel import CAPACITY, Kernel
from tidegate.model.decision import Decision
from tidegate.model.documents import Tracking

SYNS, SOURCES, PARTS = 2_400_000, 1_200_000, 10
ESTABLISHED = range(40000, 41000)
CHANGES = {3: 1, 7: 2}
"""Generation that comes into force before a part of the flood."""


def owners(kernel: Kernel) -> list[bytes]:
    """Outer destination of each established flow's next packet."""
    return [kernel.run(tcp("A", sport=s))[1][30:34] for s in ESTABLISHED]


def flood(tracking: Tracking) -> None:
    """Flood a new program, and print what came of it."""
    chance = random.Random(1)  # noqa: S311 - reproducible, not secret
    vips = [vip("web", "10.99.0.1", tracking=tracking)]
    steps = generations(
        *(desired(vips, [backend(f"b{i}") for i in range(1, n)]) for n in (5, 7, 10))
    )
    frame = bytearray(tcp("S", ip4("10.64.0.0")))
    took, moved, number = 0.0, 0, 0
    with Kernel() as kernel:
        kernel.install(steps[0])
        before = owners(kernel)
        for part in range(PARTS):
            if part in CHANGES:
                kernel.install(steps[CHANGES[part]])
            began = time.perf_counter()
            for _ in range(SYNS // PARTS):
                frame[26:30] = (0x0A400000 + number % SOURCES).to_bytes(4)
                frame[34:36] = chance.randrange(1024, 65536).to_bytes(2)
                kernel.run(bytes(frame))
                number += 1
            took += time.perf_counter() - began
            moved += sum(a != b for a, b in zip(owners(kernel), before, strict=True))
        (counters,) = kernel.vip_counters().values()
        entries, syns = len(kernel.flows("flows")), len(kernel.flows("syns"))
    print(
        f"{tracking}: {counters.decisions[Decision.SYN]:,} SYNs of {SOURCES:,} clients in "
        f"{took:.1f} s, {SYNS / took:,.0f}/s; {moved} of {len(ESTABLISHED):,} established flows "
        f"moved in {len(CHANGES)} changes; connection table {entries:,} entries, SYN table "
        f"{syns:,} of {CAPACITY.syns:,}"
    )
    if moved or counters.decisions[Decision.SYN] != SYNS or counters.tracked != entries:
        raise SystemExit(1)


if __name__ == "__main__":
    flood("full")
    flood("transition")
