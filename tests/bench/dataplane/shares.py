# SPDX-License-Identifier: Apache-2.0
"""What one source prefix, or one VIP, may not take from others: a part of `./dev bench flood`."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from bench.dataplane.method import run
from bench.dataplane.programs import Kind, Knobs, load_wrapper
from bench.dataplane.rows import NO_LIMIT
from support.documents.roster import VIP4, backend, desired, vip
from support.packets.frames import ip4, tcp, udp
from support.packets.kernel import BUILD, Kernel
from tidegate.dataplane.kernel import maps
from tidegate.dataplane.kernel.jiffies import clock
from tidegate.model.document_types import Tracking
from tidegate.model.generation import NOTHING
from tidegate.model.values import Desired, SynLimit
from tidegate.planner import plan
from tidegate.spec import Verdict

BIG: Final = replace(BUILD, capacity=maps.Capacity())
FLOWS: Final = 1000
SYNS: Final = 200_000
_SLICE: Final = 1 << 13
"""Flows that are sent once, and then once more."""
_PARTS: Final = 10
_SOURCE, _PORT = slice(26, 30), slice(34, 36)


def _knobs(frame: bytes, port: int = 80) -> Knobs:
    return Knobs(first=1 << 21, flows=1 << 37, vip=int.from_bytes(frame[30:34]), port=port)


def _change(kernel: Kernel, wanted: Desired, after: int) -> None:
    """Put what is wanted in force, some seconds after the last time."""
    last = kernel.publisher.in_force
    kernel.install(plan(wanted, last, 1000 + 1000 * last.number + after))


def _roster(count: int, states: str = "active", tracking: Tracking = "full") -> Desired:
    """Return so many backends; all but the first one have this state."""
    options = {"tracking": tracking, "insert_limit": NO_LIMIT}
    vips = [
        vip("web", VIP4, **options),
        vip("dns", VIP4, 53, "udp", **options),
        vip("log", VIP4, 514, "udp", **options),
    ]
    rest = [backend(f"b{i}", state=states) for i in range(2, count + 1)]
    return desired(vips, [backend("b1"), *rest], window=60)


def passed(packets: int) -> tuple[int, float]:
    """Send a prefix's SYNs between those of very many others; return how many passed, in s."""
    wanted = vip("web", VIP4, syn_limit=SynLimit(1, 32, 56))
    frame, mine = tcp("S"), tcp("S", ip4("10.77.0.1"))
    wrapper = load_wrapper(Kind.MANY)
    with Kernel(BIG) as kernel:
        kernel.install(plan(desired([wanted], [backend("b1")]), NOTHING, 1000))
        began, count = kernel.now(), 0
        for part in range(100):
            wrapper.call(kernel.program, _knobs(frame).of(frame, state=part * packets // 100))
            run(wrapper.fd, frame, packets // 100)
            count += sum(kernel.run(mine)[0] == Verdict.TX for _ in range(10))
        return count, (kernel.now() - began) / clock().hz


def _of_one_prefix() -> Iterator[bytes]:
    """Yield SYNs of ever other flows from one /24."""
    frame = bytearray(tcp("S"))
    for number in itertools.count():
        frame[_SOURCE] = (0x0A090900 + (number & 0xFF)).to_bytes(4)
        frame[_PORT] = (1024 + (number >> 8)).to_bytes(2)
        yield bytes(frame)


def split(tracking: Tracking) -> int:
    """Send SYNs of one prefix between the SYNs of others and what follows; return the split ones.

    All owners from before the window but one drain, so that a SYN without a mark has no way back.
    """
    flood = _of_one_prefix()
    with Kernel(BIG) as kernel:
        kernel.install(plan(_roster(4, tracking=tracking), NOTHING, 1000))
        _change(kernel, _roster(4, "drain", tracking), 0)
        count = 0
        for part in range(_PARTS):
            ours = range(FLOWS * part // _PARTS, FLOWS * (part + 1) // _PARTS)
            clients = [ip4(f"10.{64 + (n >> 8)}.{n & 255}.1") for n in ours]
            first = [kernel.run(tcp("S", client))[1][30:34] for client in clients]
            for frame in itertools.islice(flood, SYNS // _PARTS):
                kernel.run(frame)
            then = [kernel.run(tcp("A", client))[1][30:34] for client in clients]
            count += sum(a != b for a, b in zip(first, then, strict=True))
    return count


def _flood_twice(kernel: Kernel, frame: bytes, port: int, packets: int) -> None:
    """Send packets of ever other flows to a VIP, each of which comes twice."""
    wrapper = load_wrapper(Kind.MANY)
    for first in range(0, packets, _SLICE):
        for _ in range(2):
            wrapper.call(kernel.program, _knobs(frame, port).of(frame, state=first))
            run(wrapper.fd, frame, min(_SLICE, packets - first))


def kept_out(flooded: int, packets: int) -> tuple[int, int]:
    """Flood so many VIPs; return new flows of another one that have no entry, and that move."""
    floods = [(tcp("A"), 80), (udp(), 53)][:flooded]
    news = [udp(ip4(f"10.77.{n >> 8}.{n & 255}"), dport=514) for n in range(FLOWS)]
    with Kernel(BIG) as kernel:
        kernel.install(plan(_roster(4), NOTHING, 1000))
        for frame, port in floods:
            _flood_twice(kernel, frame, port, packets)
        before = [[kernel.run(frame)[1][30:34] for frame in news] for _ in range(2)][-1]
        _change(kernel, _roster(9), 0)
        _change(kernel, _roster(9), 500)
        after = [kernel.run(frame)[1][30:34] for frame in news]
        last = kernel.publisher.in_force.vips["log"].identity.id
        without = FLOWS - kernel.vip_counters()[last].tracked
    return without, sum(a != b for a, b in zip(before, after, strict=True))


def show(packets: int) -> bool:
    """Print a line for each; return whether anybody got more than a share."""
    count, seconds = passed(packets)
    print(
        f"SYN limit of 1/s, {packets:,} SYNs of other prefixes: {count} passed in {seconds:.1f} s"
    )
    failed = count > seconds + 2
    modes: tuple[Tracking, ...] = ("full", "transition")
    for tracking in modes:
        found = split(tracking)
        print(f"handshakes, {SYNS:,} SYNs of one /24, {tracking}: {found} of {FLOWS:,} split")
        failed |= bool(found)
    for flooded, most in ((1, 0), (2, FLOWS // 100)):
        without, moved = kept_out(flooded, packets)
        print(
            f"new flows, {packets:,} packets twice to each of {flooded} other VIPs: "
            f"{without} of {FLOWS:,} without an entry, {moved} moved"
        )
        failed |= max(without, moved) > most
    return failed
