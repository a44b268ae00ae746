# SPDX-License-Identifier: Apache-2.0
"""The lab by itself, without an agent: what the demo and the other tests take for granted."""

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.errors import LabError
from tidegate.lab import netns, state
from tidegate.lab.plan import ECHO_PORT, OUTER4, OUTER6, STATE_ROOT, LabSpec
from tidegate.lab.rack import Lab
from tidegate.lab.traffic import Traffic

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=2, lbs=2)]

# Sends one encapsulated UDP datagram, made by Scapy, out of the client's interface and prints what
# comes back to a plain socket. Scapy runs on the client, so it is a script.
_DATAGRAM = """
import logging, socket, sys
logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.all import IP, IPv6, UDP, Raw, raw
outer_source, outer, client, vip = sys.argv[1:]
family = socket.AF_INET6 if ":" in vip else socket.AF_INET
answer = socket.socket(family, socket.SOCK_DGRAM)
answer.settimeout(5)
answer.bind((client, 0))
port = answer.getsockname()[1]
inner = (IPv6 if ":" in vip else IP)(src=client, dst=vip) / UDP(sport=port, dport=7) / Raw(b"hi")
outside = (IPv6 if ":" in outer else IP)(src=outer_source, dst=outer) / inner
sender = socket.socket(
    socket.AF_INET6 if ":" in outer else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW
)
sender.sendto(raw(outside), (outer, 0))
data, source = answer.recvfrom(100)
print(data.decode(), source[0], source[1])
"""


def random_name() -> str:
    return f"t{secrets.token_hex(4)}"


def http(lab: Lab, backend: str, url: str) -> str:
    """Return what a backend's own host gets from its nginx."""
    script = f"import urllib.request as u; print(u.urlopen('{url}', timeout=5).read().decode())"
    return lab.node(backend).run([sys.executable, "-c", script]).stdout.strip()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("client", ["client1", "client2"])
def test_clients_reach_every_node_over_both_families(
    shared_lab: Lab, client: str, family: int
) -> None:
    """Both clients reach the control node, the LB hosts and both addresses of each backend."""
    targets = [shared_lab.address(name, family) for name in ("ctl", "lb1", "lb2", "b1", "b2")]
    targets += [shared_lab.address(name, family, second=True) for name in ("b1", "b2")]
    for target in targets:
        shared_lab.node(client).run(["ping", "-n", "-c1", "-W2", str(target)])


def test_an_encapsulated_full_packet_fits_the_rack(shared_lab: Lab) -> None:
    """LB hosts reach backends with packets of 1540 bytes that must not be fragmented."""
    size = 1540 - 20 - 8
    target = str(shared_lab.address("b1"))
    shared_lab.node("lb1").run(["ping", "-n", "-c1", "-W2", "-M", "do", "-s", str(size), target])


def test_nginx_answers_on_the_vips_and_nowhere_else(shared_lab: Lab) -> None:
    """Each backend serves HTTP on both VIPs under its own name, and not on its own address."""
    for name in ("b1", "b2"):
        assert http(shared_lab, name, f"http://{shared_lab.vip4()}/") == name
        assert http(shared_lab, name, f"http://[{shared_lab.vip6()}]/") == name
        with pytest.raises(LabError, match="refused"):
            http(shared_lab, name, f"http://{shared_lab.address(name)}/")


def test_every_line_of_a_download_names_its_backend(shared_lab: Lab) -> None:
    """A long download consists of numbered lines with the backend's name."""
    lines = http(shared_lab, "b2", f"http://{shared_lab.vip4()}/bulk").splitlines()
    assert [line.rstrip(".") for line in lines] == [f"b2 {n:08d} " for n in range(2000)]


@pytest.mark.parametrize(
    ("outer", "inner"), [(4, 4), (6, 6), (6, 4)], ids=["IPIP", "IP6IP6", "IP4IP6"]
)
def test_backends_take_tunnelled_packets_and_answer_the_client(
    shared_lab: Lab, outer: int, inner: int
) -> None:
    """A datagram for the VIP in an outer header is answered from the VIP, past the LB hosts."""
    vip = shared_lab.vip4() if inner == 4 else shared_lab.vip6()
    source = OUTER4[77] if outer == 4 else OUTER6[77]
    arguments = [source, shared_lab.address("b2", outer), shared_lab.address("client1", inner), vip]
    command = [sys.executable, "-c", _DATAGRAM, *map(str, arguments)]
    assert shared_lab.client(1).run(command).stdout.split() == [
        "b2",
        "hi",
        str(vip),
        str(ECHO_PORT),
    ]


