# SPDX-License-Identifier: Apache-2.0
"""Pins that are deleted, some or all, while an agent runs or not: its program is found again.

Flows are established, pins go, and the next start has other backends: only the connection table
keeps the flows where they are, so a start that did not find it would move them.
"""

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from support.crash.bench import SMALL, link_loopback
from support.crash.capabilities import CAP_SYS_ADMIN, without_capabilities
from support.crash.commands import commands, file_of, run
from support.crash.host import Host, assert_flows_stay, packets_of, publish
from support.documents.roster import backend, desired, vip
from tidegate.dataplane.kernel import maps, objects, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.compiler import compile_program
from tidegate.dataplane.kernel.loader import load
from tidegate.dataplane.kernel.owner import Owner
from tidegate.dataplane.kernel.pins import own_pins, pinned_programs
from tidegate.dataplane.plane import DataPlane
from tidegate.errors import DataplaneError, FenceError
from tidegate.lab import netns
from tidegate.model.values import Desired

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]

VIPS = [vip("four", "192.0.2.1"), vip("six", "2001:db8::1")]
NAMES: Final = {"program", "tables", *maps.shapes(SMALL)}


def roster(*names: str) -> Desired:
    """Return backends without a transition: only entries keep a flow where it is."""
    return desired(VIPS, [backend(name) for name in names], window=0)


BEFORE, AFTER = roster("b1", "b2"), roster("b1", "b3", "b4", "b5")
CLAMPED = replace(BEFORE, vips=BEFORE.vips | {"four": replace(VIPS[0], mss_clamp=1200)})


@pytest.fixture
def host() -> Iterator[Host]:
    built = Host()
    yield built
    built.close()


@contextmanager
def plane_of(host: Host, **settings: object) -> Iterator[DataPlane]:
    """Open the data plane as an agent does, until the end."""
    with netns.entered(host.name):
        plane = host.open(**settings)
        try:
            yield plane
        finally:
            plane.close()


class Established:
    """Flows through the program that is attached, whose agent has ended."""

    def __init__(self, host: Host) -> None:
        with plane_of(host) as plane:
            publish(plane, BEFORE)
            link_loopback(plane._maps)
            self.generation = plane.publisher.in_force
        self.vips = {name: placed.vip for name, placed in self.generation.vips.items()}
        self.flows = packets_of(host, self.generation).establish(self.vips)
        host.release()

    def assert_kept(self, host: Host, plane: DataPlane) -> None:
        """Other backends come into force, and every flow is where it was."""
        publish(plane, AFTER)
        assert plane.audit(deep=True) == []
        assert_is_whole(host)
        generation = plane.publisher.in_force
        assert_flows_stay(host, self.generation, generation, self.vips, self.flows)
        host.release()


def assert_is_whole(host: Host) -> None:
    """All is pinned, the program that runs among it."""
    assert pinned_programs(host.pins) == {host.attached()}
    assert set(own_pins(path.name for path in host.pins.iterdir())) == NAMES
    assert any((host.pins / "tables").iterdir())


def folder(host: Host) -> None:
    """Lose everything."""
    shutil.rmtree(host.pins)


def half(host: Host) -> None:
    """Lose every second pin."""
    for name in sorted(NAMES - {"tables"})[::2]:
        (host.pins / name).unlink()


def tables(host: Host) -> None:
    """Lose the tables in force."""
    for path in (host.pins / "tables").iterdir():
        path.unlink()


def pin(name: str) -> Callable[[Host], None]:
    """Return what loses one pin."""

    def lose(host: Host) -> None:
        (host.pins / name).unlink()

    return lose


LOSSES: Final = MappingProxyType(
    {
        "folder": folder,
        "half": half,
        "tables": tables,
        **{
            name: pin(name)
            for name in ("program", "ledger", "wide_ledger", "outer", "flows", "owner")
        },
    }
)


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES.keys())
def test_a_start_finds_its_program_without_pins(host: Host, lose: Callable[[Host], None]) -> None:
    """Pins went while no agent ran: they come back, ids go on, and no flow moves."""
    established = Established(host)
    running = host.attached()
    lose(host)
    with plane_of(host) as plane:
        assert plane.adopted
        assert plane.publisher.in_force.number == established.generation.number
        assert plane.publisher.in_force.backends == established.generation.backends
        assert host.attached() != running  # replaced in one exchange, as at every start
        established.assert_kept(host, plane)


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES.keys())
def test_pins_come_back_while_the_agent_runs(host: Host, lose: Callable[[Host], None]) -> None:
    """It holds what was pinned, pins it again, and says what was missing; no flow notices."""
    established = Established(host)
    with plane_of(host) as plane:
        publish(plane, BEFORE)
        before = {str(path) for path in host.pins.rglob("*")}
        lose(host)
        lost = before - {str(path) for path in host.pins.rglob("*")}
        found = plane.audit(deep=True)
        assert {each.fault for each in found} == {"missing"}
        assert {str(host.pins / each.key) for each in found} == lost - {str(host.pins / "tables")}
        assert {str(path) for path in host.pins.rglob("*")} == before
        established.assert_kept(host, plane)
    with plane_of(host) as plane:
        established.assert_kept(host, plane)


