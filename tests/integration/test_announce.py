# SPDX-License-Identifier: Apache-2.0
"""Two hosts that are announced to a router by BIRD: whatever becomes of one, flows go on."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support.lab.bird_daemons import TIMERS, start_birds
from support.lab.exabgp_daemon import ExaBgp
from tidegate.lab import agents
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import ROUTER
from tidegate.lab.rack import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(300),
    pytest.mark.lab(backends=3, lbs=2),
]

LBS = ("lb1", "lb2")
CHECK = {"type": "http", "interval": 0.5, "timeout": 0.4, "rise": 2, "fall": 3}
ANNOUNCE = """
[announce]
table = 84
hold = 1.0
drain = 3.0
"""


class AnnouncingLab(NamedTuple):
    """The lab with its router, and what the hosts say."""

    lab: Lab
    statuses: dict[str, StatusWatch]
    exabgp: ExaBgp

    @property
    def vips(self) -> set[str]:
        """All of them."""
        return {str(self.lab.vip4()), str(self.lab.vip6())}

    def hops(self, family: int = 4) -> list[str]:
        """Return the hosts that the router's kernel sends a VIP's packets to."""
        vip = self.lab.vip4() if family == 4 else self.lab.vip6()
        command = ["ip", f"-{family}", "-j", "route", "show", str(vip)]
        routes: list[dict[str, Any]] = json.loads(self.lab.node(ROUTER).run(command).stdout)
        found = [hop for route in routes for hop in route.get("nexthops", [route])]
        return sorted(hop["dev"].removeprefix("to-") for hop in found)

    def wait_for_hops(self, wanted: list[str], timeout: float = 40) -> float:
        """Wait until both families go there; return the seconds that it took."""
        began = time.monotonic()
        wait(lambda: [self.hops(4), self.hops(6)], [wanted, wanted], timeout)
        return time.monotonic() - began

    def routes(self, lb: str) -> set[str]:
        """VIPs in the table that a host's routing daemon reads."""
        command = ["ip", "-j", "route", "show", "table", "84"]
        found = [
            *json.loads(self.lab.node(lb).run(command).stdout or "[]"),
            *json.loads(self.lab.node(lb).run([command[0], "-6", *command[1:]]).stdout or "[]"),
        ]
        return {route["dst"] for route in found}

    def ready(self, lb: str) -> tuple[int, dict[str, Any]]:
        """Return what the control socket says."""
        socket = str(self.lab.folder(lb) / "agent.sock")
        command = ["curl", "--silent", "--max-time", "5", "--write-out", "\n%{http_code}"]
        command += ["--unix-socket", socket, "http://localhost/ready"]
        said = self.lab.node(lb).run(command, check=False).stdout  # 000: no agent answers
        body, _, code = said.rpartition("\n")
        return int(code), json.loads(body or "{}")


def wait(found: Callable[[], object], wanted: object, timeout: float = 40) -> None:
    deadline = time.monotonic() + timeout
    while (last := found()) != wanted:
        assert time.monotonic() < deadline, f"{last} is not {wanted}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def announcing_lab(shared_lab: Lab) -> Iterator[AnnouncingLab]:
    """Give the file's lab with BIRD, ExaBGP, and agents whose VIPs the router has learned."""
    lab = shared_lab
    exabgp = ExaBgp(lab, "lb1")
    start_birds(lab, LBS, exabgp.peers(TIMERS))
    exabgp.start()
    control = Control(lab)
    control.put("pools/web", {"health": {"check": CHECK, "hold_down": 0}})
    for number in range(1, 4):
        address = str(lab.address(f"b{number}"))
        control.put(f"pools/web/backends/b{number}", {"address": address})
    for vip in (lab.vip4(), lab.vip6()):
        document = {"address": str(vip), "port": 80, "protocol": "tcp", "pool": "web"}
        control.put(f"vips/web{vip.version}", document)
    statuses = {lb: StatusWatch(lab, lb) for lb in LBS}
    for lb in LBS:
        file = agents.config_path(lab.spec, lb)
        first = f'ready_file = "{lab.folder(lb)}/ready"\nready_when_blind = false\n'
        pipe = f'exabgp_pipe = "{exabgp.pipe}"\n' if lb == "lb1" else ""
        file.write_text(first + file.read_text() + ANNOUNCE + pipe)
        lab.start_agent(lb)
    announcing = AnnouncingLab(lab, statuses, exabgp)
    announcing.wait_for_hops(["lb1", "lb2"])
    yield announcing
    for status in statuses.values():
        status.__exit__(None, None, None)


