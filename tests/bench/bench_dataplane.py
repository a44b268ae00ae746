# SPDX-License-Identifier: Apache-2.0
"""What a packet costs: ns per packet of the loaded program, by decision, from test runs.

The cost of the loop and of restoring the frame is measured with the same frame and subtracted. Each
figure is the median of several runs; the machine is noisy, so compare figures of one run only.
"""

import os
import statistics
import struct
from dataclasses import replace
from pathlib import Path

from support.documents.roster import backend, generations, web
from support.packets.frames import ip4, ip6, tcp, udp
from support.packets.kernel import BUILD, Kernel
from tidegate.dataplane.kernel import compiler, loader
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.programs import Build
from tidegate.model.features import Feature

REPEAT, RUNS = 1_000_000, 5
PROG_ARRAY = 3
FRAMES = {
    "IPv4 TCP, tracked": (tcp("A"), True),
    "IPv4 TCP, SYN": (tcp("S"), False),
    "IPv4 UDP, tracked": (udp(), True),
    "IPv6 TCP, tracked": (tcp("A", ip6()), True),
    "IPv6 TCP, SYN": (tcp("S", ip6()), False),
    "not for a VIP": (tcp("A", ip4(to="10.99.0.200")), False),
}


def cost(frame: bytes, program: int | None) -> float:
    """Median ns per repetition of restoring the frame and, if given, running a program."""
    constants = (("FRAME_BYTES", str(len(frame))), ("ETHERTYPE", f"0x{frame[12:14].hex()}"))
    text = Path(__file__).with_name("restore.c").read_text()
    compiled = compiler.compile_text("restore", text, constants)
    jumps = bpf.map_create(PROG_ARRAY, "next", 4, 4, 1)
    if program is not None:
        bpf.map_update(jumps, bytes(4), struct.pack("<I", program))
    restore = loader.load(compiled, {"next": jumps})
    runs = [bpf.run(restore, frame, repeat=REPEAT).duration for _ in range(RUNS)]
    os.close(restore)
    os.close(jumps)
    return statistics.median(runs)


def measure(build: Build) -> dict[str, float]:
    """Ns per packet of a program, by packet."""
    backends = [backend(f"b{i}", f"fd01::{i}" if i % 2 else "") for i in range(1, 9)]
    found = {}
    with Kernel(build) as kernel:
        kernel.install(generations(web(*backends))[-1])
        for name, (frame, warm) in FRAMES.items():
            if warm:
                kernel.run(frame)
            found[name] = cost(frame, kernel.program) - cost(frame, None)
    return found


def main() -> None:
    """Prints a table: the program with all that there is, and the one for plain VIPs."""
    needed = frozenset({Feature.V6, Feature.UDP, Feature.FRAGMENTS})
    whole, lean = measure(BUILD), measure(replace(BUILD, features=needed))
    print(
        f"{'packet':24} {'all':>6} {'plain':>6}   ns, median of {RUNS} runs of {REPEAT:,} packets"
    )
    for name, ns in whole.items():
        print(f"{name:24} {ns:6.0f} {lean[name]:6.0f}")


if __name__ == "__main__":
    main()
