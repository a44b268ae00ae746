# SPDX-License-Identifier: Apache-2.0
"""A host of a test's own for agents: a real interface, pins, and packets through its program."""

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from support.crash.bench import SMALL, Packets
from support.packets.kernel import BUILD
from tidegate.dataplane import plane as dataplane
from tidegate.dataplane import removal
from tidegate.dataplane.kernel import maps, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.pins import NEXT_PROGRAM, PROGRAM
from tidegate.dataplane.links import Gateways
from tidegate.dataplane.publish.steps import Step
from tidegate.lab import netns
from tidegate.model.values import Desired
from tidegate.planner import plan

NOW = 1_700_000_000


class Host:
    """A host for agents: a namespace with interfaces, and a folder for pins."""

    def __init__(self, *interfaces: str) -> None:
        self.interfaces = interfaces or ("lb0",)
        self.name = f"tgtest-{secrets.token_hex(4)}"
        self.pins = Path("/sys/fs/bpf") / self.name
        self.programs: list[int] = []
        netns.create(self.name)
        with netns.entered(self.name), IPRoute() as link:
            for name in self.interfaces:
                peer = name.replace("lb", "peer")
                link.link("add", ifname=name, kind="veth", peer={"ifname": peer})
                for end in (name, peer):
                    link.link("set", index=link.link_lookup(ifname=end)[0], state="up")

    def release(self) -> None:
        """Close the programs that packets were sent through, which keep their maps alive."""
        while self.programs:
            os.close(self.programs.pop())

    def close(self) -> None:
        """Take everything away."""
        self.release()
        with netns.entered(self.name):
            removal.remove(self.pins, self.interfaces)
        netns.remove(self.name)

    def take_down(self, mode: programs.XdpMode = "generic") -> None:
        """Do what `tidegate agent remove` does, though an agent may hold the pins."""
        with netns.entered(self.name):
            for name in self.interfaces:
                programs.detach(name, mode)
        shutil.rmtree(self.pins)

    def open(
        self,
        reached: Callable[[Step], None] = lambda _: None,
        capacity: maps.Capacity = SMALL,
        **others: Any,
    ) -> dataplane.DataPlane:
        """Return the data plane, as an agent opens it; the thread must be in the namespace."""
        settings = dataplane.Settings(
            self.pins,
            self.interfaces,
            "generic",
            replace(BUILD, capacity=capacity),
            Gateways(None, None),
            grace=0,
        )
        settings = replace(settings, **others)
        return dataplane.DataPlane(settings, reached)

    def attached(self, interface: str = "lb0") -> int | None:
        """Id of the program on an interface."""
        with netns.entered(self.name):
            on = programs.attached(interface)
        return on.program_id if on else None


def publish(plane: dataplane.DataPlane, wanted: Desired) -> int:
    """Do what the agent does with documents; return the number in force."""
    previous = plane.publisher.in_force
    generation = plan(wanted, previous, NOW + previous.number)
    plane.serve(previous, generation)
    plane.publisher.publish(generation, 0.0)
    plane.serve(generation)
    plane.publisher.reap(1.0)
    return plane.publisher.in_force.number


def packets_of(host: Host, *rosters: object, interface: str = "lb0") -> Packets:
    """Packets through the program that is on an interface now, which is pinned."""
    for name in (PROGRAM, NEXT_PROGRAM):
        if (host.pins / name).exists():
            fd = bpf.open_pin(str(host.pins / name))
            if bpf.object_id(fd) == host.attached(interface):
                host.programs.append(fd)
                return Packets(fd, *rosters)  # type: ignore[arg-type]
            os.close(fd)
    raise AssertionError("what is attached is not pinned")


def assert_flows_stay(host: Host, *args: object) -> None:
    """Every flow is where it was, through the program that is attached."""
    *rosters, vips, flows = args
    assert packets_of(host, *rosters).established(vips) == flows  # type: ignore[arg-type]
