# SPDX-License-Identifier: Apache-2.0
"""`tidegate decap` on a backend of the lab, with tunnelled datagrams from a client's host."""

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tidegate.lab.plan import NIC
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=1)]

OURS, STRANGER = "10.254.0.77", "10.253.0.77"

# Sends one tunnelled UDP datagram to a VIP and prints the backend's answer, or "silence". It runs
# on the client, so it is a script.
_DATAGRAM = """
import logging, socket, sys
logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.compat import raw
from scapy.layers.inet import IP, UDP
outer_source, outer, client, vip, gue = sys.argv[1:]
answer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
answer.settimeout(1)
answer.bind((client, 0))
inner = IP(src=client, dst=vip) / UDP(sport=answer.getsockname()[1], dport=7) / b"hi"
between = UDP(sport=50000, dport=int(gue)) if int(gue) else b""
outside = IP(src=outer_source, dst=outer, flags="DF", proto=17 if int(gue) else 4)
outside = outside / between / raw(inner) if int(gue) else outside / raw(inner)
sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
sender.sendto(raw(outside), (outer, 0))
try:
    print(answer.recv(100).decode().split()[0])
except TimeoutError:
    print("silence")
"""


@dataclass
class Backend:
    """A backend without a program, on which the command runs."""

    lab: Lab
    pins: Path

    def decap(self, command: str, *options: str, interface: str = NIC) -> "Done":
        """Run one command on the backend's host."""
        program = [sys.executable, "-m", "tidegate.cli.main", "decap", command, interface]
        where = ["--pin-dir", str(self.pins)]
        return self.lab.node("b1").run([*program, *where, *options], check=False)

    def status(self) -> dict[str, Any]:
        """Return what the command says of the interface."""
        found: dict[str, Any] = json.loads(self.decap("status", "--json").stdout)
        return found

    def counted(self) -> dict[str, int]:
        """Return the counters that are not 0."""
        return {name: count for name, count in self.status()["counters"].items() if count}

    def send(self, source: str = OURS, *, second: bool = False, gue: int = 0) -> str:
        """Return who answers a tunnelled datagram."""
        lab = self.lab
        arguments = [
            source,
            lab.address("b1", second=second),
            lab.address("client1"),
            lab.vip4(),
            gue,
        ]
        command = [sys.executable, "-c", _DATAGRAM, *map(str, arguments)]
        return lab.client(1).run(command).stdout.strip()


Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def lab_without_decap(shared_lab: Lab) -> Lab:
    """Give a lab whose backend has nothing that takes packets out of the tunnel."""
    shared_lab.node("b1").run(["ip", "link", "set", "dev", NIC, "xdp", "off"])
    return shared_lab


@pytest.fixture
def backend(lab_without_decap: Lab) -> Iterator[Backend]:
    pins = Path(f"/sys/fs/bpf/tgdecap-{secrets.token_hex(4)}")
    yield Backend(lab_without_decap, pins)
    lab_without_decap.node("b1").run(["ip", "link", "set", "dev", NIC, "xdp", "off"])
    shutil.rmtree(pins, ignore_errors=True)


def test_packets_come_out_of_the_tunnel_until_it_is_detached(backend: Backend) -> None:
    """Without a process that stays; and before and after, the backend gets nothing."""
    assert backend.send() == "silence"
    done = backend.decap("attach")
    assert (done.returncode, done.stderr) == (0, "")
    assert backend.send() == "b1"
    assert backend.send(gue=6080) == "b1"
    assert backend.counted() == {"ipip": 1, "gue_over_four": 1}
    assert backend.decap("detach").returncode == 0
    assert backend.send() == "silence"
    assert not any(backend.pins.iterdir())