def test_a_vip_can_be_added(shared_lab: Lab) -> None:
    """All backends serve a VIP that was added while they run."""
    vip = shared_lab.vip4(7)
    shared_lab.add_vip(vip)
    assert [http(shared_lab, name, f"http://{vip}/") for name in ("b1", "b2")] == ["b1", "b2"]


def test_etcd_is_real_and_reachable_from_the_lb_hosts(shared_lab: Lab) -> None:
    """What etcdctl writes on the control node is read on an LB host over the network."""
    shared_lab.etcdctl("put", "/some/key", "some value")
    endpoint = f"--endpoints=http://{shared_lab.address('ctl')}:2379"
    read = shared_lab.node("lb2").run(
        ["etcdctl", endpoint, "get", "/some/key", "--print-value-only"]
    )
    assert read.stdout.strip() == "some value"


def test_a_cut_link_is_silent_and_comes_back(shared_lab: Lab) -> None:
    """A backend whose link is cut answers nothing; plugged in again it does, in both families."""
    addresses = [str(shared_lab.address("b1", family)) for family in (4, 6)]
    shared_lab.set_link("b1", up=False)
    try:
        for address in addresses:
            ping = ["ping", "-n", "-c1", "-W1", address]
            assert shared_lab.client(1).run(ping, check=False).returncode != 0
    finally:
        shared_lab.set_link("b1", up=True)
    for address in addresses:
        shared_lab.client(1).run(["ping", "-n", "-c3", "-i0.2", "-W2", address])


def test_a_killed_http_server_refuses_and_starts_again(shared_lab: Lab) -> None:
    """A backend without its nginx refuses connections until it is started again."""
    url = f"http://{shared_lab.vip4()}/"
    shared_lab.stop_http("b1")
    with pytest.raises(LabError, match="refused"):
        http(shared_lab, "b1", url)
    shared_lab.start_http("b1")
    assert http(shared_lab, "b1", url) == "b1"


def route_vips_to(lab: Lab, backend: str) -> None:
    """Have the router send all VIP traffic to one backend, past the LB hosts."""
    router = lab.node("router")
    router.run(["ip", "route", "replace", "10.99.0.0/24", "via", str(lab.address(backend))])
    router.run(["ip", "-6", "route", "flush", "fd99::/64"])
    router.run(["ip", "-6", "route", "add", "fd99::/64", "via", str(lab.address(backend, 6))])


@pytest.mark.lab(backends=2)
def test_the_load_notices_connections_that_change_their_backend(bare_lab: Lab) -> None:
    """If traffic moves to another backend, open downloads and short connections count as reset.

    The same counters must say nothing as long as it does not move.
    """
    lab = bare_lab
    targets = [f"{lab.vip4()}:80", f"[{lab.vip6()}]:80"]
    route_vips_to(lab, "b1")
    with Traffic(lab, targets, rate=100, dwell=0.5, downloads=3, seconds=30) as traffic:
        before = traffic.wait(
            lambda now: now.downloads == 12 and now.completed > 50, 15, "12 downloads"
        )
        sent = lab.tcp_counter("b2", "OutRsts")
        assert (before.failed, before.reset, before.moved, traffic.troubles) == (0, 0, 0, [])
        assert all(set(share) == {"b1"} for share in before.shares.values())
        route_vips_to(lab, "b2")

        def ended() -> int:
            return sum(one.kind == "download" for one in traffic.troubles)

        # A download is noticed at the client's next acknowledgement: within a second.
        traffic.wait(
            lambda now: ended() >= 12 and now.downloads == 12, 15, "12 resets, 12 new downloads"
        )
        totals = traffic.finish()
    downloads = [one for one in traffic.troubles if one.kind == "download"]
    assert len(downloads) == 12
    assert {(one.how, one.backend) for one in downloads} == {("reset", "b1")}
    assert {one.kind for one in traffic.troubles} == {"download", "short"}
    assert lab.tcp_counter("b2", "OutRsts") - sent >= 12
    assert all(set(share) == {"b1", "b2"} for share in totals.shares.values())
    assert totals.downloads == 12


