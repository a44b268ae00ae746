# SPDX-License-Identifier: Apache-2.0
"""`tidegate simulate` on the real program: it prints what the kernel did."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fuzz.documents import desired
from support.packets.frames import ip4, ip6, tcp, udp
from support.packets.kernel import BUILD, LINK
from tidegate.cli.main import main
from tidegate.cli.simulate import run_frames
from tidegate.dataplane.inspect.capture import Writer, read
from tidegate.dataplane.inspect.simulation import Simulation
from tidegate.dataplane.kernel.programs import Build
from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import NOTHING
from tidegate.planner import plan
from tidegate.spec import Link, Verdict

pytestmark = pytest.mark.root

KEYS: dict[str, dict[str, Any]] = {
    "pools/web": {},
    "pools/web/backends/b1": {"address": "198.51.100.7"},
    "pools/web/backends/b2": {"address": "2001:db8::7", "weight": 50},
    "vips/www": {"address": "10.99.0.1", "port": 80, "protocol": "tcp", "pool": "web"},
    "vips/www6": {"address": "fd99::1", "port": 80, "protocol": "tcp", "pool": "web"},
    "vips/dns": {"address": "10.99.0.1", "port": 53, "protocol": "udp", "pool": "web"},
}
FRAMES = [
    b"",
    b"short",
    bytes(14),
    *(tcp(f, ip, sport=s) for s in range(40000, 40020) for ip in (ip4(), ip6()) for f in "SAA"),
    *(udp(sport=s) for s in range(40000, 40010)),
    tcp("S", dport=81),
    tcp("A", data="x" * 1460),
    tcp("S", ip4(len=41)),
    tcp("S")[:40],
    tcp("A", data="x" * 5000),
    tcp("A", dport=81, data="x" * 5000),
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    keys, capture = tmp_path / "keys.json", tmp_path / "frames.pcap"
    keys.write_text(json.dumps(KEYS))
    with Writer(capture) as writer:
        for number, frame in enumerate(FRAMES, 1):
            writer.write(number, frame)
    return keys, capture


def run(
    files: tuple[Path, Path], engine: str, capsys: pytest.CaptureFixture[str]
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Run one engine; return its lines and frames."""
    keys, capture = files
    out = keys.with_name(f"{engine}.pcap")
    arguments = ["--keys", str(keys), "--in", str(capture), "--out", str(out), "--json"]
    assert main(["simulate", "--engine", engine, *arguments]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return lines, [frame.data for frame in read(out)]


def test_all_engines_say_the_same(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Verdict, names, slot, decision and frame, from the program and from the specification."""
    kernel, spec, both = (run(files, engine, capsys) for engine in ("kernel", "spec", "both"))
    assert kernel == both
    assert kernel == spec
    assert len(kernel[0]) == len(FRAMES)
    assert {line["vip"] for line in kernel[0]} >= {None, "www", "www6", "dns"}
    assert {line["backend"] for line in kernel[0]} == {None, "b1", "b2"}
    assert {line["decision"] for line in kernel[0]} == {
        None,
        "syn",
        "current",
        "tracked",
        "datagram",
    }
    assert {line["reason"] for line in kernel[0]} == {None, "bad_length", "unserved"}


def test_nothing_is_left_behind(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Pins, descriptors and the thread's CPUs are as before."""

    def traces() -> tuple[list[str], int, set[int]]:
        pins = [
            path.name for path in Path("/sys/fs/bpf").glob(f"tidegate-simulate-{os.getpid()}-*")
        ]
        return pins, len(os.listdir("/proc/self/fd")), os.sched_getaffinity(0)  # noqa: PTH208

    run(files, "both", capsys)  # what is imported and cached stays
    before = traces()
    run(files, "both", capsys)
    assert traces() == before


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    link = Link(LINK.mac, LINK.gateway4, LINK.gateway4, 1500)
    found = Simulation(Build(b"x", BUILD.source4, BUILD.source6), link, compare=True)
    with found.kernel:
        found.install(plan(desired(KEYS), NOTHING, 1000))
        yield found


def test_both_tells_a_different_frame(simulation: Simulation) -> None:
    """A specification that believes in another MTU answers what the kernel sends on."""
    link = simulation.spec.state.links[1]
    simulation.spec.state.links = {1: link._replace(mtu=100)}
    outcome, faults = simulation.run(tcp("A", data="x" * 50))
    assert outcome.verdict is Verdict.TX
    assert outcome.slot is None  # the specification is no witness of what it did not see
    assert any(fault.startswith("spec  : TX") for fault in faults)
    assert any(fault.startswith("kernel: TX") for fault in faults)
    assert any("flows" in fault for fault in faults)


def test_both_tells_a_different_table(simulation: Simulation) -> None:
    """An entry that one side alone has is found, though no packet shows it."""
    assert simulation.run(tcp("A"))[1] == []
    entries = simulation.spec.state.flows.entries
    ((place, flow),) = entries.items()
    entries[place] = flow._replace(incarnation=7)
    _, faults = simulation.run(tcp("S", dport=81))
    assert [fault for fault in faults if "incarnation=7" in fault]


def test_both_tells_a_different_counter(simulation: Simulation) -> None:
    """Counters are compared after each frame."""
    simulation.spec.state.backend_packets[1] += 1
    assert any("backends[1]" in fault for fault in simulation.run(tcp("S", dport=81))[1])


def test_the_command_ends_with_1_at_a_difference(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], simulation: Simulation
) -> None:
    """The frame is named and both results are said."""
    link = simulation.spec.state.links[1]
    simulation.spec.state.links = {1: link._replace(mtu=50)}
    options = Namespace(capture=files[1], out=None, json=True)
    assert run_frames(options, simulation.run, list) == 1
    said = capsys.readouterr().err
    assert "kernel and spec differ at frame 4" in said
    assert "spec  : DROP too_big" in said


def test_what_the_kernel_did_is_read_from_its_counters(simulation: Simulation) -> None:
    """The specification is asked for the slot alone: without it everything else is there."""
    sent = simulation.kernel.run(tcp("S"))
    assert (sent.verdict, sent.vip, sent.decision) == (Verdict.TX, "www", Decision.SYN)
    assert sent.backend in simulation.kernel._names.backends.values()
    assert sent.slot is None
    dropped = simulation.kernel.run(tcp("S", ip4(len=41)))
    assert (dropped.verdict, dropped.reason) == (Verdict.DROP, Reason.BAD_LENGTH)
    answered = simulation.kernel.run(tcp("A", data="x" * 1460))
    assert (answered.verdict, answered.vip, answered.backend) == (Verdict.TX, "www", None)
    whole, _ = simulation.run(tcp("S"))
    assert replace(whole, slot=None) == sent


def test_without_privileges_it_says_what_to_do(files: tuple[Path, Path]) -> None:
    """One sentence, exit code 2, and the engine that needs none; that one then works."""
    keys, capture = files
    command = [
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        sys.executable,
        "-m",
        "tidegate.cli.main",
        "simulate",
        "--json",
        "--keys",
        str(keys),
        "--in",
        str(capture),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--engine spec" in done.stderr
    assert "Traceback" not in done.stderr
    command += ["--engine", "spec"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(FRAMES)
