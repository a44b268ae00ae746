# SPDX-License-Identifier: Apache-2.0
"""The agent on racks as fabrics are: unnumbered, dual-stack with one family missing, bridged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidegate.lab.agents import AgentProcess, config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import ROUTER
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=2)]

BACKENDS = {"b1", "b2"}
ROUTER_LL, LB_LL = "fe80::1", "fe80::2"


@pytest.fixture
def control(bare_lab: Lab) -> Control:
    """Give a control system that has written a VIP of each family, and a pool of IPv4 backends."""
    control = Control(bare_lab)
    control.put("pools/web", {"transition_window": 5, "deregistration_delay": 0})
    roster(bare_lab, control, 4)
    for vip in (bare_lab.vip4(), bare_lab.vip6()):
        document = {"address": str(vip), "port": 80, "protocol": "tcp", "pool": "web"}
        control.put(f"vips/web{vip.version}", document)
    return control


def roster(lab: Lab, control: Control, family: int) -> int:
    """Give all backends their addresses of a family; return the revision."""
    done = 0
    for name in BACKENDS:
        document = {"address": str(lab.address(name, family))}
        done = control.put(f"pools/web/backends/{name}", document).revision
    return done


def ip(lab: Lab, node: str, *commands: str) -> None:
    """Run `ip` on a node."""
    for command in commands:
        lab.node(node).run(["ip", *command.split()])


def configure(lab: Lab, change: Callable[[str], str]) -> Path:
    """Change the agent's file of lb1."""
    path = config_path(lab.spec, "lb1")
    path.write_text(change(path.read_text()))
    return path


def answers(lab: Lab, family: int) -> set[str]:
    """Return the backends that answer a client's requests to the VIP of a family."""
    host = str(lab.vip4()) if family == 4 else f"[{lab.vip6()}]"
    command = ["curl", "--silent", "--show-error", "--max-time", "3", f"http://{host}/"]
    return {lab.client(1).run(command).stdout.strip() for _ in range(12)}


def wait(agent: AgentProcess, status: StatusWatch, ready: bool, reason: str = "") -> dict[str, Any]:
    """Wait until the host says that it is ready, or why not."""
    try:
        return status.wait(
            f"ready {ready} {reason}",
            lambda s: s["ready"] is ready and reason in s["ready_reason"] and s["generation"] > 0,
            timeout=30,
        ).status
    except Exception as error:
        error.add_note(agent.tail(20))
        raise


def socket_says(lab: Lab) -> tuple[str, dict[str, Any]]:
    """Return the code and the body of the control socket's /ready."""
    socket = str(lab.folder("lb1") / "agent.sock")
    command = ["curl", "--silent", "--write-out", "\n%{http_code}", "--unix-socket", socket]
    said = lab.node("lb1").run([*command, "http://localhost/ready"]).stdout
    body, _, code = said.rpartition("\n")
    return code, json.loads(body)


def unnumber(lab: Lab) -> None:
    """Take the IPv4 addresses off lb1's link: its own is on the loopback, routes are RFC 8950's."""
    station = lab.station("lb1")
    own, uplink = station.address4(2), station.uplink
    ip(lab, ROUTER, f"addr add {ROUTER_LL}/64 dev {uplink} nodad")
    ip(lab, "lb1", f"addr add {LB_LL}/64 dev eth0 nodad", f"addr add {own}/32 dev lo")
    ip(lab, "lb1", f"addr del {own}/24 dev eth0", f"-6 addr del {station.address6(2)}/64 dev eth0")
    ip(lab, ROUTER, f"addr del {station.address4(1)}/24 dev {uplink}")
    ip(lab, "lb1", "-6 route flush default", f"-6 route add default via {ROUTER_LL} dev eth0")
    for to in ("10.99.0.0/24", f"{own}/32"):
        ip(lab, ROUTER, f"-4 route replace {to} via inet6 {LB_LL} dev {uplink}")
    ip(lab, ROUTER, f"-6 route replace fd99::/64 via {LB_LL} dev {uplink}")


