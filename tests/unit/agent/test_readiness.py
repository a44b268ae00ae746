# SPDX-License-Identifier: Apache-2.0
"""Readiness: what counts, what does not, and what is shown of it."""

import os
import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.documents.roster import backend, web
from tidegate.agent.config import AnnounceTable
from tidegate.agent.readiness.announcer import Announcer
from tidegate.agent.readiness.exabgp import ExaBgpPipe
from tidegate.agent.readiness.readiness import Condition, unready
from tidegate.agent.readiness.signals import ReadySignals
from tidegate.dataplane.kernel.programs import Attachment
from tidegate.dataplane.links import Link
from tidegate.keyspace.etcd.watch_loop import WatchState
from tidegate.model.generation import Generation
from tidegate.model.values import Network, Rejection
from tidegate.planner import plan

NOTHING = Generation(0, 0, "", {}, {}, {})
NOW = 1_700_000_000.0
HOP, MAC = IPv4Address("192.0.2.1"), b"\2\0\0\0\0\1"
WIRED = Link("eth0", 2, MAC, 1500, HOP, None, MAC, None, Attachment("native", 7))
UNROUTED = replace(WIRED, gateway4=None, gateway4_mac=None)
SIX = replace(UNROUTED, gateway6=IPv6Address("fe80::1"), gateway6_mac=MAC)
GOOD = Condition(
    interfaces=("eth0",),
    attached={"eth0"},
    links={"eth0": WIRED},
    damages=(),
    generation=3,
    etcd=WatchState("connected", "", NOW - 900),
    needed={4},
)
ALONE = WatchState("stale", "nobody answers", NOW - 60)
NET: Network = IPv4Network("10.99.0.1/32")
OTHER: Network = IPv4Network("10.99.4.0/24")


def but(**changes: Any) -> Condition:
    return replace(GOOD, **changes)


def other(link: Link) -> Link:
    return replace(link, interface="eth1")


@pytest.mark.parametrize(
    "condition",
    [
        GOOD,
        but(etcd=ALONE),
        but(needed=()),
        but(links={"eth0": UNROUTED}, needed=()),
        but(links={"eth0": replace(WIRED, gateway4=IPv6Address("fe80::1"))}),
        but(links={"eth0": SIX}, needed={6}),
        but(links={"eth0": replace(WIRED, faults=((6, "broken"),))}),
        but(etcd=ALONE, stale_limit=61.0),
        but(etcd=WatchState("reconnecting", "a moment ago", NOW - 99), stale_limit=1.0),
    ],
)
def test_a_host_that_forwards_rightly_is_ready(condition: Condition) -> None:
    """Also without etcd, unless its file says for how long."""
    assert unready(condition, NOW) == ""


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        (but(is_stopping=True), "is stopping"),
        (but(generation=0), "No generation"),
        (but(attached=set()), "The program is not on eth0"),
        (but(interfaces=("eth0", "eth1")), "The program is not on eth1"),
        (but(damages=(Rejection("", "", "slot 7 differs", "verify", 1),)), "slot 7 differs"),
        (but(links={"eth0": UNROUTED}), r"eth0: no route for IPv4.* name ipv4 of .gateway"),
        (but(links={"eth0": SIX}), "no route for IPv4"),
        (but(needed={6}), "eth0: no route for IPv6"),
        (but(needed={4, 6}), "eth0: no route for IPv6"),
        (but(links={"eth0": WIRED, "eth1": other(SIX)}), "^eth1: no route for IPv4"),
        (but(links={"eth0": replace(WIRED, gateway4_mac=None)}), "192.0.2.1 is not.* ARP on eth0"),
        (but(links={"eth0": replace(SIX, gateway6_mac=None)}, needed={6}), "neighbour discovery"),
        (but(links={"eth0": replace(WIRED, faults=((4, "one backend only"),))}), "one backend"),
        (but(links={"eth0": replace(WIRED, is_up=False)}), "eth0 has no carrier"),
        (but(etcd=ALONE, stale_limit=59.0), "ready_stale_limit .59 s.: nobody answers"),
        (but(etcd=WatchState("fatal", "no user", NOW - 9), stale_limit=0.0), "no user"),
        (but(stands_back=True), "ready_when_blind is false"),
    ],
)
def test_a_host_that_does_not_says_why(condition: Condition, sentence: str) -> None:
    """One reason is a sentence."""
    assert re.search(sentence, unready(condition, NOW))


