# SPDX-License-Identifier: Apache-2.0
"""Marked connections of a load-balancer host, through the real tunnel to the backend they name."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network

import numpy as np
import pytest
from pyroute2 import IPRoute

from tidegate.dataplane.kernel import layout, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.tunnel.probes import Probes, detach_probes
from tidegate.dataplane.tunnel.tunnel import Decap, attach_decap
from tidegate.errors import LabError
from tidegate.lab import netns
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import NIC, OUTER4, OUTER6
from tidegate.lab.rack import Lab
from tidegate.model.address import packed
from tidegate.model.constants import MAX_BACKENDS
from tidegate.model.decision import Reason
from tidegate.spec.decap import ANYTHING, Accept, Outcome
from tidegate.spec.healthcheck import mark_of

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=3)]

LB = "lb1"
FAMILY = {"b1": 4, "b2": 6, "b3": 4}
"""Backends, and the family of the tunnel to each."""

# One HTTP request over a connection whose socket has a mark; prints the answer's body. It runs in
# the load balancer's namespace, so it is a script.
_REQUEST = """
import json, socket, sys
address, mark, body = json.loads(sys.argv[1])
sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
sock.settimeout(1.5)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
sock.connect((address, 80))
sock.settimeout(10)
lines = ["POST / HTTP/1.1", "Host: x", f"Content-Length: {body}", "Connection: close", "", ""]
sock.sendall("\\r\\n".join(lines).encode() + b"x" * body)
answer = b""
while data := sock.recv(65536):
    answer += data
print(answer.partition(b"\\r\\n\\r\\n")[2].decode().strip())
"""


def ask(lab: Lab, address: object, mark: int, body: int = 0) -> str:
    """Return the name of the backend that answers a marked connection from the load balancer."""
    argument = json.dumps([str(address), mark, body])
    return lab.node(LB).run([sys.executable, "-c", _REQUEST, argument]).stdout.strip()


@pytest.fixture(scope="module")
def status(shared_lab: Lab) -> Iterator[StatusWatch]:
    with StatusWatch(shared_lab, LB) as watch:
        yield watch


@pytest.fixture(scope="module")
def control(shared_lab: Lab, status: StatusWatch) -> Control:
    """Give a control system, and an agent that has its documents in force."""
    control = Control(shared_lab)
    control.put("pools/web", {})
    for name, family in FAMILY.items():
        control.put(
            f"pools/web/backends/{name}", {"address": str(shared_lab.address(name, family))}
        )
    for vip in (shared_lab.vip4(), shared_lab.vip6()):
        document = {"address": str(vip), "port": 80, "protocol": "tcp", "pool": "web"}
        written = control.put(f"vips/web{vip.version}", document)
    shared_lab.start_agent(LB)
    status.wait("synced", lambda s: s["state"] == "synced", timeout=20)
    status.wait_applied(written.revision)
    return control


@contextmanager
def pinned(lab: Lab) -> Iterator[dict[str, int]]:
    """Yield the maps that the agent of the load balancer pinned."""
    folder = lab.spec.pin_dir(LB)
    names = [path.name for path in folder.iterdir() if path.is_file()]
    maps = [name for name in names if not name.startswith("program")]
    fds = {name: bpf.open_pin(str(folder / name)) for name in maps}
    try:
        yield fds
    finally:
        for fd in fds.values():
            os.close(fd)


@pytest.fixture
def probes(shared_lab: Lab, control: Control) -> Iterator[Probes]:
    """Give the program over the agent's maps, at the egress of the load balancer."""
    build = programs.Build(b"any seed", OUTER4, OUTER6)
    with pinned(shared_lab) as maps, Probes(build, maps) as loaded:
        with netns.entered(shared_lab.node(LB).namespace):
            loaded.attach(NIC)
        yield loaded
        with netns.entered(shared_lab.node(LB).namespace):
            detach_probes(NIC)


def marks(lab: Lab) -> dict[str, int]:
    """Return the mark of each backend, whose id is read from the agent's map by its address."""
    with pinned(lab) as maps:
        _, values, count = bpf.map_items(maps["backends"], 4, layout.BACKEND.itemsize, MAX_BACKENDS)
    entries = np.frombuffer(values, layout.BACKEND, count)
    found = {
        bytes(entries[i]["endpoints"][entries[i]["selected"]]["address"]): int(i)
        for i in np.flatnonzero(entries["incarnation"])
    }
    return {
        name: mark_of(found[packed(lab.address(name, family))]) for name, family in FAMILY.items()
    }


@pytest.mark.parametrize("encapsulation", ["ipip", "gue"])
def test_a_marked_connection_reaches_the_backend_of_its_mark(
    shared_lab: Lab, control: Control, status: StatusWatch, probes: Probes, encapsulation: str
) -> None:
    """IPIP, 6-in-4, IP4IP6 and IP6IP6, and GUE over both families, through both VIPs."""
    status.wait_applied(control.put("pools/web", {"encapsulation": encapsulation}).revision)
    for vip in (shared_lab.vip4(), shared_lab.vip6()):
        for name, mark in marks(shared_lab).items():
            assert Counter(ask(shared_lab, vip, mark) for _ in range(4)) == {name: 4}
    counts = probes.counters()
    assert set(counts) == {Reason.NONE}
    assert counts[Reason.NONE] >= 2 * 3 * 4 * 4  # SYN, ACK, request, FIN at the least


def test_without_a_mark_the_host_is_balanced_like_a_client(shared_lab: Lab, probes: Probes) -> None:
    """Its own connections go out plain, come back to the balancer, and spread over the backends."""
    assert {ask(shared_lab, shared_lab.vip4(), 0) for _ in range(24)} == set(FAMILY)
    assert not probes.counters()


