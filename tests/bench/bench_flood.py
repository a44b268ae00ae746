# SPDX-License-Identifier: Apache-2.0
"""Floods through the loaded program: `./dev bench flood [--packets N]`.

Four million packets of each kind (SYN, ACK, datagram, first fragment), each of another flow,
against a connection table of the default size, with the limit on new entries lifted: nothing but
the table's own order protects who is in it. A thousand flows are established first, and speak after
each tenth of the flood; the roster changes twice during it. Then flows that have been idle for an
hour, against packets of as many flows, sent once and twice, to their VIP and to another one;
handshakes in a window against SYNs; and answers to packets that are too big against pings. At
the end comes what one prefix and one VIP may not take from others (dataplane/shares.py). Fails if
a flow moved or lost its entry, if a handshake was split, if an answer was kept back, or if anybody
got more than a share.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from scapy.layers.inet import ICMP, UDP
from scapy.packet import Raw

from bench.dataplane import shares
from bench.dataplane.method import run
from bench.dataplane.programs import Kind, Knobs, load_wrapper
from bench.dataplane.rows import NO_LIMIT
from support.documents.roster import VIP4, backend, desired, generations, vip
from support.packets.frames import CLIENT4, ETHER, ip4, tcp, udp
from support.packets.kernel import BUILD, LINK, LOOPBACK, Kernel, key_of
from tidegate.dataplane.kernel import maps
from tidegate.model.document_types import Tracking
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Desired
from tidegate.planner import plan
from tidegate.spec import State, Verdict

PACKETS, PARTS = 4_000_000, 10
CHANGES: Final = {3: 1, 7: 2}
"""Generation that comes into force before a part of the flood."""
BIG: Final = replace(BUILD, capacity=maps.Capacity())
ESTABLISHED: Final = [
    *(tcp("A", sport=sport) for sport in range(40_000, 40_500)),
    *(udp(sport=sport) for sport in range(40_000, 40_500)),
]
_FRAGMENT: Final = bytes(
    ETHER / ip4(CLIENT4, id=77, flags="MF") / UDP(sport=1, dport=53, chksum=1) / Raw(bytes(16))
)
FLOODS: Final = {
    "SYN": (tcp("S"), 80),
    "ACK": (tcp("A"), 80),
    "datagram": (udp(), 53),
    "first fragment": (_FRAGMENT, 53),
}


@dataclass
class Outcome:
    """What became of the established flows."""

    moved: int
    lost: int
    rate: float


def flood(kind: str, tracking: Tracking, packets: int) -> Outcome:
    """Flood a new program."""
    frame, port = FLOODS[kind]
    options = {"tracking": tracking, "insert_limit": NO_LIMIT}
    vips = [vip("web", VIP4, **options), vip("dns", VIP4, 53, "udp", **options)]
    steps = generations(
        *(desired(vips, [backend(f"b{i}") for i in range(1, n)]) for n in (5, 7, 10))
    )
    wrapper = load_wrapper(Kind.MANY)
    address = int.from_bytes(frame[30:34])
    knobs = Knobs(first=1 << 21, flows=1 << 37, vip=address, port=port)
    took, moved = 0.0, 0
    with Kernel(BIG) as kernel:
        kernel.install(steps[0])
        before = _owners(kernel)
        entered = _entered(kernel, steps[0])
        for part in range(PARTS):
            if part in CHANGES:
                kernel.install(steps[CHANGES[part]])
            count = packets // PARTS
            wrapper.call(kernel.program, knobs.of(frame, state=part * count))
            began = time.perf_counter()
            run(wrapper.fd, frame, count)
            took += time.perf_counter() - began
            moved += sum(a != b for a, b in zip(_owners(kernel), before, strict=True))
        lost = len(entered - _entered(kernel, steps[0]))
        counted = sum(counters.packets for counters in kernel.vip_counters().values())
        assert counted == packets + 2 * len(ESTABLISHED) * (PARTS + 1), "not all were forwarded"
    return Outcome(moved, lost, packets / took)


def _roster(tracking: Tracking, backends: int) -> Desired:
    options = {"tracking": tracking, "insert_limit": NO_LIMIT}
    vips = [vip("web", VIP4, **options), vip("dns", VIP4, 53, "udp", **options)]
    return desired(vips, [backend(f"b{i}") for i in range(1, backends)], window=60)


def _change(kernel: Kernel, wanted: Desired, after: int) -> None:
    """Put what is wanted in force, some seconds after the last time."""
    last = kernel.publisher.in_force
    now = 1000 + 1000 * last.number + after
    kernel.install(plan(wanted, last, now))


def idle(kind: str, times: int, tracking: Tracking, packets: int) -> list[bool]:
    """Flood while flows are idle and the roster changes; return whether each moved."""
    frame, port = FLOODS[kind]
    wrapper = load_wrapper(Kind.MANY)
    knobs = Knobs(first=1 << 21, flows=1 << 37, vip=int.from_bytes(frame[30:34]), port=port)
    opening = [tcp("S", sport=sport) for sport in range(40_000, 41_000)]
    flows = [tcp("A", sport=sport) for sport in range(40_000, 41_000)]
    with Kernel(BIG) as kernel:
        kernel.install(plan(_roster(tracking, 5), NOTHING, 1000))
        _change(kernel, _roster(tracking, 6), 0)  # so that `transition` tracks them, too
        for each in (opening, flows, flows):
            before = [kernel.run(packet)[1][30:34] for packet in each]
        kernel.age(3600)
        for _ in range(times):
            wrapper.call(kernel.program, knobs.of(frame, state=0))
            run(wrapper.fd, frame, packets)
        _change(kernel, _roster(tracking, 10), 0)
        _change(kernel, _roster(tracking, 10), 500)
        after = [kernel.run(packet)[1][30:34] for packet in flows]
    return [a != b for a, b in zip(before, after, strict=True)]


def handshakes(tracking: Tracking, packets: int) -> int:
    """Send SYNs of a window, then a flood of SYNs, then the ACKs; return how many were split."""
    frame, port = FLOODS["SYN"]
    wrapper = load_wrapper(Kind.MANY)
    knobs = Knobs(first=1 << 21, flows=1 << 37, vip=int.from_bytes(frame[30:34]), port=port)
    with Kernel(BIG) as kernel:
        kernel.install(plan(_roster(tracking, 5), NOTHING, 1000))
        _change(kernel, _roster(tracking, 10), 0)
        split = 0
        for part in range(PARTS):
            ports = range(40_000 + 100 * part, 40_100 + 100 * part)
            first = [kernel.run(tcp("S", sport=sport))[1][30:34] for sport in ports]
            wrapper.call(kernel.program, knobs.of(frame, state=part * packets))
            run(wrapper.fd, frame, packets // PARTS)
            then = [kernel.run(tcp("A", sport=sport))[1][30:34] for sport in ports]
            split += sum(a != b for a, b in zip(first, then, strict=True))
    return split


def kept_back(pings: int) -> tuple[int, int]:
    """Send pings, and every twentieth time a packet that is too big; return the answers kept back.

    Of pings, and of packets that are too big.
    """
    ping, big = bytes(ETHER / ip4() / ICMP()), tcp("A", data="x" * 1460)
    with Kernel(BUILD) as kernel:
        kernel.install(plan(_roster("full", 5), NOTHING, 1000))
        verdicts: dict[bytes, list[Verdict]] = {ping: [], big: []}
        for number in range(pings):
            for frame in (ping, big)[: 1 if number % 20 else 2]:
                verdicts[frame].append(kernel.run(frame)[0])
    return verdicts[ping].count(Verdict.DROP), verdicts[big].count(Verdict.DROP)


def _owners(kernel: Kernel) -> list[bytes]:
    """Return the outer destination of two packets of each established flow."""
    return [kernel.run(frame)[1][30:34] for frame in ESTABLISHED for _ in range(2)]


def _entered(kernel: Kernel, generation: Generation) -> set[int]:
    """Return which established flows have an entry."""
    state = State(BIG.settings(), {LOOPBACK: LINK})
    state.install(generation)
    state.flows.entries = kernel.entries("flows")
    keys = (key_of(state, frame) for frame in ESTABLISHED)
    return {key for key in keys if state.flows.find(key) is not None}


def main(arguments: Sequence[str]) -> int:
    """Run all floods; return 1 if one moved or evicted a flow."""
    parser = argparse.ArgumentParser("./dev bench flood", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--packets", type=int, default=PACKETS, help="of each flood")
    packets = parser.parse_args(arguments).packets
    failed = _of_established(packets)
    failed |= _of_idle(packets)
    for tracking in ("full", "transition"):
        split = handshakes(tracking, packets // 10)
        print(f"handshakes in a window, {packets // 10:,} SYNs, {tracking}: {split} of 1,000 split")
        failed |= bool(split)
    pings, too_big = kept_back(100_000)
    print(f"100,000 pings: {pings:,} were not answered; of 5,000 packets too big, {too_big:,}")
    failed |= shares.show(packets)
    return int(failed or bool(too_big))


def _of_established(packets: int) -> bool:
    failed = False
    print(f"{packets:,} packets of as many flows; {len(ESTABLISHED):,} flows established")
    print(f"{'flood':16}{'tracking':12}{'moved':>6}{'entries lost':>14}{'packets a second':>18}")
    for kind in FLOODS:
        for tracking in ("full", "transition"):
            found = flood(kind, tracking, packets)
            print(f"{kind:16}{tracking:12}{found.moved:6}{found.lost:14}{found.rate:18,.0f}")
            failed |= bool(found.moved or found.lost)
    return failed


def _of_idle(packets: int) -> bool:
    """Flood idle flows; with `transition`, who is silent for all of a window moves at its end."""
    failed = False
    modes: tuple[Tracking, ...] = ("full", "transition")
    alone = {tracking: sum(idle("ACK", 0, tracking, 1)) for tracking in modes}
    print(f"{'1,000 idle flows':24}{'tracking':12}{'moved':>8}{'without a flood':>17}")
    for kind in ("ACK", "datagram"):
        for times in (1, 2):
            for tracking in modes:
                moved = sum(idle(kind, times, tracking, packets))
                title = f"{kind}, sent {('once', 'twice')[times - 1]}"
                print(f"{title:24}{tracking:12}{moved:8}{alone[tracking]:17}")
                failed |= moved > alone[tracking]
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
