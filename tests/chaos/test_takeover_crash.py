# SPDX-License-Identifier: Apache-2.0
"""Kill -9 at every step of a takeover: what is attached is pinned, and the next start goes on."""

from collections.abc import Callable, Iterator

import pytest

from support.crash.bench import SMALL, fork, link_loopback, open_maps, wait_gone
from support.crash.host import Host, assert_flows_stay, packets_of, publish
from support.documents.roster import backend, desired, vip
from tidegate.dataplane.kernel import maps, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.pins import pinned_programs
from tidegate.dataplane.publish import tables
from tidegate.dataplane.publish.steps import Step
from tidegate.lab import netns
from tidegate.model.generation import Generation
from tidegate.model.values import Desired

pytestmark = pytest.mark.root

LARGER = maps.Capacity(flows=20_000, syns=4096, fragments=2048)
OTHER = maps.Capacity(flows=5000, syns=4096, fragments=1024)
RENAMED = 3
"""Maps that have another size in LARGER."""
POINTS = [
    (Step.TAKEOVER_BEGUN, 1),
    (Step.TAKEOVER_FILLED, 1),
    (Step.TAKEOVER_COPIED, 1),
    (Step.PROGRAM_LOADED, 1),
    (Step.PROGRAM_PINNED, 1),
    (Step.TAKEOVER_COPIED, 2),
    (Step.PROGRAM_ATTACHED, 1),
    (Step.TAKEOVER_COPIED, 3),
    *((Step.TAKEOVER_RENAMED, nth) for nth in range(1, RENAMED + 1)),
    (Step.PROGRAM_KEPT, 1),
]
IDS = [f"{step.name}-{hit}" for step, hit in POINTS]
VIPS = [vip("four", "192.0.2.1"), vip("six", "2001:db8::1")]


def roster(*names: str) -> Desired:
    """Return backends without a transition: only entries keep a flow where it is."""
    return desired(VIPS, [backend(name) for name in names], window=0)


@pytest.fixture
def host() -> Iterator[Host]:
    built = Host()
    yield built
    built.close()


def started(host: Host) -> Generation:
    """Publish a roster as the agent before did; return its generation."""
    with netns.entered(host.name):
        plane = host.open()
        publish(plane, roster("b1", "b2"))
        link_loopback(plane._maps)
        generation = plane.publisher.in_force
        plane.close()
    return generation


def opening(host: Host, capacity: maps.Capacity) -> Callable[[Callable[[Step], None]], None]:
    """Return the work of a start with this capacity."""

    def work(reached: Callable[[Step], None]) -> None:
        with netns.entered(host.name):
            host.open(reached, capacity).close()

    return work


def finished(host: Host, capacity: maps.Capacity) -> Generation:
    """Open the data plane with this capacity, change the roster, and look at the pins."""
    with netns.entered(host.name):
        plane = host.open(capacity=capacity)
        publish(plane, roster("b1", "b3", "b4", "b5"))
        assert plane.audit(deep=True) == []
        generation = plane.publisher.in_force
        plane.close()
    assert pinned_programs(host.pins) == {host.attached()}
    names = {"program", "tables", *maps.shapes(capacity)}
    assert {path.name for path in host.pins.iterdir()} == names
    return generation


def in_use(host: Host) -> set[int]:
    """Ids of the maps that are pinned or that a slot points to, and those of this process."""
    found = open_maps()
    for name in maps.shapes(SMALL):
        fd = bpf.open_pin(str(host.pins / name))
        found.add(bpf.object_id(fd))
        if name == "outer":
            found |= set(tables.slots(fd).values())
    return found


@pytest.mark.parametrize(("step", "hit"), POINTS, ids=IDS)
@pytest.mark.parametrize("then", [LARGER, SMALL, OTHER], ids=["again", "back", "other"])
def test_a_takeover_is_killed(host: Host, then: maps.Capacity, step: Step, hit: int) -> None:
    """The same settings again, the old ones, or others: no flow moves, of before or meanwhile."""
    old = started(host)
    vips = {name: placed.vip for name, placed in old.vips.items()}
    four, six = ({name: vips[name]} for name in ("four", "six"))
    flows = packets_of(host, old).establish(four)
    died = fork(opening(host, LARGER), step, hit)
    assert died.steps[step] == hit
    assert host.attached() in pinned_programs(host.pins)
    assert_flows_stay(host, old, four, flows)
    flows |= packets_of(host, old).establish(six)
    again = fork(opening(host, LARGER), step, hit)
    assert host.attached() in pinned_programs(host.pins)
    assert_flows_stay(host, old, vips, flows)
    new = finished(host, then)
    assert_flows_stay(host, old, new, vips, flows)
    host.release()
    assert wait_gone((died.map_ids | again.map_ids) - in_use(host)) == set()


@pytest.mark.parametrize("then", [LARGER, SMALL], ids=["again", "back"])
def test_a_takeover_is_killed_between_two_interfaces(then: maps.Capacity) -> None:
    """One has the new program, one the old: what either one's packets wrote is kept."""
    host = Host("lb0", "lb1")
    try:
        old = started(host)
        vips = {name: placed.vip for name, placed in old.vips.items()}
        four, six = ({name: vips[name]} for name in ("four", "six"))
        begun = packets_of(host, old).establish(four)
        fork(between(host), Step.PROGRAM_ATTACHED)
        assert {host.attached(name) for name in host.interfaces} == pinned_programs(host.pins)
        assert host.attached("lb0") != host.attached("lb1")
        assert_flows_stay(host, old, four, begun)
        begun |= packets_of(host, old, interface="lb1" if then == LARGER else "lb0").establish(six)
        new = finished(host, then)
        assert host.attached("lb0") == host.attached("lb1")
        assert_flows_stay(host, old, new, vips, begun)
    finally:
        host.close()


def between(host: Host) -> Callable[[Callable[[Step], None]], None]:
    """Return the work of a start that dies before it comes to the second interface."""

    def work(reached: Callable[[Step], None]) -> None:
        attach = programs.attach

        def first(fd: int, interface: str, mode: programs.XdpMode) -> None:
            if interface != "lb0":
                reached(Step.PROGRAM_ATTACHED)
            attach(fd, interface, mode)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(programs, "attach", first)
            opening(host, LARGER)(reached)

    return work