def test_an_unnumbered_rack(bare_lab: Lab, control: Control, status: StatusWatch) -> None:
    """IPv4 packets leave by an IPv6 next hop; a changed route is followed."""
    unnumber(bare_lab)
    own = bare_lab.address("lb1")
    way = f"via inet6 {ROUTER_LL} dev eth0 src {own}"
    ip(bare_lab, "lb1", f"-4 route add default {way}")
    agent = bare_lab.start_agent("lb1")
    said = wait(agent, status, ready=True)
    assert said["state"] == "synced"
    assert f"gateway4={ROUTER_LL} " in agent.log.read_text()
    assert answers(bare_lab, 4) == BACKENDS
    assert answers(bare_lab, 6) == BACKENDS
    # Without a default route: etcd is reached, backends are not.
    ip(bare_lab, "lb1", f"-4 route add 10.77.1.0/24 {way}", "-4 route del default")
    wait(agent, status, ready=False, reason="eth0: no route for IPv4")
    assert socket_says(bare_lab)[0] == "503"
    configure(bare_lab, lambda text: text + f'\n[gateway]\nipv4 = "{ROUTER_LL}"\n')
    agent.reload()
    wait(agent, status, ready=True)
    assert answers(bare_lab, 4) == BACKENDS


def test_nexthop_objects_without_compatibility(
    bare_lab: Lab, control: Control, status: StatusWatch
) -> None:
    """As FRR makes them; of a replaced object the kernel tells, and no route changes."""
    node, station = bare_lab.node("lb1"), bare_lab.station("lb1")
    node.run(["sysctl", "-qw", "net.ipv4.nexthop_compat_mode=0"])
    ip(bare_lab, ROUTER, f"addr add {ROUTER_LL}/64 dev {station.uplink} nodad")
    ip(bare_lab, "lb1", f"nexthop add id 1 via {station.address4(1)} dev eth0")
    ip(bare_lab, "lb1", "nexthop add id 9 group 1", "-4 route replace default nhid 9")
    agent = bare_lab.start_agent("lb1")
    wait(agent, status, ready=True)
    assert answers(bare_lab, 4) == BACKENDS
    ip(bare_lab, "lb1", f"nexthop replace id 1 via {ROUTER_LL} dev eth0")
    status.wait("still ready", lambda s: s["ready"])
    assert answers(bare_lab, 4) == BACKENDS
    assert f"gateway4={ROUTER_LL} " in agent.log.read_text()


@pytest.mark.parametrize(("needed", "other"), [(4, 6), (6, 4)])
def test_the_family_of_the_backends_is_needed(
    bare_lab: Lab, control: Control, status: StatusWatch, needed: int, other: int
) -> None:
    """Not that of the VIP: 4 in 6 and 6 in 4 work without a route of the VIP's family."""
    station, file = bare_lab.station("lb1"), bare_lab.folder("lb1") / "ready"
    configure(bare_lab, lambda text: f'ready_file = "{file}"\n' + text)
    ip(bare_lab, "lb1", "-4 route add 10.77.1.0/24 via 10.77.21.1")  # etcd
    agent = bare_lab.start_agent("lb1")
    status.wait_applied(roster(bare_lab, control, needed))
    wait(agent, status, ready=True)
    gateways = {4: station.address4(1), 6: station.address6(1)}
    ip(bare_lab, "lb1", f"-{other} route del default")
    assert answers(bare_lab, 4) == answers(bare_lab, 6) == BACKENDS
    assert socket_says(bare_lab) == ("200", {"ready": True, "reason": ""})
    ip(bare_lab, "lb1", f"-{needed} route del default")
    said = wait(agent, status, ready=False, reason=f"eth0: no route for IPv{needed}")
    assert said["state"] == "degraded"
    assert "[gateway]" in said["ready_reason"]
    assert not file.exists()
    ip(bare_lab, "lb1", f"-{other} route add default via {gateways[other]}")
    status.wait_applied(roster(bare_lab, control, other))
    wait(agent, status, ready=True)
    assert answers(bare_lab, 4) == answers(bare_lab, 6) == BACKENDS


