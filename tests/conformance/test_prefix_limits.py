# SPDX-License-Identifier: Apache-2.0
"""Limits of source prefixes: of SYNs, which hold against any number of prefixes, and of marks."""

import sys

import pytest

from bench.dataplane.method import run
from bench.dataplane.programs import Kind, Knobs, load_wrapper
from support.documents.roster import VIP4, backend, desired, generations, vip
from support.packets.both import Both
from support.packets.frames import ip4, tcp
from support.packets.kernel import Kernel
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.jiffies import clock
from tidegate.model.decision import Reason
from tidegate.model.values import SynLimit
from tidegate.spec import Verdict
from tidegate.spec.hash import prefix_hash
from tidegate.spec.limit import FRACTION, SharedLimits
from tidegate.spec.packet import parse

pytestmark = pytest.mark.root

PREFIXES = 200_000
TRIES = 20
NEAR = ip4("10.77.0.1")


def spend(both: Both, cell: int) -> None:
    """Take all that a cell of the limits on SYNs has."""
    spent = both.kernel.now() << FRACTION
    both.state.syn_limits.cells[cell] = spent
    key, value = cell.to_bytes(4, sys.byteorder), spent.to_bytes(8, sys.byteorder)
    bpf.map_update(both.kernel.maps["syn_limits"], key, value)


def test_no_number_of_prefixes_has_a_limit_forgotten() -> None:
    """Who has sent too much is refused while 200,000 other prefixes send SYNs within a second."""
    wanted = vip("web", VIP4, syn_limit=SynLimit(1, 32, 56))
    frame, flooded = tcp("S", NEAR), tcp("S")
    wrapper = load_wrapper(Kind.MANY)
    with Kernel() as kernel:
        kernel.install(generations(desired([wanted], [backend("b1")]))[-1])
        for _ in range(TRIES):  # until nothing holds the flood up for longer than that
            began = kernel.now()
            kernel.run(frame)
            address = int.from_bytes(flooded[30:34])
            knobs = Knobs(flows=1 << 37, vip=address).of(flooded, state=0)
            wrapper.call(kernel.program, knobs)
            run(wrapper.fd, flooded, PREFIXES)
            verdict, _ = kernel.run(frame)
            if kernel.now() - began < clock().hz:
                break
    assert verdict == Verdict.DROP


@pytest.mark.parametrize(("taken", "is_refused"), [((0,), False), ((1,), False), ((0, 1), True)])
def test_the_cell_with_more_left_counts(
    both: Both, taken: tuple[int, ...], is_refused: bool
) -> None:
    """Others have to use up both cells of a prefix for its SYNs to be refused."""
    limit = SynLimit(1, 24, 56)
    generation = both.want(desired([vip("web", VIP4, syn_limit=limit)], [backend("b1")]))
    assert generation.vips
    packet = parse(tcp("S", NEAR))
    (entry,) = (e for s, e in both.state.vips.items() if s.port)
    assert packet is not None
    keys, bits = both.state.settings.hash_keys, (limit.prefix4, limit.prefix6)
    places = SharedLimits.places(prefix_hash(keys, packet, bits, entry.salt))
    for row in taken:
        spend(both, places[row])
    assert (both.send(tcp("S", NEAR)).reason is Reason.SYN_LIMIT) == is_refused


def test_each_vip_has_a_limit_of_its_own(both: Both) -> None:
    """What a prefix has sent to one takes nothing from what it may send to another."""
    limit = SynLimit(1, 24, 56)
    both.want(
        desired(
            [vip("web", VIP4, syn_limit=limit), vip("alt", VIP4, 81, syn_limit=limit)],
            [backend("b1")],
        )
    )
    reasons = [both.send(tcp("S", NEAR, dport=port)).reason for port in (80, 81, 80, 81)]
    assert reasons == [Reason.NONE, Reason.NONE, Reason.SYN_LIMIT, Reason.SYN_LIMIT]