def test_exec_and_status_find_a_running_lab(shared_lab: Lab) -> None:
    """The command line runs a command on a node, and lists nodes with their processes."""
    tidegate = [sys.executable, "-m", "tidegate.cli.main", "lab"]
    name = ["--name", shared_lab.spec.name]
    run = subprocess.run(
        [*tidegate, "exec", *name, "b2", "--", "ip", "-brief", "address"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert str(shared_lab.address("b2")) in run.stdout
    run = subprocess.run(
        [*tidegate, "exec", *name, "b2", "--", "readlink", "/proc/self/ns/mnt"],
        check=True,
        capture_output=True,
        text=True,
    )
    # Mounts are not those of another namespace, or /sys/fs/bpf would be hidden.
    assert run.stdout.strip() == str(Path("/proc/self/ns/mnt").readlink())
    run = subprocess.run([*tidegate, "status", *name, "--json"], check=True, capture_output=True)
    nodes = {node["name"]: node for node in json.loads(run.stdout)["nodes"]}
    assert set(nodes) == {"router", "ctl", "client1", "client2", "lb1", "lb2", "b1", "b2"}
    assert any("nginx" in process["command"] for process in nodes["b1"]["processes"])


def test_an_unknown_node_and_an_unknown_lab_are_named(shared_lab: Lab) -> None:
    """Errors say what was asked for and what there is."""
    with pytest.raises(LabError, match=r"no node 'b9'; it has router, ctl, client1"):
        shared_lab.node("b9")
    with pytest.raises(LabError, match=f"no lab 'absent'.*{shared_lab.spec.name}.*tidegate lab up"):
        Lab.attach("absent")


def test_a_lab_in_use_is_not_taken_over(shared_lab: Lab) -> None:
    """Another owner is refused; the message names the process that holds the lab."""
    command = [
        sys.executable,
        "-m",
        "tidegate.cli.main",
        "lab",
        "down",
        "--name",
        shared_lab.spec.name,
    ]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 2
    assert f"in use by process {os.getpid()}" in run.stderr


def remains(spec: LabSpec) -> tuple[list[str], dict[int, str], bool]:
    """Namespaces, processes and files of a lab."""
    namespaces = netns.named(spec.prefix)
    files = spec.folder.exists() or (STATE_ROOT / f"{spec.name}.lock").exists()
    return namespaces, netns.processes(namespaces), files


def test_down_leaves_nothing() -> None:
    """After its removal no namespace, process or file of a lab is left, also if removed twice."""
    spec = LabSpec(name=random_name(), backends=1)
    with Lab(spec) as lab:
        pids = netns.processes(netns.named(spec.prefix))
        assert len(pids) >= 4  # etcd, nginx and its worker, echo
    assert remains(spec) == ([], {}, False)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert lab.down() is False


def test_a_lab_whose_owner_was_killed_can_be_built_again() -> None:
    """Leftovers of an owner that got SIGKILL are removed by the next one of the same name."""
    spec = LabSpec(name=random_name(), backends=1)
    script = (
        "import sys\n"
        "from tidegate.lab.rack import Lab, LabSpec\n"
        f"with Lab(LabSpec(name={spec.name!r}, backends=1)):\n"
        "    print('up', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    orphans = netns.processes(netns.named(spec.prefix))
    assert len(orphans) >= 4
    with Lab(spec) as lab:
        assert http(lab, "b1", f"http://{lab.vip4()}/") == "b1"
        assert not set(orphans) & set(netns.processes(netns.named(spec.prefix)))
    assert remains(spec) == ([], {}, False)


def test_names_of_labs_do_not_overlap() -> None:
    """Removing a lab leaves one whose name starts with the same letters alone."""
    short = LabSpec(name=random_name()[:6], backends=1)
    longer = LabSpec(name=f"{short.name}x", backends=1)
    with Lab(longer) as lab:
        assert state.erase(short) is False
        assert http(lab, "b1", f"http://{lab.vip4()}/") == "b1"
