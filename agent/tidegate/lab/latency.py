# SPDX-License-Identifier: Apache-2.0
"""How long a change takes from `etcdctl put` to the first packet that is treated by it.

A probe on a client sends a new flow every millisecond to a VIP whose pool has one backend for all
but one in 65,536 flows. One put drains that backend, so from the swap of the table on the flows go
to the other one. The time of the first flow that did is exact to the probe's millisecond. It is
counted from two moments: from when etcdctl was started, which includes the start of a process, its
connection and the write, and from when etcdctl returned, which is after the write is committed.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tidegate.errors import LabError
from tidegate.lab.control import StatusWatch
from tidegate.lab.plan import ECHO_PORT
from tidegate.lab.rack import Lab
from tidegate.lab.roster import POOL_ECHO, Roster

PAUSE: Final = 0.3
"""Seconds between two changes."""


class Delay(NamedTuple):
    """Delays of one change, in seconds.

    Attributes:
        from_start: start of etcdctl to the first packet on the new table.
        from_return: the same from etcdctl's return; negative if the packet came first.
        to_status: start of etcdctl until `etcdctl watch` showed that the host applied it.
    """

    from_start: float
    from_return: float
    to_status: float


@dataclass
class _Switches:
    """The probe's lines, read in a thread."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def read(self, child: "subprocess.Popen[str]") -> None:
        assert child.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        for line in child.stdout:
            with self.changed:
                self.lines.append(json.loads(line))
                self.changed.notify_all()

    def wait(self, backend: str, after: float) -> float:
        """Return when the first flow that reached a backend after a moment was sent."""
        deadline = time.monotonic() + 10
        with self.changed:
            while True:
                for line in self.lines:
                    if line.get("new") == backend and line["first_new"] >= after:
                        return float(line["first_new"])
                if not self.changed.wait(deadline - time.monotonic()):
                    raise LabError(
                        f"no new flow reached {backend} within 10 s; the probe saw {self.lines}"
                    )


@contextmanager
def _probing(lab: Lab) -> Iterator[_Switches]:
    child = lab.client(1).popen(
        [sys.executable, "-m", "tidegate.lab.probe", str(lab.vip4()), str(ECHO_PORT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    switches = _Switches()
    thread = threading.Thread(target=switches.read, args=(child,), daemon=True)
    thread.start()
    try:
        yield switches
    finally:
        assert child.stdin is not None  # noqa: S101
        assert child.stdout is not None  # noqa: S101
        child.stdin.close()  # which ends it
        thread.join()
        child.stdout.close()
        child.wait()


def measure(lab: Lab, roster: Roster, status: StatusWatch, times: int) -> list[Delay]:
    """Drain and restore the echo pool's first backend in turn, and measure each change.

    Raises:
        LabError: a change does not become visible.
    """
    delays: list[Delay] = []
    with _probing(lab) as switches:
        switches.wait("b1", 0)
        for number in range(times):
            drain = number % 2 == 0
            written = roster.change(POOL_ECHO, "b1", state="drain" if drain else "active")
            seen = status.wait_applied(written.revision)
            first = switches.wait("b2" if drain else "b1", written.began)
            delays.append(
                Delay(first - written.began, first - written.ended, seen.at - written.began)
            )
            # Each change by itself: a host writes its status no more often than this.
            time.sleep(PAUSE)
    return delays


def spread(values: list[float]) -> str:
    """Return the median, the least and the most, in milliseconds."""
    low, middle, high = min(values) * 1e3, statistics.median(values) * 1e3, max(values) * 1e3
    return f"median {middle:.1f} ms ({low:.1f} to {high:.1f}, n = {len(values)})"