def test_addresses_sources_and_port_are_what_it_accepts(backend: Backend) -> None:
    """What is not for our address passes, what is not from our balancers is dropped."""
    address = str(backend.lab.address("b1"))
    options = ["--address", address, "--source", "10.254.0.0/16", "--source", "fd54::/64"]
    assert backend.decap("attach", *options, "--gue-port", "5555").returncode == 0
    assert backend.send() == "b1"
    assert backend.send(STRANGER) == "silence"
    assert backend.send(second=True) == "silence"
    assert backend.send(gue=5555) == "b1"
    assert backend.send(gue=6080) == "silence"
    status = backend.status()
    assert backend.counted() == {
        "ipip": 1,
        "gue_over_four": 1,
        "bad_source": 1,
        "other_destination": 1,
    }
    assert status["attached"] == "native"
    assert (status["addresses"], status["gue_port"]) == ([address], 5555)
    assert status["sources"] == ["10.254.0.0/16", "fd54::/64"]
    text = backend.decap("status").stdout
    assert "bad_source" in text
    assert "10.254.0.0/16, fd54::/64" in text


def test_a_program_without_pins_is_found(backend: Backend) -> None:
    """What it accepts and has counted is shown as before, and it can be detached."""
    assert backend.decap("attach", "--source", "10.254.0.0/16").returncode == 0
    assert backend.send() == "b1"
    before = backend.status()
    shutil.rmtree(backend.pins)
    other = Backend(backend.lab, backend.pins.with_name(f"{backend.pins.name}-other"))
    assert other.decap("detach").returncode == 2  # it names another folder as its owner
    assert backend.status() == before
    shutil.rmtree(backend.pins)
    assert backend.decap("attach").returncode == 0
    assert backend.send(STRANGER) == "b1"
    shutil.rmtree(backend.pins)
    assert backend.decap("detach").returncode == 0
    assert backend.send() == "silence"
    shutil.rmtree(other.pins)


def test_a_second_attach_takes_the_place_of_the_first(backend: Backend) -> None:
    """With what it accepts now, and counters of its own."""
    assert backend.decap("attach", "--source", "10.253.0.0/16").returncode == 0
    assert backend.send() == "silence"
    assert backend.decap("attach", "--source", "10.254.0.0/16").returncode == 0
    assert backend.send() == "b1"
    assert backend.counted() == {"ipip": 1}
    assert [path.name for path in (backend.pins / NIC).iterdir()] == ["now"]


def test_a_crash_in_the_middle_is_mended_by_the_next_attach(backend: Backend) -> None:
    """The program was attached, its folder not yet renamed: it is known as ours all the same."""
    assert backend.decap("attach").returncode == 0
    (backend.pins / NIC / "now").rename(backend.pins / NIC / "next")
    assert backend.status()["attached"] == "native"
    assert backend.decap("attach").returncode == 0
    assert backend.send() == "b1"
    assert [path.name for path in (backend.pins / NIC).iterdir()] == ["now"]


def test_somebody_elses_program_stays(backend: Backend) -> None:
    """It is named by its id, and neither replaced nor taken off."""
    other = Backend(backend.lab, backend.pins / "other")
    assert other.decap("attach").returncode == 0
    for command in ("attach", "detach"):
        done = backend.decap(command)
        assert done.returncode == 2
        assert "has an XDP program that `tidegate decap` did not attach" in done.stderr
    assert "another XDP program is there" in backend.decap("status").stdout
    assert other.send() == "b1"
    assert other.decap("detach").returncode == 0


def test_what_cannot_be_done_is_said(backend: Backend) -> None:
    """Exit code 1 where it is not attached, 2 for what is wrong, with a sentence."""
    for command, says in (("status", "not attached"), ("detach", "was not attached")):
        done = backend.decap(command)
        assert (done.returncode, says in done.stdout) == (1, True)
    missing = backend.decap("attach", interface="nothing0")
    assert (missing.returncode, missing.stderr) == (
        2,
        "tidegate: there is no interface 'nothing0'\n",
    )
    assert "is not a prefix" in backend.decap("attach", "--source", "10.254.0.1/16").stderr
    assert "is not an IP address" in backend.decap("attach", "--address", "b1").stderr
