# SPDX-License-Identifier: Apache-2.0
"""The probes' program is taken from the interface's egress while backends are checked.

None leaves plain where the kernel has tcx; what is taken is put back; and nobody is judged by a
probe that did not take the tunnel.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from support.lab.checked_lab import CheckedLab, build_lab, web
from support.lab.tap import Tap
from tidegate.dataplane.kernel import tcx
from tidegate.dataplane.kernel.programs import interface_index
from tidegate.dataplane.network.rtnetlink import Filter, RouteSocket
from tidegate.errors import LabError
from tidegate.lab import netns
from tidegate.lab.agents import log_path
from tidegate.lab.plan import NIC, ROUTER
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

LB = "lb1"
EGRESS = 0xFFFFFFF3
CHECK = {"type": "http", "interval": 0.2, "timeout": 0.15, "rise": 2, "fall": 2}
HEALTH = {"check": CHECK, "hold_down": 0, "panic_percent": 0}
_TCP, _IPIP = 6, 4
_FLAGS_AT, _RST = 14 + 20 + 13, 0x04

Change = Callable[[Lab], object]


@pytest.fixture(scope="module")
def checked_lab() -> Iterator[CheckedLab]:
    with build_lab({"backends": 3, "lbs": 1}, {"web": {"health": HEALTH}}, web, {}) as found:
        found.wait_for_states({"healthy": 3})
        yield found


def places(lab: Lab) -> tuple[list[Filter], tcx.Hook | None]:
    """Return the filters at the egress, and what the tcx link does."""
    with netns.entered(lab.node(LB).namespace), RouteSocket() as routes:
        filters = routes.filters(interface_index(NIC), EGRESS)
    return [each for each in filters if each.program], tcx.read(link(lab))


def link(lab: Lab) -> Path:
    return lab.spec.pin_dir(LB) / "probe_hooks" / NIC


def counters(lab: Lab) -> Path:
    return lab.spec.pin_dir(LB) / "probe_counts"


def tc(*words: str) -> Change:
    return lambda lab: lab.node(LB).run(["tc", *words])


def pass_instead(lab: Lab, protocol: str = "all") -> None:
    """Put another program in the place of ours: one that lets everything by."""
    other = lab.folder(LB) / "other.bpf"
    other.write_text("1,6 0 0 0")  # classic BPF: matches nothing
    filter_ = ["filter", "replace", "dev", NIC, "egress", "pref", "21575", "handle", "0x5447"]
    lab.node(LB).run(["tc", *filter_, "protocol", protocol, "bpf", "bytecode-file", str(other)])


def take_place(lab: Lab) -> None:
    """Have another protocol's filter in the place of ours, beside which ours cannot be put."""
    tc("filter", "del", "dev", NIC, "egress")(lab)
    # The agent may have been faster: then the kernel refuses, and it is tried again.
    while True:
        try:
            return pass_instead(lab, "ip")
        except LabError:
            tc("filter", "del", "dev", NIC, "egress")(lab)


def unpin(lab: Lab) -> None:
    link(lab).unlink()


THEFTS: dict[str, Change] = {
    "clsact deleted": tc("qdisc", "del", "dev", NIC, "clsact"),
    "filters deleted": tc("filter", "del", "dev", NIC, "egress"),
    "filter replaced": pass_instead,
    "place taken": take_place,
    "tcx link gone": unpin,
    "link and counters unpinned": lambda lab: (unpin(lab), counters(lab).unlink()),
}


def probes_of(lab: Lab) -> Callable[[bytes], str]:
    """Name frames from the load balancer: its probes, in the tunnel, or plain.

    A plain one that the router passes on to a balancer has its MAC address as the source. Resets
    are left out: those for an answer that nobody waits for any more have no socket, and no mark.
    """
    own, vip = lab.address(LB).packed, lab.vip4().packed
    found = json.loads(lab.node(LB).run(["ip", "-json", "link", "show", "dev", NIC]).stdout)
    mac = bytes.fromhex(found[0]["address"].replace(":", ""))

    def kind(frame: bytes) -> str:
        if frame[12:14] != b"\x08\x00":
            return ""
        if frame[23] == _TCP and frame[26:34] == own + vip and not frame[_FLAGS_AT] & _RST:
            return "plain" if frame[6:12] == mac else "passed on"
        inner = frame[34:]
        return "tunnelled" if frame[23] == _IPIP and inner[12:20] == own + vip else ""

    return kind


def wire(lab: Lab) -> Tap:
    return Tap(lab, ROUTER, lab.station(LB).uplink, probes_of(lab))


