# SPDX-License-Identifier: Apache-2.0
"""`tidegate events` beside the real program: what it prints, and that it is alone."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest

from support.documents.roster import VIP4, VIP6, backend, desired, vip
from support.packets.frames import CLIENT4, ip4, ip6, tcp, udp
from support.packets.kernel import Kernel
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.model.generation import NOTHING
from tidegate.planner import plan
from tidegate.spec.events import RATE

pytestmark = pytest.mark.root

PINNED = ("events", "event_counts", "ledger", "wide_ledger")
DENIED = "10.77.0.200"


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """Give a program whose maps are pinned as an agent pins them, and that samples all flows."""
    vips = [
        vip("web", VIP4, flow_sampling=65536, deny=(ip_network("10.77.0.128/25"),)),
        vip("dns", VIP6, 53, "udp", flow_sampling=65536),
    ]
    with Kernel() as made:
        made.install(plan(desired(vips, [backend("b1")]), NOTHING, 1000))
        for name in PINNED:
            bpf.pin(made.maps[name], str(made.pins / name))
        yield made


def command(pins: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "tidegate.cli.main",
        "events",
        "--pin-dir",
        str(pins),
        *options,
    ]


def run(arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)


@dataclass
class Running:
    """The command while it runs, and the files that its output is in."""

    process: "subprocess.Popen[bytes]"
    out: Path
    errors: Path


@contextmanager
def running(folder: Path, arguments: Sequence[str]) -> Iterator[Running]:
    """Run the command for as long as the body takes."""
    out, errors = folder / "out", folder / "errors"
    with (
        out.open("w") as stdout,
        errors.open("w") as stderr,
        subprocess.Popen(arguments, stdout=stdout, stderr=stderr) as process,
    ):
        try:
            yield Running(process, out, errors)
        finally:
            process.terminate()


def wait_for(file: Path, text: str) -> str:
    """Wait until a file contains this, and return all of it."""
    deadline = time.monotonic() + 60
    while text not in (found := file.read_text()):
        assert time.monotonic() < deadline, found[-500:]
        time.sleep(0.05)
    return found


def test_it_prints_what_happened_before_with_names_and_times(kernel: Kernel) -> None:
    """Oldest first, and with a time that is the wall clock's."""
    frames = (tcp("S"), tcp("A"), tcp("FA"), tcp("S", ip4(DENIED)), udp(ip6()))
    for frame in frames:
        kernel.run(frame)
    done = run(command(kernel.pins, "--json", "-n", "6"))
    assert (done.returncode, done.stderr) == (0, "")
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in printed] == [
        "new",
        "promoted",
        "finished",
        "dropped",
        "new",
        "promoted",
    ]
    assert {event["vip"] for event in printed[:4]} == {"web"}
    first = printed[0]
    assert (first["pool"], first["backend"], first["decision"]) == ("web", "b1", "syn")
    assert (first["source"], first["source_port"]) == (CLIENT4, 40000)
    assert (first["destination"], first["port"], first["protocol"]) == (VIP4, 80, "tcp")
    assert (printed[3]["reason"], printed[3]["backend"]) == ("denied", None)
    assert (printed[4]["vip"], printed[4]["destination"]) == ("dns", VIP6)
    age = datetime.now(UTC) - datetime.fromisoformat(first["time"])
    assert timedelta(0) <= age < timedelta(minutes=2)


def test_it_goes_on_while_events_come(kernel: Kernel, tmp_path: Path) -> None:
    """A line per event, readable, at once."""
    with running(tmp_path, command(kernel.pins, "-n", "2")) as reader:
        kernel.run(tcp("S"))
        line = wait_for(reader.out, "\n")
        kernel.run(tcp("S", ip4(DENIED)))
        assert reader.process.wait(60) == 0
    _, _, printed = line.partition("Z new      ")
    assert printed.startswith(f"web tcp {CLIENT4}:40000 > {VIP4}:80 backend=web/b1 slot=")
    assert "generation=1 decision=syn" in printed
    last = reader.out.read_text().splitlines()[-1]
    assert " dropped  web tcp " in last
    assert last.endswith("reason=denied")


def test_there_is_one_reader(kernel: Kernel, tmp_path: Path) -> None:
    """The second one says so and ends; when the first has ended, the next one reads."""
    with running(tmp_path, command(kernel.pins)) as first:
        kernel.run(tcp("S"))
        wait_for(first.out, " new ")
        second = run(command(kernel.pins))
    assert second.returncode == 2
    assert "one reader at a time" in second.stderr
    kernel.run(tcp("S", sport=40001))
    assert run(command(kernel.pins, "-n", "1")).returncode == 0


def test_losses_are_said(kernel: Kernel, tmp_path: Path) -> None:
    """Whoever reads a trace must know that it has gaps."""
    with running(tmp_path, command(kernel.pins)) as reader:
        kernel.run(tcp("S"))
        wait_for(reader.out, " new ")
        bpf.run(kernel.program, tcp("S", ip4(DENIED)), repeat=3 * RATE)
        wait_for(reader.errors, "events were lost: above the limit per CPU")


def test_without_sampling_it_says_why_nothing_comes(kernel: Kernel, tmp_path: Path) -> None:
    """And a folder without pins is named."""
    silent = desired([vip("web", VIP4)], [backend("b1")])
    kernel.install(plan(silent, kernel.publisher.in_force, 1001))
    with running(tmp_path, command(kernel.pins)) as reader:
        wait_for(reader.errors, "flow_sampling above 0")
    missing = run(command(kernel.pins / "tables"))
    assert missing.returncode == 2
    assert "there is no data plane in" in missing.stderr
