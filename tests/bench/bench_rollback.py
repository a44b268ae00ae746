# SPDX-License-Identifier: Apache-2.0
"""What going back costs: planned anew, as `tidegate rollback` does, and as a raw swap of tables.

200 VIPs, 40 pools of 50 backends, on the real maps. One pool or all of them have lost a backend in
the generation in force. And what the journal costs: the loop's part of a line, and the thread's,
with the disk.
"""

import os
import tempfile
import time
from pathlib import Path
from statistics import median

from support.documents.roster import backend, desired, vip
from support.packets.kernel import Kernel
from tidegate.agent.journal import line_format
from tidegate.agent.journal.files import Appender
from tidegate.agent.journal.limits import Limits
from tidegate.agent.journal.writer import Published, Writer
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.publish import ledger, tables
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Desired
from tidegate.planner import plan
from tidegate.planner.diff import difference

POOLS, BACKENDS, VIPS, ROUNDS = 40, 50, 200, 9


def wanted(without: int) -> Desired:
    """Return all backends, but for one in each of so many pools."""
    servers = [
        backend(f"b{n}", f"10.{1 + pool}.0.{n + 1}", pool=f"p{pool}")
        for pool in range(POOLS)
        for n in range(BACKENDS)
        if n or pool >= without
    ]
    vips = [vip(f"v{n}", f"10.99.0.{n + 1}", pool=f"p{n % POOLS}") for n in range(VIPS)]
    return desired(vips, servers)


def planned(kernel: Kernel, full: Desired, after: Generation) -> tuple[float, float]:
    """Seconds of the plan, and until all is in the kernel."""
    began = time.perf_counter()
    again = plan(full, after, 1020)
    done = time.perf_counter()
    kernel.publisher.publish(again, 0.0)
    return done - began, time.perf_counter() - done


def raw(kernel: Kernel, before: Generation, changed: int) -> float:
    """Seconds of the swap to tables that are still loaded."""
    placed = [before.pools[f"p{n}"] for n in range(changed)]
    fds = [tables.fill(each.table) for each in placed]
    keys = b"".join(each.identity.id.to_bytes(4, "little") for each in placed)
    values = b"".join(fd.to_bytes(4, "little") for fd in fds)
    began = time.perf_counter()
    bpf.map_update_batch(kernel.maps["outer"], keys, values, changed)
    took = time.perf_counter() - began
    for fd in fds:
        os.close(fd)
    return took


def rollback(changed: int) -> None:
    """Print both ways back."""
    full, fewer = wanted(0), wanted(changed)
    plans, publishes, swaps = [], [], []
    for _ in range(ROUNDS):
        with Kernel() as kernel:
            before = plan(full, NOTHING, 1000)
            kernel.install(before)
            after = plan(fewer, before, 1010)
            kernel.install(after)
            swaps.append(raw(kernel, before, changed))
            took = planned(kernel, full, after)
            plans.append(took[0])
            publishes.append(took[1])
    print(
        f"back over {changed} of {POOLS} tables: planned {median(plans) * 1e3:.1f} ms, then "
        f"published {median(publishes) * 1e3:.1f} ms; raw swap {median(swaps) * 1e3:.1f} ms "
        f"(medians of {ROUNDS})"
    )


def journal() -> None:
    """Print what a line costs the loop, its making, and the disk."""
    before = plan(wanted(0), NOTHING, 1000)
    after = plan(wanted(1), before, 1010)
    origin = line_format.Origin(
        "", 1010, line_format.Cause("time"), line_format.summary(difference(before, after))
    )
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        writer = Writer(Path(folder), Limits(1000, 64 << 20), before, lambda: None)
        began = time.perf_counter()
        writer.write(Published(after, origin))
        loop = time.perf_counter() - began
        records = ledger.records(before)
        began = time.perf_counter()
        text = line_format.encode(
            line_format.generation_line(after, ledger.following(after, before, records), origin)
        )
        made = time.perf_counter() - began
        base = len(line_format.encode(line_format.base_line(before, "")))
        appender = Appender.create(Path(folder) / "line", b"")
        times = []
        for _ in range(50):
            began = time.perf_counter()
            appender.append(text)
            times.append(time.perf_counter() - began)
        appender.close()
        writer.start([])
        writer.close()
    print(
        f"journal: {loop * 1e6:.0f} µs for the loop; its thread makes a line in {made * 1e3:.1f} "
        f"ms ({len(text)} bytes; a file begins with {base:,}) and has it on disk in "
        f"{median(times) * 1e3:.1f} ms"
    )


if __name__ == "__main__":
    rollback(1)
    rollback(POOLS)
    journal()
