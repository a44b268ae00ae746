# SPDX-License-Identifier: Apache-2.0
"""The agent puts the health-check tunnel on its interfaces, leaves it there, and takes it off."""

import sys
import time

import pytest
from pyroute2 import IPRoute

from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.tunnel.probes import read_probe_counters
from tidegate.lab import netns
from tidegate.lab.agents import AgentProcess, config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import NIC
from tidegate.lab.rack import Lab
from tidegate.model.constants import MAX_BACKENDS
from tidegate.model.decision import Reason
from tidegate.spec.healthcheck import mark_of

pytestmark = [pytest.mark.root, pytest.mark.timeout(300), pytest.mark.lab(backends=2)]

LB, BACKENDS = "lb1", ("b1", "b2")
_EGRESS = 0xFFFFFFF3

_ASK = """
import socket, sys
sock = socket.socket()
sock.settimeout(10)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(sys.argv[2]))
sock.connect((sys.argv[1], 80))
sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
answer = b""
while data := sock.recv(65536):
    answer += data
print(answer.partition(b"\\r\\n\\r\\n")[2].decode().strip())
"""


def switch(lab: Lab, *, on: bool) -> None:
    """Write the key into the agent's file."""
    path = config_path(lab.spec, LB)
    lines = [line for line in path.read_text().splitlines() if "probe_tunnel" not in line]
    path.write_text("\n".join([*(["probe_tunnel = true"] if on else []), *lines, ""]))


def filters(lab: Lab) -> list[str]:
    """Names of the tc programs at the load balancer's egress."""
    with netns.entered(lab.node(LB).namespace), IPRoute() as netlink:
        index = netlink.link_lookup(ifname=NIC)[0]
        options = [
            found.get_attr("TCA_OPTIONS")
            for found in netlink.get_filters(index=index, parent=_EGRESS)
        ]
    return [each.get_attr("TCA_BPF_NAME") for each in options if each is not None]


def owners(lab: Lab) -> dict[int, str]:
    """Return which backend answers a marked connection, for each id that has one."""
    fd = bpf.open_pin(str(lab.spec.pin_dir(LB) / "backends"))
    size = bpf.map_info(fd).value_size
    _, values, count = bpf.map_items(fd, 4, size, MAX_BACKENDS)
    ids = [i for i in range(count) if any(values[i * size : (i + 1) * size])]
    return {
        id_: lab.node(LB)
        .run([sys.executable, "-c", _ASK, str(lab.vip4()), str(mark_of(id_))])
        .stdout.strip()
        for id_ in ids
    }


def started(agent: AgentProcess, times: int) -> None:
    """Wait until the log has so many starts of the agent."""
    deadline = time.monotonic() + 60
    while agent.log.read_text().count(" event=start version=") < times:
        assert time.monotonic() < deadline, agent.tail(20)
        time.sleep(0.05)


def test_marked_connections_reach_their_backend_while_key_set(bare_lab: Lab) -> None:
    """Through restarts and while the agent is away; off with the key, or with the data plane."""
    control = Control(bare_lab)
    with StatusWatch(bare_lab, LB) as status:
        control.put("pools/web", {})
        for name in BACKENDS:
            control.put(f"pools/web/backends/{name}", {"address": str(bare_lab.address(name))})
        service = {"address": str(bare_lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
        control.put("vips/web", service)
        switch(bare_lab, on=True)
        agent = bare_lab.start_agent(LB)
        status.wait("synced", lambda s: s["state"] == "synced" and s["generation"] > 0, timeout=60)

        first = owners(bare_lab)
        assert sorted(first.values()) == list(BACKENDS)
        assert all(owners(bare_lab) == first for _ in range(3))
        counts = read_probe_counters(bare_lab.spec.pin_dir(LB) / "probe_counts")
        assert set(counts) == {Reason.NONE}
        assert counts[Reason.NONE] >= 4 * len(BACKENDS) * 4  # SYN, ACK, request, FIN at the least

        agent.terminate()
        assert owners(bare_lab) == first
        agent.restart()
        started(agent, 2)
        assert owners(bare_lab) == first
        assert filters(bare_lab) == ["tidegate-probes"]
        link = bare_lab.spec.pin_dir(LB) / "probe_hooks" / NIC
        assert link.exists()

        agent.terminate()
        switch(bare_lab, on=False)
        agent.restart()
        started(agent, 3)
        assert filters(bare_lab) == []
        assert not link.exists()

        agent.terminate()
        switch(bare_lab, on=True)
        agent.restart()
        started(agent, 4)
        assert filters(bare_lab) == ["tidegate-probes"]
        agent.terminate()
        command = [sys.executable, "-m", "tidegate.cli.main", "agent", "remove"]
        bare_lab.node(LB).run([*command, "-c", str(config_path(bare_lab.spec, LB))])
        assert filters(bare_lab) == []
        assert not bare_lab.spec.pin_dir(LB).exists()
