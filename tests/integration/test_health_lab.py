# SPDX-License-Identifier: Apache-2.0
"""Failures as clients would meet them, found and acted on by two real load balancers."""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tidegate.dataplane.tunnel import attach_decap
from tidegate.lab import netns
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import NIC, LabSpec
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

CHECK = {"type": "http", "interval": 0.3, "timeout": 0.25, "rise": 2, "fall": 2}
HEALTH = {"check": CHECK, "hold_down": 0, "panic_percent": 30}
LBS = ("lb1", "lb2")


class Fleet(NamedTuple):
    """A rack with two agents that have everything in force."""

    lab: Lab
    control: Control
    statuses: tuple[StatusWatch, ...]

    def wait(self, what: str, wanted: Callable[[dict[str, Any]], bool], timeout: float) -> float:
        """Waits until both statuses are as wanted; returns after how many seconds."""
        began = time.monotonic()
        for status in self.statuses:
            status.wait(what, wanted, timeout=timeout)
        return time.monotonic() - began

    def unhealthy(self, count: int, timeout: float = 20) -> float:
        """Waits until both hosts have taken this many backends out."""
        return self.wait(
            f"{count} unhealthy", lambda s: s["backends"]["unhealthy"] == count, timeout
        )


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Lab(LabSpec(name=f"t{secrets.token_hex(4)}", backends=4, lbs=2)) as lab:
        control = Control(lab)
        control.put("pools/web", {"health": HEALTH})
        for number in range(1, 5):
            address = str(lab.address(f"b{number}", 6 if number == 4 else 4))
            control.put(f"pools/web/backends/b{number}", {"address": address})
        for vip in (lab.vip4(), lab.vip6()):
            document = {"address": str(vip), "port": 80, "protocol": "tcp", "pool": "web"}
            written = control.put(f"vips/web{vip.version}", document)
        statuses = tuple(StatusWatch(lab, lb) for lb in LBS)
        for lb, status in zip(LBS, statuses, strict=True):
            status.__enter__()
            lab.start_agent(lb)
            status.wait_applied(written.revision, timeout=30)
        fleet = Fleet(lab, control, statuses)
        wait_for_verdicts(fleet, {"healthy": 8})
        yield fleet
        for status in statuses:
            status.__exit__(None, None, None)


def verdicts(fleet: Fleet) -> Counter[str]:
    """States of the verdicts of all hosts."""
    found = fleet.lab.etcdctl("get", "--prefix", "/tidegate/default/health/")
    return Counter(part.split('"')[1] for part in found.split('"state":')[1:])


def wait_for_verdicts(fleet: Fleet, wanted: dict[str, int], timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while dict(verdicts(fleet)) != wanted:
        assert time.monotonic() < deadline, verdicts(fleet)
        time.sleep(0.1)  # etcd is asked, as a person would


def answering(fleet: Fleet, requests: int = 24) -> set[str]:
    """The backends that answer a client's requests, none of which may fail."""
    url = f"http://{fleet.lab.vip4()}/"
    command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "3", url]
    return {fleet.lab.client(1).run(command).stdout.strip() for _ in range(requests)}


def mend_tunnel(lab: Lab) -> None:
    with netns.entered(lab.node("b1").namespace):
        attach_decap(NIC)


def answers_to(lab: Lab, lb: str, backend: str, *, lost: bool) -> None:
    """Whether what a backend sends to a load balancer itself, answers to probes, is lost."""
    for family in (4, 6):
        target = f"{lab.address(lb, family)}/{32 if family == 4 else 128}"
        verb = "add" if lost else "del"
        lab.node(backend).run(["ip", f"-{family}", "route", verb, "blackhole", target])


def answers_to_all(lab: Lab, *, lost: bool) -> None:
    for lb in LBS:
        answers_to(lab, lb, "b1", lost=lost)


Change = Callable[[Lab], object]

