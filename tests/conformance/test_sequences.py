# SPDX-License-Identifier: Apache-2.0
"""Generated sequences of packets and roster changes: specification and kernel stay byte-equal."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.documents.roster import backend, web
from support.packets.both import at_one_time
from support.packets.frames import ip4, ip6, tcp, udp
from support.packets.kernel import Kernel, assert_equal, spec_state
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Backend, Desired
from tidegate.planner import plan

pytestmark = pytest.mark.root

STATES = st.sampled_from(["active", "active", "active", "drain", "quarantine", "disabled"])
MOMENTS = st.sampled_from([None, None, None, 1001, 1003])


@st.composite
def rosters(draw: st.DrawFn) -> Desired:
    """Draw a roster of up to six backends in either family."""
    backends: list[Backend] = []
    for number in draw(st.sets(st.integers(1, 6), min_size=1)):
        address = draw(st.sampled_from([f"10.1.0.{number}", f"10.2.0.{number}", f"fd01::{number}"]))
        weight = draw(st.sampled_from([0, 1, 50, 100]))
        times = {"starts_at": draw(MOMENTS), "drain_deadline": draw(MOMENTS)}
        backends.append(backend(f"b{number}", address, weight=weight, state=draw(STATES), **times))
    delay, window = draw(st.sampled_from([0, 2])), draw(st.sampled_from([0, 3]))
    return web(*backends, delay=delay, window=window, slow_start=draw(st.sampled_from([0, 4])))


def frames() -> st.SearchStrategy[bytes]:
    """Draw packets of a few flows, so that they meet each other's entries."""
    ports = st.integers(40000, 40011)
    sources = st.sampled_from([ip4(), ip6(), ip4("10.77.0.10"), ip6("fd77:1::9")])
    flags = st.sampled_from(["S", "A", "PA", "FA", "R", "SA"])
    return st.one_of(
        st.builds(lambda f, ip, s: tcp(f, ip, sport=s), flags, sources, ports),
        st.builds(lambda ip, s: udp(ip, sport=s), sources, ports),
    )


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(st.tuples(rosters(), st.lists(frames(), max_size=25)), min_size=1, max_size=8))
def test_any_sequence(steps: list[tuple[Desired, list[bytes]]]) -> None:
    """After every step each frame, verdict, map and counter is the same on both sides."""
    with Kernel() as kernel:
        state = spec_state()
        generation: Generation = NOTHING
        for second, (desired, packets) in enumerate(steps):
            generation = plan(desired, generation, 1000 + second)
            kernel.install(generation)
            state.install(generation)
            for frame in packets:
                expected, *found = at_one_time(kernel, state, frame)
                assert found == [expected.verdict, expected.frame]
            assert_equal(kernel, state)
