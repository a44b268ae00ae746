# SPDX-License-Identifier: Apache-2.0
"""Publishes while the kernel has no memory for a table; run as a process of its own, by a test.

The kernel charges a map to the memory control group of whoever makes it. So the process goes into a
group that is full, and the kernel's answer is ENOMEM, as on a host that has run out. The process's
own memory is taken beforehand and kept by malloc (PYTHONMALLOC=malloc), since to want a page there
would end it. Prints JSON: what was refused, and what was in force then and afterwards.
"""

import ctypes
import json
import os
import secrets
import sys
from pathlib import Path

from support.crash.bench import Bench, contents
from support.crash.exhaustion import NEW, NOW, OLD, Watch, more
from tidegate.errors import DataplaneError
from tidegate.planner import plan

ROOT = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MEBIBYTE = 1 << 20


class Group:
    """A memory control group of either version, removed at the end."""

    def __init__(self) -> None:
        v1 = (ROOT / "memory" / "memory.limit_in_bytes").exists()
        base = ROOT / "memory" if v1 else ROOT
        if not v1 and "memory" not in (base / "cgroup.subtree_control").read_text().split():
            (base / "cgroup.subtree_control").write_text("+memory")
        self._base = base
        self._folder = base / f"tidegate-test-{secrets.token_hex(4)}"
        self._folder.mkdir()
        self._limit = "memory.limit_in_bytes" if v1 else "memory.max"

    def limit(self, size: int) -> None:
        """Return bytes that the group may have."""
        (self._folder / self._limit).write_text(str(size))

    def enter(self) -> None:
        """Move this process into it. Memory that it already has stays charged where it was."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def leave(self) -> None:
        """Move this process out, and remove the group."""
        (self._base / "cgroup.procs").write_text(str(os.getpid()))
        self._folder.rmdir()


def take_memory() -> None:
    """Have malloc keep memory that this process need not ask the kernel for again."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
    blocks = [b"\1" * MEBIBYTE for _ in range(64)]
    del blocks


def rehearse() -> None:
    """Publish the same on other maps first: code that runs for the first time takes memory."""
    bench = Bench()
    publisher = bench.start(OLD)
    try:
        publisher.publish(NEW, 0.0)
    finally:
        publisher.close()
        bench.close()


def main() -> int:
    """Run it."""
    rehearse()
    bench = Bench()
    publisher = bench.start(OLD)
    group = Group()
    try:
        watch = Watch(bench)
        before = contents(bench.maps, bench.pins)
        take_memory()
        group.limit(MEBIBYTE // 4)
        group.enter()
        try:
            publisher.publish(NEW, 0.0)
            refused = ""
        except DataplaneError as error:
            refused = str(error)
        group.limit(1 << 30)
        in_force = publisher.in_force is OLD and contents(bench.maps, bench.pins) == before
        watch.assert_nothing_moved()
        publisher.publish(plan(more(), publisher.in_force, NOW + 3), 0.0)
        watch.assert_nothing_moved()
        audit = [str(each) for each in publisher.audit(deep=True)]
        done = publisher.in_force.digest == NEW.digest
        found = {"refused": refused, "kept": in_force, "done": done, "audit": audit}
        json.dump(found, sys.stdout)
    finally:
        group.leave()
        publisher.close()
        bench.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