FAILURES: dict[str, tuple[Change, Change]] = {
    "process killed": (lambda lab: lab.stop_http("b1"), lambda lab: lab.start_http("b1")),
    "link down": (
        lambda lab: lab.set_link("b1", up=False),
        lambda lab: lab.set_link("b1", up=True),
    ),
    "VIP address removed": (
        lambda lab: lab.node("b1").run(["ip", "addr", "del", f"{lab.vip4()}/32", "dev", "lo"]),
        lambda lab: lab.node("b1").run(["ip", "addr", "add", f"{lab.vip4()}/32", "dev", "lo"]),
    ),
    "tunnel broken": (
        lambda lab: lab.node("b1").run(["ip", "link", "set", "dev", NIC, "xdp", "off"]),
        mend_tunnel,
    ),
    "one-way loss": (
        lambda lab: answers_to_all(lab, lost=True),
        lambda lab: answers_to_all(lab, lost=False),
    ),
    "port closed": (
        lambda lab: lab.node("b1").run(
            ["ip", "rule", "add", "ipproto", "tcp", "sport", "80", "prohibit"]
        ),
        lambda lab: lab.node("b1").run(
            ["ip", "rule", "del", "ipproto", "tcp", "sport", "80", "prohibit"]
        ),
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_found_and_healed(fleet: Fleet, failure: str) -> None:
    """Both hosts take the backend out, no client meets it, and it returns when it is mended."""
    fail, mend = FAILURES[failure]
    fail(fleet.lab)
    found = fleet.unhealthy(1)
    try:
        assert answering(fleet) == {"b2", "b3", "b4"}
    finally:
        mend(fleet.lab)
    healed = fleet.unhealthy(0)
    assert "b1" in answering(fleet, 60)
    # For whoever runs it with -s: the figures are part of what it shows.
    print(f"{failure}: out after {found:.2f} s, back after {healed:.2f} s")  # noqa: T201


def test_a_blind_host_says_so_and_takes_nothing_out(fleet: Fleet) -> None:
    """A host that no answers reach is degraded, and no host takes a backend out for it."""
    blind, seeing = fleet.statuses
    began = time.monotonic()
    for number in range(1, 5):
        answers_to(fleet.lab, "lb1", f"b{number}", lost=True)
    try:
        blind.wait("blind", lambda s: s["health"]["blind"], timeout=20)
        found = time.monotonic() - began
        blind.wait("degraded", lambda s: "path is broken" in s["reason"], timeout=20)
        fleet.unhealthy(0)
        assert answering(fleet, 60) == {"b1", "b2", "b3", "b4"}
        seeing.wait("not blind", lambda s: not s["health"]["blind"], timeout=20)
    finally:
        for number in range(1, 5):
            answers_to(fleet.lab, "lb1", f"b{number}", lost=False)
    fleet.wait("synced", lambda s: s["state"] == "synced", timeout=20)
    print(f"half the agents blind: said after {found:.2f} s")  # noqa: T201


def keeps_the_dead(status: dict[str, Any]) -> bool:
    health = status["health"]
    return bool(health["broken_checker"] or health["panics"] == ["web"])


def test_all_backends_dead_are_kept(fleet: Fleet) -> None:
    """With all backends dead nothing stays out, and both hosts say why.

    Which reason they give depends on how far apart the failures were found: a broken checker
    within two intervals, a panic of the pool beyond that.
    """
    began = time.monotonic()
    for number in range(1, 5):
        fleet.lab.stop_http(f"b{number}")
    try:
        fleet.wait("all kept", keeps_the_dead, timeout=20)
        found = time.monotonic() - began
        fleet.unhealthy(0)
    finally:
        for number in range(1, 5):
            fleet.lab.start_http(f"b{number}")
    fleet.wait("synced", lambda s: s["state"] == "synced", timeout=20)
    assert answering(fleet, 60) == {"b1", "b2", "b3", "b4"}
    print(f"all backends dead: said after {found:.2f} s")  # noqa: T201