def wait_until(holds: Callable[[], bool], what: str, timeout: float = 20) -> float:
    """Wait until it holds; return the seconds that it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < timeout, what
        time.sleep(0.01)
    return time.monotonic() - began


def whole(lab: Lab, before: tuple[list[Filter], tcx.Hook | None]) -> bool:
    return places(lab) == before and counters(lab).exists()


def put_back(lab: Lab) -> int:
    """Return how often the log has that something was put back."""
    return log_path(lab.spec, LB).read_text().count('map="probe tunnel"')


@pytest.mark.parametrize("theft", THEFTS)
def test_what_is_taken_is_put_back_and_no_probe_is_plain(
    checked_lab: CheckedLab, theft: str, record_property: Callable[[str, object], None]
) -> None:
    """A second at the most, and no backend is blamed; it is named in the log and counted."""
    lab = checked_lab.lab
    before, said = places(lab), put_back(lab)
    assert len(before[0]) == 1
    assert before[1] is not None
    repairs = checked_lab.statuses[0].current()["repairs"]
    with wire(lab) as seen:
        wait_until(lambda: seen.seen("tunnelled") > 0, "probes on the wire")
        THEFTS[theft](lab)
        seconds = wait_until(lambda: whole(lab, before), f"{places(lab)} for {before}")
        record_property("seconds", round(seconds, 3))
        enough = seen.seen("tunnelled") + 60
        wait_until(lambda: seen.seen("tunnelled") > enough, "more probes on the wire")
        assert seen.seen("plain") == seen.seen("passed on") == 0
    wait_until(lambda: put_back(lab) > said, "a line in the log")
    checked_lab.wait("a repair is counted", lambda s: s["repairs"] > repairs)
    assert checked_lab.statuses[0].current()["backends"]["unhealthy"] == 0


def test_probes_stay_in_the_tunnel_while_no_agent_runs(checked_lab: CheckedLab) -> None:
    """One place is enough: an agent that stands still has nothing to put back."""
    lab = checked_lab.lab
    before = places(lab)
    pid = agent_pid(lab)
    os.kill(pid, signal.SIGSTOP)
    try:
        lab.node(LB).run(["tc", "qdisc", "del", "dev", NIC, "clsact"])
        with wire(lab) as seen:
            ask = ["python3", "-c", ASK, str(lab.vip4()), str(0x5447_0001)]
            lab.node(LB).run(ask, check=False)
            assert seen.seen("tunnelled") > 0
            assert seen.seen("plain") == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: whole(lab, before), "the filter is back")


def test_a_filter_that_cannot_be_put_back_is_named(checked_lab: CheckedLab) -> None:
    """Another queueing discipline has the place; the link holds probes in the tunnel meanwhile."""
    lab = checked_lab.lab
    before = places(lab)
    lab.node(LB).run(["tc", "qdisc", "del", "dev", NIC, "clsact"])
    while "clsact" in lab.node(LB).run(["tc", "qdisc", "show", "dev", NIC]).stdout or (
        lab.node(LB)
        .run(["tc", "qdisc", "add", "dev", NIC, "handle", "ffff:", "ingress"], check=False)
        .returncode
    ):
        lab.node(LB).run(["tc", "qdisc", "del", "dev", NIC, "clsact"], check=False)
    try:
        with wire(lab) as seen:
            checked_lab.wait(
                "it is named", lambda s: any("one place holds" in each for each in s["warnings"])
            )
            enough = seen.seen("tunnelled") + 60
            wait_until(lambda: seen.seen("tunnelled") > enough, "probes on the wire")
            assert seen.seen("plain") == 0
    finally:
        lab.node(LB).run(["tc", "qdisc", "del", "dev", NIC, "ingress"])
    wait_until(lambda: whole(lab, before), "the filter is back")
    checked_lab.wait("nothing to say", lambda s: not s["warnings"])


ASK = """
import socket, sys
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(sys.argv[2]))
sock.settimeout(5)
sock.connect((sys.argv[1], 80))
"""


def agent_pid(lab: Lab) -> int:
    nodes = {node["name"]: node for node in lab.status()["nodes"]}
    found = [p["pid"] for p in nodes[LB]["processes"] if "agent run" in p["command"]]
    return int(found[0])


@contextmanager
def thief(lab: Lab) -> Iterator[None]:
    """Take both places away, again and again."""
    end = threading.Event()

    def steal() -> None:
        with netns.entered(lab.node(LB).namespace), IPRoute() as netlink:
            index = interface_index(NIC)
            while not end.wait(0.002):
                link(lab).unlink(missing_ok=True)
                try:
                    netlink.tc("del", "clsact", index)
                except NetlinkError:
                    continue

    thread = threading.Thread(target=steal)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_a_dead_backend_is_not_praised_by_plain_probes(checked_lab: CheckedLab) -> None:
    """No router passes them on, and the status says that they say nothing of backends."""
    lab = checked_lab.lab
    lab.stop_http("b1")
    try:
        checked_lab.unhealthy(1)
        with wire(lab) as seen, thief(lab):
            wait_until(lambda: seen.seen("plain") > 10, "plain probes")
            checked_lab.wait(
                "they are named", lambda s: any("say nothing of" in each for each in s["warnings"])
            )
            wait_until(lambda: seen.seen("plain") > 40, "plain probes", 60)
            assert checked_lab.statuses[0].current()["backends"]["unhealthy"] == 1
            assert seen.seen("passed on") == 0
        assert "state=unhealthy" in verdicts_on_b1(lab)[-1]
    finally:
        lab.start_http("b1")
    checked_lab.unhealthy(0)
    checked_lab.wait(
        "nothing to say", lambda s: not any("say nothing of" in each for each in s["warnings"])
    )


def verdicts_on_b1(lab: Lab) -> list[str]:
    """Return the lines of the log in which b1's state changes."""
    lines = log_path(lab.spec, LB).read_text().splitlines()
    return [each for each in lines if " event=health " in each and "b1" in each]
