# SPDX-License-Identifier: Apache-2.0
"""What two CPUs share: limits hold in sum, and no flow that goes on is taken for an idle one."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest

from support.documents.roster import VIP4, backend, desired, generations, vip
from support.packets.frames import ip4, tcp, udp
from support.packets.kernel import Kernel
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.model.decision import Decision, Reason
from tidegate.model.values import SynLimit

pytestmark = pytest.mark.root

RATE: Final = 1000
SECONDS: Final = 3.0
"""For which each CPU sends as fast as it can."""


def on_two_cpus(kernel: Kernel, send: Callable[[int], None]) -> float:
    """Have two CPUs at it at a time; return how long it took, s."""
    cpus = sorted(kernel._cpus)[:2]
    assert len(cpus) == 2, "this needs a second CPU"
    barrier = threading.Barrier(2)

    def run(cpu: int) -> None:
        os.sched_setaffinity(threading.get_native_id(), {cpu})
        barrier.wait()
        send(cpu)

    threads = [threading.Thread(target=run, args=(cpu,)) for cpu in cpus]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - began


def test_the_limit_on_syns_holds_for_all_cpus() -> None:
    """Two CPUs send a prefix's SYNs: its rate passes, and one second's worth, and two at most."""
    wanted = vip("web", VIP4, syn_limit=SynLimit(RATE, 24, 56))
    frames = [tcp("S", ip4(), sport=port) for port in range(20_000, 20_256)]
    with Kernel() as kernel:
        kernel.install(generations(desired([wanted], [backend("b1")]))[-1])
        until = time.monotonic() + SECONDS

        def send(_: int) -> None:
            number = 0
            while time.monotonic() < until:
                bpf.run(kernel.program, frames[number % len(frames)])
                number += 1

        seconds = on_two_cpus(kernel, send)
        (counters,) = kernel.vip_counters().values()
    assert counters.drops[Reason.SYN_LIMIT] > RATE, "too few SYNs to be limited"
    assert RATE * (SECONDS - 0.5) < counters.packets <= RATE * (seconds + 1) + 2


def test_a_flow_on_two_cpus_is_never_idle() -> None:
    """Its owner has changed; whichever CPU's clock is behind, every datagram follows the entry."""
    wanted = [vip("dns", VIP4, 53, "udp", udp_idle_timeout=5)]
    olds = [backend("b1", state="drain")]
    before, after = generations(
        desired(wanted, [replace(olds[0], state="active")], window=0),
        desired(wanted, [*olds, backend("b2")], window=0),
    )
    frame = udp()
    with Kernel() as kernel:
        kernel.install(before)
        kernel.run(frame)
        kernel.install(after)
        until = time.monotonic() + 10  # ticks, at whose beginning two clocks may differ

        def send(_: int) -> None:
            while time.monotonic() < until:
                bpf.run(kernel.program, frame)

        on_two_cpus(kernel, send)
        (counters,) = kernel.vip_counters().values()
    assert counters.decisions[Decision.TRACKED] == counters.packets - 1
