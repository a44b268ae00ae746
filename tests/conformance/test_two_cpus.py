# SPDX-License-Identifier: Apache-2.0
"""Two CPUs that write into one pair of lines: no flow ever follows another's backend."""

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

import pytest

from support.documents.roster import VIP4, backend, desired, generations, vip
from support.packets.frames import ip4, tcp
from support.packets.kernel import BUILD, LINK, LOOPBACK, Kernel, key_of
from tidegate.dataplane.kernel import maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.model.generation import Generation
from tidegate.spec import State, process

pytestmark = pytest.mark.root

FLOWS: Final = 64
PACKETS: Final = 60_000
"""Sent by each CPU; it takes seconds."""
_FLAGS: Final = 14 + 20 + 13
"""Where a frame has the TCP flags."""
SMALL: Final = replace(BUILD, capacity=maps.Capacity(flows=32, syns=32, fragments=32))


def of_one_pair(state: State) -> Iterator[bytes]:
    """Yield packets of flows whose entries all belong into the first pair."""
    for number in range(1 << 16):
        source = str(ip_address("10.77.0.1") + number)
        frame = tcp("A", ip4(source))
        if next(state.flows.places(key_of(state, frame))) < 10:
            yield frame


def owner(generation: Generation, frame: bytes) -> bytes:
    """Return the address of the backend that the table has for a flow."""
    state = State(SMALL.settings(), {LOOPBACK: LINK})
    state.install(generation)
    return process(state, frame, LOOPBACK).frame[30:34]


def test_no_cpu_leads_a_flow_to_the_backend_of_another() -> None:
    """64 flows share ten places: each goes to its entry's backend, or to its owner.

    Every third packet ends its flow, so that others take its place all the time. The table has
    other owners than when the flows began, so an entry that is written half by one CPU and half by
    the other would show.
    """
    vips = [vip("web", VIP4, insert_limit=1_000_000_000)]
    olds = [backend(f"b{i}", state="drain") for i in range(1, 17)]
    before, after = generations(
        desired(vips, [replace(b, state="active") for b in olds], window=0),
        desired(vips, [*olds, *(backend(f"b{i}") for i in range(17, 33))], window=0),
    )
    with Kernel(SMALL) as kernel:
        state = State(SMALL.settings(), {LOOPBACK: LINK})
        state.install(before)
        source = of_one_pair(state)
        frames = [next(source) for _ in range(FLOWS)]
        allowed = [{owner(each, frame) for each in (before, after)} for frame in frames]
        kernel.install(before)
        for frame in frames:
            kernel.run(frame)
        kernel.install(after)
        cpus = sorted(kernel._cpus)[:2]
        assert len(cpus) == 2, "this needs a second CPU"
        wrong: list[str] = []
        threads = [
            threading.Thread(target=_hammer, args=(kernel.program, cpu, frames, allowed, wrong))
            for cpu in cpus
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        (counters,) = kernel.vip_counters().values()
        assert counters.packets == 2 * PACKETS + FLOWS
        assert counters.tracked > PACKETS // 10, "too few packets fought for a place"


def _hammer(
    program: int, cpu: int, frames: list[bytes], allowed: list[set[bytes]], wrong: list[str]
) -> None:
    """Send packets of all flows from one CPU; note each that went where its flow never was."""
    os.sched_setaffinity(threading.get_native_id(), {cpu})
    ends = [frame[:_FLAGS] + b"\x11" + frame[_FLAGS + 1 :] for frame in frames]
    for number in range(PACKETS):
        at = (number * (7 + 2 * cpu) + cpu) % FLOWS
        frame = ends[at] if number % 3 == 0 else frames[at]
        to = bpf.run(program, frame).frame[30:34]
        if to not in allowed[at]:
            wrong.append(f"CPU {cpu}, packet {number}: flow {at} went to {to.hex('.')}")
