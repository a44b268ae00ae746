# SPDX-License-Identifier: Apache-2.0
"""The limits on a program's verification, and what is found from another CPU."""

import os

import pytest
from scapy.layers.inet import ICMP, IP, TCP

from support.documents.roster import backend, generations, web
from support.packets.frames import CLIENT4, ETHER, VIP4, ip4, tcp
from support.packets.kernel import Kernel
from tidegate.dataplane.kernel.compiler import compile_text
from tidegate.dataplane.kernel.loader import MOST_STACK, load
from tidegate.errors import CompileError

pytestmark = pytest.mark.root

STACK = """
#include <uapi/linux/bpf.h>
#define TEXT(x) #x
#define NUMBER(x) TEXT(x)
int big(struct xdp_md *ctx)
{
	u64 value = ctx->rx_queue_index;

	asm volatile("*(u64 *)(r10 - " NUMBER(BYTES) ") = %0" : : "r"(value) : "memory");
	return 0;
}
"""
WORK = """
#include <uapi/linux/bpf.h>
int big(struct xdp_md *ctx)
{
	volatile int sum = 0;

#pragma clang loop unroll(disable)
	for (int i = 0; i < TURNS; i++)
		sum += i;
	return sum;
}
"""


def built(text: str, name: str, number: int) -> None:
    """Compile and load a program; raise as `load` does."""
    os.close(load(compile_text("big", text, ((name, str(number)),)), {}))


def test_a_program_of_more_stack_is_refused() -> None:
    """480 bytes: the kernel itself would take 512."""
    built(STACK, "BYTES", MOST_STACK)
    with pytest.raises(CompileError, match="and 488 bytes of stack; 250,000 and 480 are"):
        built(STACK, "BYTES", MOST_STACK + 8)


def test_a_program_of_more_work_is_refused() -> None:
    """250,000 instructions: the kernel itself would take a million."""
    built(WORK, "TURNS", 10_000)
    with pytest.raises(CompileError, match=r"takes the verifier [2-9]\d\d,\d\d\d instructions"):
        built(WORK, "TURNS", 60_000)


def test_an_error_on_another_cpu_finds_the_flow() -> None:
    """Errors and fragments are steered elsewhere than their flow; entries are seen everywhere."""
    before, after = generations(
        web(backend("b1"), backend("b2")), web(*(backend(f"b{i}") for i in range(3, 9)))
    )
    with Kernel() as kernel:
        cpus = sorted(kernel._cpus)
        assert len(cpus) > 1, "this needs a second CPU"
        kernel.install(before)
        owners = {s: kernel.run(tcp("A", sport=s))[1][30:34] for s in range(40000, 40020)}
        kernel.install(after)
        os.sched_setaffinity(0, {cpus[1]})
        for sport, owner in owners.items():
            quoted = IP(src=VIP4, dst=CLIENT4) / TCP(sport=80, dport=sport)
            error = bytes(ETHER / ip4("10.77.9.9") / ICMP(type=3, code=1) / quoted)
            assert kernel.run(error)[1][30:34] == owner
        assert len(kernel.entries("flows")) == len(owners)