def test_a_next_hop_that_does_not_answer(
    bare_lab: Lab, control: Control, status: StatusWatch
) -> None:
    """The host is not ready, and names interface, family and next hop."""
    ip(bare_lab, "lb1", "-4 route add 10.77.1.0/24 via 10.77.21.1")
    ip(bare_lab, "lb1", "-4 route replace default via 10.77.21.66")
    agent = bare_lab.start_agent("lb1")
    said = wait(agent, status, ready=False, reason="IPv4 next hop 10.77.21.66 is not resolved")
    assert "does it answer ARP on eth0?" in said["ready_reason"]
    ip(bare_lab, ROUTER, f"addr add 10.77.21.66/24 dev {bare_lab.station('lb1').uplink}")
    wait(agent, status, ready=True)


def bridge(lab: Lab) -> None:
    """Move lb1's addresses and routes to a bridge of which its NIC is a port."""
    station = lab.station("lb1")
    ip(lab, "lb1", "link add br0 mtu 1600 type bridge", "link set eth0 master br0")
    ip(lab, "lb1", "addr flush dev eth0", "link set br0 up")
    ip(lab, "lb1", f"addr add {station.address4(2)}/24 dev br0")
    ip(lab, "lb1", f"addr add {station.address6(2)}/64 dev br0 nodad")
    for gateway in (station.address4(1), station.address6(1)):
        ip(lab, "lb1", f"-{gateway.version} route replace default via {gateway}")


@pytest.mark.parametrize(("interface", "mode"), [("br0", "generic"), ("eth0", "native")])
def test_a_bridge_and_a_port_of_one(
    bare_lab: Lab, control: Control, status: StatusWatch, interface: str, mode: str
) -> None:
    """The bridge in generic mode, or its port in native mode with the bridge's routes."""
    bridge(bare_lab)
    if mode == "generic":
        bare_lab.node("lb1").run(["ethtool", "-K", "eth0", "gro", "off"])
    edits = {'"native"': '"auto"', '"eth0"': f'"{interface}"'}
    configure(bare_lab, lambda text: replaced(text, edits))
    agent = bare_lab.start_agent("lb1")
    said = wait(agent, status, ready=True)
    assert said["interfaces"] == [{"name": interface, "mode": mode}]
    assert answers(bare_lab, 4) == answers(bare_lab, 6) == BACKENDS


def replaced(text: str, edits: dict[str, str]) -> str:
    for before, after in edits.items():
        text = text.replace(before, after)
    return text


def test_generic_mode_above_gro_is_refused(bare_lab: Lab) -> None:
    """The agent ends with the command that helps, and starts once it has been run."""
    bridge(bare_lab)
    node = bare_lab.node("lb1")
    edits = {'"native"': '"generic"', '"eth0"': '"br0"'}
    configure(bare_lab, lambda text: replaced(text, edits))
    agent = bare_lab.start_agent("lb1")
    assert agent.process.wait(30) == 2
    assert "ethtool -K eth0 gro off" in agent.tail()
    node.run(["ethtool", "-K", "eth0", "gro", "off"])
    agent.restart()
    with StatusWatch(bare_lab, "lb1") as status:
        status.wait("attached", lambda s: s["interfaces"] == [{"name": "br0", "mode": "generic"}])
        node.run(["ethtool", "-K", "eth0", "gro", "on"])
        seen = status.wait("a warning", lambda s: any("gro of eth0" in w for w in s["warnings"]))
    assert any("ethtool -K eth0 gro off" in w for w in seen.status["warnings"])


def test_routes_that_differ_are_a_warning(
    bare_lab: Lab, control: Control, status: StatusWatch
) -> None:
    """In the status, by the backends' names; all are reached through the one next hop."""
    uplink = bare_lab.station("lb1").uplink
    ip(bare_lab, ROUTER, f"addr add 10.77.21.66/24 dev {uplink}")
    ip(bare_lab, "lb1", f"-4 route add {bare_lab.address('b2')} via 10.77.21.66")
    agent = bare_lab.start_agent("lb1")
    wait(agent, status, ready=True)
    seen = status.wait("a warning", lambda s: any("web/b2" in w for w in s["warnings"]))
    assert seen.status["state"] == "synced"
    assert answers(bare_lab, 4) == BACKENDS
