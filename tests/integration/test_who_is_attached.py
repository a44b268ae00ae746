# SPDX-License-Identifier: Apache-2.0
"""What the fleet and the host's routers hear when our program is not on the interface any more.

A foreign program in our place, ours taken off, the interface down or made anew: each is reported,
the host is not ready meanwhile, and what is ours is back by itself when it can be.
"""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tidegate.dataplane.kernel import programs
from tidegate.dataplane.kernel.compiler import compile_program
from tidegate.dataplane.kernel.loader import load
from tidegate.errors import DataplaneError
from tidegate.lab import netns, wiring
from tidegate.lab.agents import config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import NIC, ROUTER
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(300), pytest.mark.lab(backends=2)]

LB = "lb1"
TIMES = 10
PATIENCE = 30.0
"""Seconds that a loaded machine may take; what is measured is in pytest's summary."""

Record = Callable[[str, object], None]


class Host(NamedTuple):
    """A load balancer that forwards, and what it says of itself."""

    lab: Lab
    status: StatusWatch
    ready_file: Path

    def run(self, *command: str) -> None:
        """Run a command on it."""
        self.lab.node(LB).run(list(command))

    def is_ready(self, *, wanted: bool) -> float:
        """Wait until the ready file says so; return when that was seen."""
        deadline = time.monotonic() + PATIENCE
        while self.ready_file.exists() != wanted:
            assert time.monotonic() < deadline, self.status.current()
            time.sleep(0.002)
        return time.monotonic()

    def reported(self, *, ready: bool, mode: str) -> float:
        """Wait until the status says so; return when that was seen."""
        there = [{"name": NIC, "mode": mode}]
        return self.status.wait(
            f"{mode}, ready {ready}",
            lambda s: s["interfaces"] == there and s["ready"] == ready,
            PATIENCE,
        ).at

    def there(self) -> programs.Attachment | None:
        """Return the XDP program that is on its interface."""
        with netns.entered(self.lab.node(LB).namespace):
            return programs.attached(NIC)


@pytest.fixture
def host(bare_lab: Lab, status: StatusWatch, request: pytest.FixtureRequest) -> Host:
    mode = getattr(request, "param", "native")
    path = config_path(bare_lab.spec, LB)
    ready_file = path.with_name("ready")
    text = path.read_text().replace('"native"', f'"{mode}"')
    path.write_text(f'ready_file = "{ready_file}"\n{text}')
    bare_lab.start_agent(LB)
    control = Control(bare_lab)
    control.put("pools/web", {"health": {"check": {"type": "tcp", "interval": 1, "timeout": 0.5}}})
    control.put("pools/web/backends/b1", {"address": str(bare_lab.address("b1"))})
    vip = {"address": str(bare_lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    status.wait_applied(control.put("vips/web", vip).revision, 60)
    host = Host(bare_lab, status, ready_file)
    host.is_ready(wanted=True)
    host.reported(ready=True, mode=mode)
    return host


def seconds(times: list[float]) -> str:
    return f"median {sorted(times)[len(times) // 2]:.3f} s, longest {max(times):.3f} s"


def test_a_foreign_program_is_reported_and_ours_comes_back(
    host: Host, record_property: Record
) -> None:
    """Ten times: the ready file goes, the status says so, and both are back when it has gone."""
    found: dict[str, list[float]] = {}
    for _ in range(TIMES):
        with netns.entered(host.lab.node(LB).namespace):
            programs.attach_pass(NIC)
            at = time.monotonic()
        found.setdefault("not ready after", []).append(host.is_ready(wanted=False) - at)
        found.setdefault("reported after", []).append(
            host.reported(ready=False, mode="detached") - at
        )
        assert any("not Tidegate's" in each for each in host.status.current()["warnings"])
        host.run("ip", "link", "set", "dev", NIC, "xdp", "off")
        at = time.monotonic()
        found.setdefault("ready after", []).append(host.is_ready(wanted=True) - at)
        found.setdefault("back after", []).append(host.reported(ready=True, mode="native") - at)
        assert not any("not Tidegate's" in each for each in host.status.current()["warnings"])
    for what, times in found.items():
        record_property(what, seconds(times))


@pytest.mark.parametrize(
    ("host", "off", "foreign"),
    [("native", "xdpdrv", "generic"), ("generic", "xdpgeneric", "native")],
    indirect=["host"],
)
def test_a_foreign_program_of_the_other_mode_is_reported(
    host: Host, off: str, foreign: programs.XdpMode
) -> None:
    """Ours has to be taken off first, and may be put back before: then once more."""
    wanted = "native" if foreign == "generic" else "generic"
    with netns.entered(host.lab.node(LB).namespace):
        attach_foreign(off, foreign)
    host.is_ready(wanted=False)
    host.reported(ready=False, mode="detached")
    host.run("ip", "link", "set", "dev", NIC, "xdp", "off")
    host.run("ip", "link", "set", "dev", NIC, "xdpgeneric", "off")
    host.is_ready(wanted=True)
    host.reported(ready=True, mode=wanted)


def attach_foreign(off: str, mode: programs.XdpMode) -> None:
    """Take ours off and attach another one in the moment before ours is back."""
    fd = load(compile_program("pass"), {})
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            subprocess.run(["ip", "link", "set", "dev", NIC, off, "off"], check=True)
            try:
                return programs.attach(fd, NIC, mode)
            except DataplaneError:  # ours was back
                assert time.monotonic() < deadline
    finally:
        os.close(fd)


def test_our_program_taken_off_is_put_back(host: Host) -> None:
    """Whoever took it off."""
    ours = host.there()
    assert ours is not None
    for _ in range(3):
        host.run("ip", "link", "set", "dev", NIC, "xdp", "off")
        deadline = time.monotonic() + PATIENCE
        while host.there() != ours:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    host.is_ready(wanted=True)


def test_an_interface_that_went_down_is_not_ready(host: Host) -> None:
    """With its carrier it forwards again; nothing of ours went with it."""
    ours = host.there()
    host.lab.set_link(LB, up=False)
    host.is_ready(wanted=False)
    host.lab.set_link(LB, up=True)
    host.is_ready(wanted=True)
    assert host.there() == ours


def test_an_interface_made_anew_is_taken_again(host: Host) -> None:
    """Also by the probes' program: the interface has the old one's name and another index."""
    station, hooks = host.lab.station(LB), host.lab.spec.pin_dir(LB) / "probe_hooks"
    assert [path.name for path in hooks.iterdir()] == [NIC]
    wiring.renew_link(host.lab.spec, station)
    with netns.entered(host.lab.node(ROUTER).namespace):
        programs.attach_pass(station.uplink)
    host.is_ready(wanted=True)
    deadline = time.monotonic() + PATIENCE
    while (
        "tidegate-probes"
        not in host.lab.node(LB).run(["tc", "filter", "show", "dev", NIC, "egress"]).stdout
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert host.status.wait("checked", lambda s: s["state"] == "synced", PATIENCE)