def test_a_quarantined_backend_can_still_be_probed(
    shared_lab: Lab, control: Control, status: StatusWatch, probes: Probes
) -> None:
    """Clients no longer reach it, a probe does."""
    document = {"address": str(shared_lab.address("b3"))}
    quarantined = {**document, "state": "quarantine"}
    status.wait_applied(control.put("pools/web/backends/b3", quarantined).revision)
    try:
        assert {ask(shared_lab, shared_lab.vip4(), 0) for _ in range(12)} <= {"b1", "b2"}
        assert ask(shared_lab, shared_lab.vip4(), marks(shared_lab)["b3"]) == "b3"
    finally:
        status.wait_applied(control.put("pools/web/backends/b3", document).revision)


def test_a_mark_of_no_backend_is_dropped_and_counted(shared_lab: Lab, probes: Probes) -> None:
    """Nobody answers, least of all another backend."""
    with pytest.raises(LabError, match="timed out"):
        ask(shared_lab, shared_lab.vip4(), mark_of(60000))
    assert set(probes.counters()) == {Reason.NO_BACKEND}


def test_a_backend_drops_what_its_load_balancers_did_not_send(
    shared_lab: Lab, probes: Probes
) -> None:
    """With a source prefix set on the backend, tunnels from elsewhere are dropped and counted."""
    mark = marks(shared_lab)["b1"]
    here = frozenset({shared_lab.address("b1")})
    with netns.entered(shared_lab.node("b1").namespace):
        wrong = Decap(Accept(addresses=here, sources=(ip_network("10.253.0.0/16"),)))
        right = Decap(Accept(addresses=here, sources=(OUTER4,)))
    with wrong, right:
        try:
            put_on(shared_lab, "b1", wrong)
            with pytest.raises(LabError, match="timed out"):
                ask(shared_lab, shared_lab.vip4(), mark)
            assert set(wrong.counters()) == {Outcome.BAD_SOURCE}
            put_on(shared_lab, "b1", right)
            assert ask(shared_lab, shared_lab.vip4(), mark) == "b1"
            assert set(right.counters()) <= {Outcome.IPIP, Outcome.GUE_OVER_FOUR}
            assert right.counters().total() >= 4
        finally:
            with netns.entered(shared_lab.node("b1").namespace):
                attach_decap(NIC, ANYTHING)


def put_on(lab: Lab, backend: str, decap: Decap) -> None:
    """Put a program on a backend's interface, in place of the one that is there."""
    with netns.entered(lab.node(backend).namespace):
        decap.attach(NIC)


@pytest.mark.parametrize("encapsulation", ["ipip", "gue"])
def test_offloads_of_the_sending_host_are_respected(
    shared_lab: Lab, control: Control, status: StatusWatch, probes: Probes, encapsulation: str
) -> None:
    """Big segments are cut to what fits with the outer header; checksums are filled in later."""
    status.wait_applied(control.put("pools/web", {"encapsulation": encapsulation}).revision)
    offload(shared_lab, on=True)
    try:
        for vip in (shared_lab.vip4(), shared_lab.vip6()):
            for name, mark in marks(shared_lab).items():
                segments = shared_lab.tcp_counter(name, "InSegs")
                before = probes.counters()[Reason.NONE]
                assert ask(shared_lab, vip, mark, body=900_000) == name
                arrived = shared_lab.tcp_counter(name, "InSegs") - segments
                assert arrived >= 900_000 // 1560
                assert probes.counters()[Reason.NONE] - before < arrived / 2
        # A full segment that leaves alone, as timing has it, is no big one and is not cut. It is
        # too long for the tunnel, and TCP has to send its bytes again.
        counted = probes.counters()
        assert set(counted) <= {Reason.NONE, Reason.TOO_BIG}
        assert counted[Reason.TOO_BIG] < counted[Reason.NONE] / 20
    finally:
        offload(shared_lab, on=False)


def offload(lab: Lab, *, on: bool) -> None:
    """Checksum offload and with it segmentation, on the load balancer's interface."""
    state = "on" if on else "off"
    features = [word for name in ("tx", "sg", "tso", "gso") for word in (name, state)]
    lab.node(LB).run(["ethtool", "-K", NIC, *features])


def test_the_program_replaces_itself_and_leaves_others_alone(
    shared_lab: Lab, control: Control, probes: Probes
) -> None:
    """A second one takes the place of the first, and somebody else's filter outlives both."""
    with netns.entered(shared_lab.node(LB).namespace), IPRoute() as netlink:
        index = netlink.link_lookup(ifname=NIC)[0]

        def filters() -> list[str]:
            found = netlink.get_filters(index=index, parent=0xFFFFFFF3)
            options = [one.get_attr("TCA_OPTIONS") for one in found]
            names = [each.get_attr("TCA_BPF_NAME") for each in options if each is not None]
            return sorted(name for name in names if name)

        netlink.tc(
            "add-filter",
            "bpf",
            index,
            1,
            fd=probes.program,
            name="others",
            parent=0xFFFFFFF3,
            prio=1,
            protocol=3,
            direct_action=True,
        )
        assert filters() == ["others", "tidegate-probes"]
        with (
            pinned(shared_lab) as maps,
            Probes(programs.Build(b"", OUTER4, OUTER6), maps) as second,
        ):
            second.attach(NIC)
            assert filters() == ["others", "tidegate-probes"]
        detach_probes(NIC)
        detach_probes(NIC)
        assert filters() == ["others"]
        netlink.tc("del-filter", "bpf", index, 1, parent=0xFFFFFFF3, prio=1, protocol=3)