@contextmanager
def downloads(announcing_lab: AnnouncingLab) -> Iterator[Callable[[], None]]:
    """Long downloads over both families; what is given checks that each of them goes on."""
    lab = announcing_lab.lab
    files, children = [], []
    for number in range(12):
        url = f"http://{lab.vip4()}/download" if number % 2 else f"http://[{lab.vip6()}]/download"
        file = lab.folder("client1") / f"download{number}"
        file.unlink(missing_ok=True)
        command = ["curl", "--silent", "--show-error", "--no-buffer", "-o", str(file), url]
        children.append(lab.client(1).popen(command, stdin=subprocess.DEVNULL))
        files.append(file)
    wait(lambda: all(size(file) for file in files), wanted=True)

    def go_on() -> None:
        before = [size(file) for file in files]
        wait(lambda: all(size(f) > s for f, s in zip(files, before, strict=True)), wanted=True)
        assert [child.poll() for child in children] == [None] * len(children)

    try:
        yield go_on
    finally:
        for child in children:
            child.kill()
            child.wait()


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def test_a_ready_host_is_announced_and_its_probes_still_travel(
    announcing_lab: AnnouncingLab,
) -> None:
    """Its VIPs are in the table, are no addresses of its own, and backends are found healthy."""
    for lb in LBS:
        assert announcing_lab.routes(lb) == announcing_lab.vips
        assert announcing_lab.ready(lb) == (200, {"ready": True, "reason": ""})
        assert (announcing_lab.lab.folder(lb) / "ready").exists()
        seen = announcing_lab.statuses[lb].wait("ready", lambda status: status["ready"])
        assert seen.status["ready_reason"] == ""

    def healthy() -> int:
        found = announcing_lab.lab.etcdctl("get", "--prefix", "/tidegate/default/health/")
        return found.count('"state":"healthy"')

    wait(healthy, 6)


def test_flows_survive_an_ordered_stop(announcing_lab: AnnouncingLab) -> None:
    """The host withdraws, goes on until routers have followed, and comes back."""
    with downloads(announcing_lab) as go_on:
        agent = announcing_lab.lab.agents["lb1"]
        began = time.monotonic()
        agent.process.terminate()
        took = announcing_lab.wait_for_hops(["lb2"])
        wait(announcing_lab.exabgp.learned, set())
        assert agent.process.poll() is None, "it has to go on until the router has followed"
        assert announcing_lab.ready("lb1") == (
            503,
            {"ready": False, "reason": "The agent is stopping."},
        )
        assert not (announcing_lab.lab.folder("lb1") / "ready").exists()
        assert agent.process.wait(30) == 0
        assert time.monotonic() - began >= 3.0, "it has to drain"
        go_on()
        agent.restart()
        back = announcing_lab.wait_for_hops(["lb1", "lb2"])
        wait(announcing_lab.exabgp.learned, announcing_lab.vips)
        go_on()
    # For whoever runs it with -s: the figures are part of what it shows.
    print(f"withdrawn after {took:.2f} s, announced {back:.2f} s after its start")  # noqa: T201


def test_a_second_signal_ends_it_at_once(announcing_lab: AnnouncingLab) -> None:
    """Whoever has no time to drain need not kill it; its routes are gone as well."""
    agent = announcing_lab.lab.agents["lb2"]
    agent.process.terminate()
    announcing_lab.wait_for_hops(["lb1"])
    agent.process.terminate()
    assert agent.process.wait(30) == 0
    assert announcing_lab.routes("lb2") == set()
    last = [line for line in agent.log.read_text().splitlines() if "event=stop" in line][-1]
    assert last.endswith("event=stop"), "it has not drained"
    agent.restart()
    announcing_lab.wait_for_hops(["lb1", "lb2"])


def test_a_host_that_is_not_ready_is_withdrawn_after_its_hold(
    announcing_lab: AnnouncingLab,
) -> None:
    """Without a way to its gateway it says so, and flows go on through the other host."""
    lab = announcing_lab.lab
    node, station = lab.node("lb1"), lab.station("lb1")
    with downloads(announcing_lab) as go_on:
        began = time.monotonic()
        for family in ("-4", "-6"):
            node.run(["ip", family, "route", "del", "default"])
        announcing_lab.wait_for_hops(["lb2"])
        took = time.monotonic() - began
        wait(announcing_lab.exabgp.learned, set())
        code, said = announcing_lab.ready("lb1")
        assert (code, said["ready"]) == (503, False)
        assert "no route for IPv4" in said["reason"]
        go_on()
        for gateway in (station.address4(1), station.address6(1)):
            node.run(["ip", f"-{gateway.version}", "route", "add", "default", "via", str(gateway)])
        announcing_lab.wait_for_hops(["lb1", "lb2"])
        wait(announcing_lab.exabgp.learned, announcing_lab.vips)
        go_on()
    assert took >= 1.0
    print(f"withdrawn {took:.2f} s after it was not ready, hold 1 s")  # noqa: T201