@pytest.mark.parametrize("order", ["publish", "follow"])
def test_whatever_looks_first_puts_pins_back(host: Host, order: str) -> None:
    """A change or a look at the links finds the folder gone, and goes on in a new one."""
    established = Established(host)
    with plane_of(host) as plane:
        folder(host)
        orders = {"publish": lambda: publish(plane, AFTER), "follow": plane.follow}
        orders[order]()
        assert_is_whole(host)
        assert {each.fault for each in plane.audit(deep=False)} == {"missing"}
        established.assert_kept(host, plane)


@contextmanager
def mounted(place: Path) -> Iterator[None]:
    """Have a BPF file system at a place, until the end or until the test takes it away."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(place)], check=True)
    try:
        yield
    finally:
        while place.is_mount():
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_pins_come_back_below_a_lost_mount(host: Host) -> None:
    """Their own file system goes: the folder of the one below it has them from then on."""
    with mounted(host.pins):
        established = Established(host)
        with plane_of(host) as plane:
            subprocess.run(["umount", "--lazy", str(host.pins)], check=True)
            plane.follow()
            assert_is_whole(host)
            assert {each.fault for each in plane.audit(deep=False)} == {"missing"}
            established.assert_kept(host, plane)
        with plane_of(host) as plane:
            established.assert_kept(host, plane)


@pytest.mark.parametrize("is_emptied", [False, True], ids=["unmounted", "and emptied"])
def test_pins_that_cannot_come_back_are_named(
    host: Host, tmp_path: Path, *, is_emptied: bool
) -> None:
    """The only BPF file system goes: it forwards, follows, and its advice is what helps."""
    place = tmp_path / "bpf"
    host.pins = place / "tg"
    with mounted(place):
        established = Established(host)
        with plane_of(host) as plane:
            if is_emptied:
                shutil.rmtree(host.pins)
            subprocess.run(["umount", "--lazy", str(place)], check=True)
            plane.follow()
            (problem,) = [each for each in plane.problems if "is gone" in each]
            publish(plane, CLAMPED)  # takes another program
            assert plane.publisher.in_force.number > established.generation.number
            assert plane.audit(deep=True) == []
            assert run(host, commands(problem)[0]).returncode == 0
            plane.follow()
            assert not [each for each in plane.problems if "is gone" in each]
            assert plane.audit(deep=True) != []
            established.assert_kept(host, plane)
        with plane_of(host) as plane:
            established.assert_kept(host, plane)
        subprocess.run(["umount", "--lazy", str(host.pins)], check=True)


def test_who_may_not_look_names_the_command(host: Host, tmp_path: Path) -> None:
    """Three capabilities do not open a program: what is printed does, and the start goes on."""
    path = file_of(host, tmp_path)
    settings = {"owner": Owner("test", "lb1"), "file": path}
    with plane_of(host, **settings) as plane:
        publish(plane, BEFORE)
    established = Established(host)
    with plane_of(host, **settings):
        pass
    for lose in (each for name, each in LOSSES.items() if name != "owner"):
        lose(host)
        with (
            netns.entered(host.name),
            without_capabilities(CAP_SYS_ADMIN),
            pytest.raises(DataplaneError, match="CAP_SYS_ADMIN") as refused,
        ):
            host.open(**settings)
        done = run(host, commands(refused.value)[0])
        assert done.returncode == 0, done.stderr
        assert "pins were put back" in done.stdout
        with netns.entered(host.name), without_capabilities(CAP_SYS_ADMIN):
            host.open(**settings).close()
    with plane_of(host, **settings) as plane:
        established.assert_kept(host, plane)


@contextmanager
def instance(host: Host, name: str, **others: object) -> Iterator[DataPlane]:
    """Open the data plane of another Tidegate of the same host, with pins of its own."""
    place = host.pins.with_name(f"{host.pins.name}-{name}")
    try:
        with plane_of(host, pins=place, owner=Owner("test", name), **others) as plane:
            yield plane
    finally:
        shutil.rmtree(place)


def test_two_tidegates_of_a_host_find_their_own(tmp_path: Path) -> None:
    """Both have lost all pins: each finds the program with its name, on its interface."""
    host = Host("lb0", "lb1")
    try:
        interfaces = {"one": ["lb0"], "two": ["lb1"]}
        for number, (name, of) in enumerate(interfaces.items()):
            with instance(host, name, interfaces=of) as plane:
                for _ in range(number + 1):
                    publish(plane, BEFORE if plane.publisher.in_force.number % 2 else AFTER)
                before = plane.publisher.in_force
        with (
            pytest.raises(DataplaneError, match="host 'two' of fleet 'test'") as refused,
            instance(host, "one", interfaces=host.interfaces),
        ):
            pass
        assert "lb1 has a balancer" in str(refused.value)
        with instance(host, "two", interfaces=["lb1"]) as plane:
            assert plane.publisher.in_force.number == before.number == 2
        with instance(host, "one", interfaces=["lb0"]) as plane:
            assert plane.publisher.in_force.number == 1
    finally:
        host.close()


def test_a_foreign_program_stays_until_told(host: Host, tmp_path: Path) -> None:
    """It is named and left alone; with --take-over it is replaced, and so it is by the advice."""
    path = file_of(host, tmp_path)
    fd = load(compile_program("pass"), {})
    number = bpf.object_id(fd)
    for mode in ("generic", "native"):
        with netns.entered(host.name):
            programs.attach(fd, "lb0", mode)
        with (
            pytest.raises(DataplaneError, match="not Tidegate's") as refused,
            plane_of(host, file=path, mode=mode),
        ):
            pass
        assert f"lb0 has an XDP program that is not Tidegate's (id {number}, named 'pass')" in str(
            refused.value
        )
        assert host.attached() == number
        with plane_of(host, mode=mode, takes_over=True) as plane:
            publish(plane, BEFORE)
            assert host.attached() in pinned_programs(host.pins)
        host.take_down(mode)
        with netns.entered(host.name):
            programs.attach(fd, "lb0", mode)
        assert run(host, commands(refused.value)[0]).returncode == 0
        assert host.attached() is None
    os.close(fd)


def test_a_program_that_a_process_holds_is_not_replaced(host: Host) -> None:
    """A bpf_link goes with its process alone: --take-over says so, and works after that."""
    fd = load(compile_program("pass"), {})
    with netns.entered(host.name):
        index = programs.interface_index("lb0")
        held = bpf.command(28, struct.pack("<IIII", fd, index, 37, 2))  # BPF_LINK_CREATE, BPF_XDP
    with pytest.raises(DataplaneError, match="end that process"), plane_of(host, takes_over=True):
        pass
    assert host.attached() == bpf.object_id(fd)
    os.close(held)
    os.close(fd)
    with plane_of(host, takes_over=True) as plane:
        publish(plane, BEFORE)
        assert_is_whole(host)


def test_a_program_of_an_older_version_is_named(host: Host) -> None:
    """It kept no maps without pins: it stays until told, as nobody knows what its ids stand for."""
    with pytest.MonkeyPatch.context() as patch:  # such a program, as that version made it
        patch.setattr(objects, "bind", lambda *_: None)
        with plane_of(host) as plane:
            publish(plane, BEFORE)
    (host.pins / "owner").unlink()
    with plane_of(host) as plane:  # with its pins it is replaced like any other
        assert plane.publisher.in_force.number == 1
    host.take_down("generic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "bind", lambda *_: None)
        with plane_of(host) as plane:
            publish(plane, BEFORE)
    old = host.attached()
    folder(host)
    for _ in range(2):  # a start that is refused leaves nothing that a later one takes for pins
        with (
            pytest.raises(DataplaneError, match="of an older version, which names no owner"),
            plane_of(host),
        ):
            pass
        assert host.attached() == old
    with plane_of(host, takes_over=True) as plane:
        publish(plane, AFTER)
        assert plane.audit(deep=True) == []
        assert_is_whole(host)


def test_pins_that_do_not_fit_are_given_up_when_told(host: Host) -> None:
    """A ledger of another layout: the start names the way out, and --take-over begins anew."""
    Established(host)
    (host.pins / "ledger").unlink()
    fd = maps.create_one("ledger", maps.Shape(bpf.HASH, 8, 16, 10, bpf.F_NO_PREALLOC))
    bpf.pin(fd, str(host.pins / "ledger"))
    os.close(fd)
    with pytest.raises(DataplaneError, match=r"has another shape .* --take-over"), plane_of(host):
        pass
    with plane_of(host, takes_over=True) as plane:
        publish(plane, AFTER)
        assert plane.audit(deep=True) == []
        assert_is_whole(host)


def test_a_removed_plane_begins_anew_when_restarted(host: Host) -> None:
    """What the fence advises is true: where all was taken down, a restart sets up a new one."""
    with plane_of(host) as plane:
        publish(plane, BEFORE)
        host.take_down("generic")
        with pytest.raises(FenceError, match="restart the agent") as refused:
            plane.follow()
        assert "and its program detached" in str(refused.value)
    with plane_of(host) as plane:
        assert publish(plane, AFTER) == 1
        assert_is_whole(host)
