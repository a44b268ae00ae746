# SPDX-License-Identifier: Apache-2.0
"""What a real agent's status tells of packets and backends."""

import json

import pytest

from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=2)]


def knock(lab: Lab, times: int) -> None:
    """Connections that get no answer where they are refused: SYNs, one second each."""
    url = f"http://{lab.vip4()}/[1-{times}]"
    command = ["curl", "--silent", "--parallel", "--max-time", "2", "--output", "/dev/null", url]
    lab.client(1).run(command, check=False)


def test_a_status_tells_how_packets_and_backends_fare(bare_lab: Lab) -> None:
    """Packets are counted, drops are a share of them, and a quarantined backend is unhealthy."""
    control = Control(bare_lab)
    vip = {"address": str(bare_lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    control.put("pools/web", {})
    for name in ("b1", "b2"):
        control.put(f"pools/web/backends/{name}", {"address": str(bare_lab.address(name))})
    control.put("vips/web", vip)
    with StatusWatch(bare_lab, "lb1") as status:
        bare_lab.start_agent("lb1")
        seen = status.wait("synced", lambda s: s["state"] == "synced", 20).status
        assert seen["backends"] == {"total": 2, "serving": 2, "unhealthy": 0}
        knock(bare_lab, 300)
        seen = status.wait("traffic", lambda s: (s["traffic"] or {}).get("packets_per_second"), 20)
        assert seen.status["traffic"]["drops"] == 0
        assert 0 < seen.status["traffic"]["misses"] < 1
        control.put("pools/web/backends/b2", {"address": "192.0.2.2", "state": "quarantine"})
        change = control.put("vips/web", {**vip, "deny": ["0.0.0.0/0"]})
        seen = status.wait_applied(change.revision)
        assert seen.status["backends"] == {"total": 2, "serving": 1, "unhealthy": 1}
        knock(bare_lab, 60)
        status.wait("drops", lambda s: s["traffic"]["drops"] > 0.5, 20)
        status.wait("quiet", lambda s: s["traffic"]["packets_per_second"] <= 10, 20)


def forwarded(lab: Lab) -> int:
    """Return the packets that the LB host's own stack has forwarded."""
    names, values = (
        line.split()
        for line in lab.node("lb1").run(["cat", "/proc/net/snmp"]).stdout.splitlines()
        if line.startswith("Ip:")
    )
    return int(values[names.index("ForwDatagrams")])


def test_a_datagram_to_a_port_of_no_vip_does_not_circle(bare_lab: Lab) -> None:
    """The host forwards, and its route to the VIP leads to the router, whose route leads back."""
    control = Control(bare_lab)
    control.put("pools/web", {})
    control.put("pools/web/backends/b1", {"address": str(bare_lab.address("b1"))})
    address = str(bare_lab.vip4())
    vip = {"address": address, "port": 80, "protocol": "tcp", "pool": "web"}
    control.put("vips/web", vip)
    with StatusWatch(bare_lab, "lb1") as status:
        bare_lab.start_agent("lb1")
        status.wait("synced", lambda s: s["state"] == "synced", 20)
        before = forwarded(bare_lab)
        send = f"for i in $(seq 50); do echo x > /dev/udp/{address}/9999; done"
        bare_lab.client(1).run(["bash", "-c", send])
        status.wait("drops", lambda s: (s["traffic"] or {}).get("drops", 0) > 0.5, 20)
        assert forwarded(bare_lab) == before
        # Where the document wants them passed they do circle: each is forwarded 31 times.
        status.wait_applied(control.put("vips/web", {**vip, "unserved": "pass"}).revision)
        bare_lab.client(1).run(["bash", "-c", send])
        assert forwarded(bare_lab) - before > 10 * 50


def test_an_idle_host_does_not_write(bare_lab: Lab) -> None:
    """Once it is in sync, its status key is as it was, though its agent looks again and again."""
    Control(bare_lab).put("pools/web", {})
    with StatusWatch(bare_lab, "lb1") as status:
        bare_lab.start_agent("lb1")
        status.wait("traffic", lambda s: s["state"] == "synced" and s["traffic"] is not None, 20)
    key = "/tidegate/default/status/lb1"

    def revision() -> int:
        answer = json.loads(bare_lab.etcdctl("-w", "json", "get", key))
        return int(answer["kvs"][0]["mod_revision"])

    before = revision()
    bare_lab.client(1).run(["sleep", "12"])  # two looks, and a round of the links
    assert revision() == before
