# SPDX-License-Identifier: Apache-2.0
"""The promise that everything else is for: no flow of a serving backend ever moves."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.documents.roster import backend, desired, generations, vip
from support.packets.frames import ip4, tcp
from support.packets.kernel import BUILD, Kernel, spec_state
from tidegate.dataplane.kernel import loader, maps, programs
from tidegate.errors import CompileError
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Backend, Desired
from tidegate.planner import plan
from tidegate.spec import process

pytestmark = pytest.mark.root

TRACKINGS = ("full", "transition")
FLOWS = range(40000, 40024)


@st.composite
def rosters(draw: st.DrawFn) -> list[Backend]:
    """Draw backends that come, go, drain and change their weights; none fails."""
    return [
        backend(
            f"b{number}",
            weight=draw(st.sampled_from([1, 100, 300])),
            state=draw(st.sampled_from(["active", "active", "drain"])),
        )
        for number in draw(st.sets(st.integers(1, 6), min_size=1))
    ]


def wanted(tracking: str, backends: list[Backend]) -> Desired:
    vips = [vip("web", "10.99.0.1", tracking=tracking)]
    return desired(vips, backends, delay=3600, window=3600)


def play(
    steps: list[tuple[list[Backend], list[tuple[int, bool]]]],
    tracking: str,
    install: Callable[[Generation], None],
    send: Callable[[bytes], int | None],
) -> int:
    """Open and continue flows between changes, and return how many packets stayed.

    A flow is established by its first ACK; a SYN that was never followed by one may go anywhere.
    """
    owner: dict[int, int | None] = {}
    established: set[int] = set()
    generation, stayed = NOTHING, 0
    for second, (roster, packets) in enumerate(steps):
        generation = plan(wanted(tracking, roster), generation, 1000 + second)
        install(generation)
        living = {placed.identity.id for placed in generation.backends.values()}
        for sport, opens in packets:
            if opens or sport not in owner:
                owner[sport] = (
                    send(tcp("S", sport=sport)) if sport not in established else owner[sport]
                )
                continue
            found = send(tcp("A", sport=sport))
            established.add(sport)
            if owner[sport] in living:
                assert found == owner[sport]
                stayed += 1
            owner[sport] = found
        for sport in established:  # whoever lives sends at least once in a window
            assert send(tcp("A", sport=sport)) == owner[sport] or owner[sport] not in living
    return stayed


STEPS = st.lists(
    st.tuples(rosters(), st.lists(st.tuples(st.sampled_from(FLOWS), st.booleans()), max_size=40)),
    min_size=2,
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS, st.sampled_from(TRACKINGS))
def test_no_flow_moves_in_the_model(
    steps: list[tuple[list[Backend], list[tuple[int, bool]]]], tracking: str
) -> None:
    """Whatever comes, goes and drains between SYN, first ACK and all that follows."""
    state = spec_state()
    play(steps, tracking, state.install, lambda frame: process(state, frame, 1).backend)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS, st.sampled_from(TRACKINGS))
def test_no_flow_moves_in_the_kernel(
    steps: list[tuple[list[Backend], list[tuple[int, bool]]]], tracking: str
) -> None:
    """The same on the program, whose frames show the backend: each has an address of its own."""
    with Kernel() as kernel:
        ids: dict[bytes, int] = {}

        def install(generation: Generation) -> None:
            kernel.install(generation)
            for placed in generation.backends.values():
                ids[placed.backend.address.packed] = placed.identity.id

        play(steps, tracking, install, lambda frame: ids.get(kernel.run(frame)[1][30:34]))


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_earlier_flows_survive_the_loss_of_every_entry(tracking: str) -> None:
    """Agent reinstalled, or another host took over: the fallback is in the table itself."""
    rosters_ = [[1, 2, 3], [1, 2, 3, 4], [1, 2, 4, 5], [2, 3, 4, 5, 6]]
    first, *changes = generations(
        *(wanted(tracking, [backend(f"b{i}") for i in (*r, 1, 2, 3)]) for r in rosters_)
    )
    state = spec_state()
    state.install(first)
    before = {s: process(state, tcp("A", sport=s), 1).backend for s in FLOWS}
    for change in changes:
        state.install(change)
        state.flows.entries.clear()
        state.syns.entries.clear()
        assert {s: process(state, tcp("A", sport=s), 1).backend for s in FLOWS} == before


def flood(kernel: Kernel, syns: int) -> None:
    """Send SYNs of as many clients."""
    frame = bytearray(tcp("S", ip4("10.64.0.0")))
    for number in range(syns):
        frame[27:30] = number.to_bytes(3)
        kernel.run(bytes(frame))


def test_a_flood_of_syns_touches_no_established_flow() -> None:
    """Also over a change of the roster in the middle: SYNs have a small table of their own."""
    before, after = generations(
        wanted("full", [backend("b1"), backend("b2")]),
        wanted("full", [backend("b1"), backend("b2"), backend("b3")]),
    )
    with Kernel() as kernel:
        kernel.install(before)
        first = {s: kernel.run(tcp("A", sport=s))[1] for s in FLOWS}
        flows = kernel.entries("flows")
        flood(kernel, 50_000)
        kernel.install(after)
        flood(kernel, 50_000)
        assert kernel.entries("flows") == flows
        assert {s: kernel.run(tcp("A", sport=s))[1] for s in FLOWS} == first
        assert len(kernel.entries("syns")) > 1000


def test_the_whole_program_is_within_its_limits() -> None:
    """250,000 instructions for the verifier and 480 bytes of stack, with everything on."""
    program = programs.compile_balancer(BUILD)
    fds = maps.create(maps.few(maps.shapes(maps.Capacity(1024, 1024, 1024)), 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "MOST_VERIFIED", 1000)
        with pytest.raises(CompileError, match=r"takes the verifier [\d,]+ instructions"):
            programs.load_balancer(program, fds)
    programs.load_balancer(program, fds)
    fds.close()
