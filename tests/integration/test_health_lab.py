# SPDX-License-Identifier: Apache-2.0
"""Failures of a backend as clients would meet them, found and acted on by two load balancers.

Long-lived flows to every backend run meanwhile. Those on a backend that fails break or move; no
other may. What was measured is a table in pytest's summary.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from support.etcd.in_lab import etcd_pid
from support.lab.checked_lab import (
    CheckedLab,
    Status,
    answers_to,
    assert_others_untouched,
    build_lab,
    measured,
    packets_to,
    web,
)
from support.lab.long_flows import Newcomers
from tidegate.dataplane.tunnel.tunnel import attach_decap
from tidegate.lab import netns
from tidegate.lab.plan import NIC, ROUTER
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

LBS = ("lb1", "lb2")
ALL = ("b1", "b2", "b3", "b4")
CHECK = {
    "type": "http",
    "interval": 0.3,
    "timeout": 0.25,
    "rise": 2,
    "fall": 2,
    "packet_size": 1500,
}
HEALTH = {"check": CHECK, "hold_down": 0, "panic_percent": 30}

QUICK = """\
idle_probe = 0.5
silence_limit = 1
stale_after = 1.5
call_timeout = 1
backoff_max = 0.5
status_ttl = 3
"""
"""Of the agents' files: an etcd that is away is soon noticed, and verdicts go with their lease."""

Change = Callable[[Lab], object]
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def checked_lab() -> Iterator[CheckedLab]:
    pools = {"web": {"health": HEALTH}}
    with build_lab({"backends": 4, "lbs": 2}, pools, web, {"b4": 6}, QUICK) as found:
        found.wait_for_states({"healthy": 8})
        yield found


def on_b1(*command: str) -> Change:
    """Run a command on b1."""
    return lambda lab: lab.node("b1").run(command)


def signal_http(number: signal.Signals) -> Change:
    """Send a signal to all of b1's nginx."""

    def change(lab: Lab) -> None:
        nodes = {node["name"]: node for node in lab.status()["nodes"]}
        for process in nodes["b1"]["processes"]:
            if process["command"].startswith("nginx"):
                os.kill(process["pid"], number)

    return change


def mend_tunnel(lab: Lab) -> None:
    with netns.entered(lab.node("b1").namespace):
        attach_decap(NIC)


def mtu(size: int) -> Change:
    """Set the MTU of the router's link to b1."""
    command = ["ip", "link", "set", "dev", "to-b1", "mtu", str(size)]
    return lambda lab: lab.node(ROUTER).run(command)


def lose_answers(lab: Lab, *, lost: bool) -> None:
    for lb in LBS:
        answers_to(lab, lb, ["b1"], lost=lost)


def address(verb: str) -> Change:
    """Add or remove the IPv4 VIP on b1."""
    return lambda lab: lab.node("b1").run(["ip", "addr", verb, f"{lab.vip4()}/32", "dev", "lo"])


_CLOSED = ("ipproto", "tcp", "sport", "80", "prohibit")