def test_the_file_is_there_while_ready(tmp_path: Path) -> None:
    """It comes whole, goes at once, and why it cannot be written is reported until it is."""
    file = tmp_path / "run" / "ready"
    signs = ReadySignals(str(file))
    signs.show("", 3)
    assert "No such file" in signs.problem
    file.parent.mkdir()
    signs.show("", 3)
    assert (file.read_text(), signs.problem) == ("generation 3\n", "")
    signs.show("No generation is in force.", 3)
    assert list(file.parent.iterdir()) == []


def read(fd: int) -> list[str]:
    return os.read(fd, 65536).decode().splitlines()


def test_exabgp_gets_what_is_announced_and_what_is_withdrawn(tmp_path: Path) -> None:
    """A reader that comes late, or anew, gets everything; without one nothing waits."""
    path = tmp_path / "pipe"
    pipe = ExaBgpPipe(str(path))
    pipe.keep(frozenset({NET}))
    assert "is ExaBGP running?" in pipe.problem
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    pipe.keep(frozenset({NET, OTHER}))
    assert pipe.problem == ""
    both = [f"announce route {each} next-hop self" for each in (NET, OTHER)]
    assert read(reader) == both
    os.close(reader)
    pipe.keep(frozenset({NET, OTHER}))
    assert pipe.problem
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    pipe.keep(frozenset({OTHER}))
    assert read(reader) == [f"withdraw route {NET} next-hop self", both[1]]
    os.close(reader)


def test_a_pipe_that_is_full_delays_nothing(tmp_path: Path) -> None:
    """What did not fit is written first at the next call, until all is written."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    pipe = ExaBgpPipe(str(path))
    many: frozenset[Network] = frozenset(IPv4Network("10.0.0.0/20").subnets(new_prefix=32))
    heard: set[str] = set()
    for _ in range(9):
        pipe.keep(many)
        heard.update(read(reader))
    os.close(reader)
    assert heard == {f"announce route {each} next-hop self" for each in many}


def test_a_reader_that_went_is_missed_at_once(tmp_path: Path) -> None:
    """And one that comes gets routes within a second, not with the next round of all routes."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    announcer = Announcer(AnnounceTable(exabgp_pipe=str(path)), now=100.0)
    generation = plan(web(backend("b1")), NOTHING, 1000)

    def look(now: float) -> float | None:
        announcer.update(generation, is_ready=True, is_stopping=False, now=now)
        return announcer.next_due()

    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert look(101.0) == 116.0
    said = read(reader)
    assert said
    assert look(102.0) == 116.0
    os.close(reader)
    assert look(103.0) == 104.0
    assert "is ExaBGP running?" in announcer.problems[0]
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert look(104.0) == 119.0
    assert read(reader) == said
    os.close(reader)


def test_what_is_no_pipe_is_not_written_to(tmp_path: Path) -> None:
    """A file of that name would only grow."""
    path = tmp_path / "pipe"
    path.write_text("")
    pipe = ExaBgpPipe(str(path))
    pipe.keep(frozenset({NET}))
    assert "not a named pipe" in pipe.problem
    assert path.read_text() == ""


def test_routes_outlast_a_moment_of_not_being_ready() -> None:
    """`hold` counts from the start, and from when the host was found not ready, not from before."""
    announcer = Announcer(AnnounceTable(exabgp_pipe="/nowhere/pipe", hold=3.0), now=100.0)

    def look(now: float, *, is_ready: bool) -> float | None:
        announcer.update(NOTHING, is_ready=is_ready, is_stopping=False, now=now)
        return announcer.next_due()

    assert look(101.0, is_ready=False) == 103.0
    assert announcer.problems == ()
    look(102.0, is_ready=True)
    assert look(116.0, is_ready=False) == 119.0
    assert look(118.0, is_ready=False) == 119.0


def test_only_who_withdraws_has_to_drain() -> None:
    """An agent that announces nothing, or leaves its routes, ends at once."""
    assert Announcer(AnnounceTable(), 0.0).drain_seconds is None
    on = AnnounceTable(table=84, drain=7.0)
    assert Announcer(on, 0.0).drain_seconds == 7.0
    kept = msgspec.structs.replace(on, withdraw_on_stop=False)
    assert Announcer(kept, 0.0).drain_seconds is None