def test_an_operator_sees_who_took_a_backend_out_and_why(announcing_lab: AnnouncingLab) -> None:
    """`health` says what is the case now, `history` what was: votes, and the host's own finding."""

    def say(*words: str) -> str:
        file = str(agents.config_path(announcing_lab.lab.spec, "lb1"))
        command = [sys.executable, "-m", "tidegate.cli.main", *words, "-c", file]
        return announcing_lab.lab.node("lb1").run(command, check=False).stdout

    status = announcing_lab.statuses["lb1"]
    announcing_lab.lab.stop_http("b1")
    try:
        status.wait("out", lambda s: s["backends"]["unhealthy"] == 1, 20)
        wait(lambda: "2 of 2 votes" in say("health", "web", "--bad"), wanted=True)
        shown = say("health", "web", "--bad")
        assert re.search(
            r"^  b1 +unhealthy +refused .*2 of 2 votes .*Connection refused", shown, re.MULTILINE
        )
        assert re.search(r"^      lb2: unhealthy, refused, ", shown, re.MULTILINE)
        told = say("history")
        assert re.search(
            r"health: web/b1 out: unhealthy by 2 of 2 votes; this host: .*refused", told
        )
    finally:
        announcing_lab.lab.start_http("b1")
    status.wait("in", lambda s: s["backends"]["unhealthy"] == 0, 20)
    wait(lambda: "health: web/b1 in: healthy by" in say("history"), wanted=True)


def answers_to_lb1(lab: Lab, verb: str) -> None:
    """Whether backends' answers to the first host's probes are lost: `add` loses them."""
    target = f"{lab.address('lb1')}/32"
    for number in (1, 2, 3):
        lab.node(f"b{number}").run(["ip", "route", verb, "blackhole", target])


def test_a_blind_host_stands_back_while_most_hosts_see(announcing_lab: AnnouncingLab) -> None:
    """One of two hosts stays; one of three is withdrawn, until the third is blind as well."""
    lab, status = announcing_lab.lab, announcing_lab.statuses["lb1"]
    third = "/tidegate/default/health/lb3/web/b{}"
    moment = '"since": "2026-01-31T12:00:00Z"'
    with downloads(announcing_lab) as go_on:
        answers_to_lb1(lab, "add")
        try:
            status.wait("degraded", lambda s: "path is broken" in s["reason"], 20)
            assert announcing_lab.ready("lb1")[0] == 200
            for number in (1, 2, 3):
                passed = f'{{"state": "healthy", "code": "passed", {moment}}}'
                lab.etcdctl("put", third.format(number), passed)
            announcing_lab.wait_for_hops(["lb2"])
            assert "ready_when_blind" in announcing_lab.ready("lb1")[1]["reason"]
            go_on()
            for number in (1, 2, 3):
                failed = f'{{"state": "unhealthy", "code": "timeout", {moment}}}'
                lab.etcdctl("put", third.format(number), failed)
            announcing_lab.wait_for_hops(["lb1", "lb2"])
            go_on()
        finally:
            answers_to_lb1(lab, "del")
            lab.etcdctl("del", "--prefix", third.format(""))
    status.wait("synced", lambda s: s["state"] == "synced", 20)


def test_exabgp_may_go_and_come_back(announcing_lab: AnnouncingLab) -> None:
    """The agent goes on without it and says so; a new one gets all routes once more."""
    wait(announcing_lab.exabgp.learned, announcing_lab.vips)
    announcing_lab.exabgp.kill()
    wait(announcing_lab.exabgp.learned, set())
    status = announcing_lab.statuses["lb1"]
    status.wait("no reader", lambda s: any("is ExaBGP running?" in w for w in s["warnings"]), 20)
    assert announcing_lab.ready("lb1")[0] == 200
    assert announcing_lab.hops() == ["lb1", "lb2"], "the table goes on without the pipe"
    announcing_lab.exabgp.start()
    began = time.monotonic()
    wait(announcing_lab.exabgp.learned, announcing_lab.vips)
    took = time.monotonic() - began
    status.wait("a reader", lambda s: not s["warnings"], 20)
    print(f"from the agent to a new ExaBGP and to the router: {took:.2f} s after its start")  # noqa: T201


def test_a_killed_agent_leaves_its_host_announced(announcing_lab: AnnouncingLab) -> None:
    """The data plane forwards without it, and the next agent finds the routes as they were."""
    with downloads(announcing_lab) as go_on:
        agent = announcing_lab.lab.agents["lb1"]
        agent.kill()
        go_on()
        assert announcing_lab.hops() == ["lb1", "lb2"]
        agent.restart()
        wait(lambda: agent.process.poll() is None and announcing_lab.ready("lb1")[0], 200)
        assert announcing_lab.hops() == ["lb1", "lb2"]
        go_on()
    lines = agent.log.read_text().split("start version=")[-1]
    assert "event=announce " not in lines, "it had to find its routes"


def test_flows_survive_a_pulled_cable(announcing_lab: AnnouncingLab) -> None:
    """A host that is gone all at once takes no established flow with it."""
    with downloads(announcing_lab) as go_on:
        announcing_lab.lab.set_link("lb2", up=False)
        took = announcing_lab.wait_for_hops(["lb1"])
        go_on()
        announcing_lab.lab.set_link("lb2", up=True)
        announcing_lab.wait_for_hops(["lb1", "lb2"])
        go_on()
    print(f"one host left in the router's table after {took:.2f} s")  # noqa: T201