FAILURES: dict[str, tuple[Change, Change]] = {
    "process killed": (lambda lab: lab.stop_http("b1"), lambda lab: lab.start_http("b1")),
    "process hangs": (signal_http(signal.SIGSTOP), signal_http(signal.SIGCONT)),
    "link down": (
        lambda lab: lab.set_link("b1", up=False),
        lambda lab: lab.set_link("b1", up=True),
    ),
    "VIP address removed": (address("del"), address("add")),
    "port closed": (on_b1("ip", "rule", "add", *_CLOSED), on_b1("ip", "rule", "del", *_CLOSED)),
    "tunnel broken": (on_b1("ip", "link", "set", "dev", NIC, "xdp", "off"), mend_tunnel),
    "MTU hole": (mtu(1400), mtu(1600)),
    "answers lost": (
        lambda lab: lose_answers(lab, lost=True),
        lambda lab: lose_answers(lab, lost=False),
    ),
    "requests lost": (
        lambda lab: packets_to(lab, "b1", lost=True),
        lambda lab: packets_to(lab, "b1", lost=False),
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_found_and_healed(
    checked_lab: CheckedLab, failure: str, record_property: Record
) -> None:
    """Both hosts take the backend out, no client meets it, and it returns when it is mended."""
    fail, mend = FAILURES[failure]
    with checked_lab.flows() as flows:
        flows.fails_now()
        fail(checked_lab.lab)
        try:
            found_at = checked_lab.unhealthy(1)
            assert checked_lab.answering() == {"b2", "b3", "b4"}
            flows.settle(["b1"])
            flows.ended(["b1"])
        finally:
            mend(checked_lab.lab)
        mended = time.monotonic()
        back = checked_lab.unhealthy(0) - mended
        checked_lab.wait_until_reached("b1")
        flows.settle(["b1"])
        moved = flows.outcome("udp", ["b1"])
        assert moved.moved == moved.flows > 0
        assert_others_untouched(flows, ["b1"])
        record_property("health", measured(failure, flows, ["b1"], found_at, back))


def test_a_blind_host_says_so_and_takes_nothing_out(
    checked_lab: CheckedLab, record_property: Record
) -> None:
    """A host that no answers reach is degraded, and no flow moves or breaks for it."""
    blind, seeing = checked_lab.statuses
    with checked_lab.flows() as flows:
        flows.fails_now()
        answers_to(checked_lab.lab, "lb1", ALL, lost=True)
        try:
            found_at = blind.wait("blind", lambda s: s["health"]["blind"], timeout=20).at
            blind.wait("degraded", lambda s: "path is broken" in s["reason"], timeout=20)
            checked_lab.unhealthy(0)
            assert checked_lab.answering(60) == set(ALL)
            seeing.wait("not blind", lambda s: not s["health"]["blind"], timeout=20)
        finally:
            answers_to(checked_lab.lab, "lb1", ALL, lost=False)
        mended = time.monotonic()
        checked_lab.wait_for_states({"healthy": 8})
        back = blind.wait("synced", lambda s: s["state"] == "synced", timeout=20).at - mended
        flows.settle()
        assert_others_untouched(flows, ())
        record_property("health", measured("one of two blind", flows, (), found_at, back))


def keeps_the_dead(status: Status) -> bool:
    health = status["health"]
    return bool(health["broken_checker"] or health["panics"] == ["web"])


def test_all_backends_dead_are_kept(checked_lab: CheckedLab, record_property: Record) -> None:
    """With all backends dead nothing stays out, and both hosts say why.

    Which reason they give depends on how far apart the failures were found: a broken checker
    within two intervals, a panic of the pool beyond that.
    """
    with checked_lab.flows() as flows:
        flows.fails_now()
        for name in ALL:
            checked_lab.lab.stop_http(name)
        try:
            found_at = checked_lab.wait("all kept", keeps_the_dead)
            checked_lab.unhealthy(0)
            flows.settle(ALL)
        finally:
            for name in ALL:
                checked_lab.lab.start_http(name)
        mended = time.monotonic()
        checked_lab.wait_for_states({"healthy": 8})
        back = (
            checked_lab.wait(
                "all back", lambda s: s["state"] == "synced" and not s["backends"]["unhealthy"]
            )
            - mended
        )
        assert checked_lab.answering(60) == set(ALL)
        row = measured("all dead (kept)", flows, ALL, found_at, back)
        record_property("health", row)


def test_an_agent_that_starts_again_leaves_the_dead_out(
    checked_lab: CheckedLab, record_property: Record
) -> None:
    """A backend that is dead gets nothing at all while an agent ends and another one starts."""
    watched, other = checked_lab.statuses
    with checked_lab.flows() as flows, Newcomers(checked_lab.lab) as newcomers:
        flows.fails_now()
        checked_lab.lab.stop_http("b1")
        try:
            found_at = checked_lab.unhealthy(1)
            flows.moved(["b1"])
            out = time.monotonic()
            before = watched.current()["started_at"]
            checked_lab.lab.agents["lb1"].terminate()
            checked_lab.lab.agents["lb1"].restart()
            counts: list[int] = []

            def knows(status: Status) -> bool:
                if status["started_at"] == before:
                    return False
                counts.append(status["backends"]["unhealthy"])
                return bool(status["state"] == "synced")

            watched.wait("another agent", knows, timeout=60)
            checked_lab.wait_for_states({"healthy": 6, "unhealthy": 2})
            newcomers.wait_for_more(50)
            assert newcomers.since(out).keys() == {"b2", "b3", "b4"}
            assert set(counts) == {1}
        finally:
            checked_lab.lab.start_http("b1")
        mended = time.monotonic()
        back = checked_lab.unhealthy(0) - mended
        checked_lab.wait_until_reached("b1")
        flows.settle(["b1"])
        assert_others_untouched(flows, ["b1"])
        assert other.current()["state"] == "synced"
        record_property("health", measured("agent restarted", flows, ["b1"], found_at, back))


def test_without_etcd_a_host_goes_by_its_own_findings(
    checked_lab: CheckedLab, record_property: Record
) -> None:
    """A backend that dies while etcd is away is out, and stays out when etcd comes back."""
    etcd = etcd_pid(checked_lab.lab)
    with checked_lab.flows() as flows, Newcomers(checked_lab.lab) as newcomers:
        os.kill(etcd, signal.SIGSTOP)
        try:
            flows.fails_now()
            checked_lab.lab.stop_http("b1")
            flows.moved(["b1"])
            out = newcomers.gone("b1")
            newcomers.wait_for_more(200)  # longer than the verdicts' lease lasts
        finally:
            os.kill(etcd, signal.SIGCONT)
        try:
            checked_lab.wait_for_states({"healthy": 6, "unhealthy": 2})
            checked_lab.unhealthy(1)
            newcomers.wait_for_more(300)  # longer than a host goes on by itself
            assert newcomers.gone("b1", 1) == out
        finally:
            checked_lab.lab.start_http("b1")
        mended = time.monotonic()
        back = checked_lab.unhealthy(0) - mended
        checked_lab.wait_until_reached("b1")
        flows.settle(["b1"])
        assert_others_untouched(flows, ["b1"])
        record_property("health", measured("killed, etcd away", flows, ["b1"], out, back))
