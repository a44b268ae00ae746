# SPDX-License-Identifier: Apache-2.0
"""`tidegate agent remove` claims what it did, and nothing else."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.crash.commands import file_of, run
from support.crash.host import Host
from tidegate.dataplane.kernel import programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.compiler import compile_program
from tidegate.dataplane.kernel.loader import load
from tidegate.dataplane.kernel.owner import Owner
from tidegate.lab import netns

pytestmark = pytest.mark.root


@pytest.fixture
def host() -> Iterator[Host]:
    built = Host("lb0", "lb1")
    yield built
    built.close()


def opened(host: Host, **settings: object) -> None:
    """Set a data plane up, as an agent does that ends."""
    with netns.entered(host.name):
        host.open(owner=Owner("test", "lb1"), **settings).close()


def removed(host: Host, file: Path) -> tuple[int, dict[str, str]]:
    """Run the command; return its exit code, and the result of each part."""
    done = run(host, f"tidegate agent remove --json -c {file}")
    assert done.returncode in (0, 1), done.stderr
    parts = json.loads(done.stdout)
    return done.returncode, {f"{each['part']} {each['of']}": each["result"] for each in parts}


def results(host: Host, lb0: str, lb1: str, pins: str, filters: str = "absent") -> dict[str, str]:
    """Return what `removed` has to say."""
    return {
        "program lb0": lb0,
        "filter lb0": filters,
        "program lb1": lb1,
        "filter lb1": filters,
        f"pins {host.pins}": pins,
    }


def test_each_part_is_reported(host: Host, tmp_path: Path) -> None:
    """Detached and removed at first; then nothing was there, which is no failure."""
    file = file_of(host, tmp_path)
    opened(host, probe_tunnel=True)
    expected = results(host, "removed", "removed", "removed", "removed")
    assert removed(host, file) == (0, expected)
    assert (host.attached(), host.attached("lb1"), host.pins.exists()) == (None, None, False)
    assert removed(host, file) == (0, results(host, "absent", "absent", "absent"))


def test_a_program_without_pins_is_removed(host: Host, tmp_path: Path) -> None:
    """It is known by its owner."""
    opened(host)
    shutil.rmtree(host.pins)
    assert removed(host, file_of(host, tmp_path)) == (
        0,
        results(host, "removed", "removed", "absent"),
    )
    assert host.attached() is host.attached("lb1") is None


def test_what_the_file_names_no_more_is_removed_too(host: Host, tmp_path: Path) -> None:
    """The program was attached to two interfaces, and the file has one of them left."""
    opened(host)
    host.interfaces = ("lb0",)
    expected = results(host, "removed", "removed", "removed")
    assert removed(host, file_of(host, tmp_path)) == (0, expected)
    assert host.attached() is host.attached("lb1") is None


def test_a_foreign_program_is_left_and_named(host: Host, tmp_path: Path) -> None:
    """By text with its number, and by the exit code."""
    file = file_of(host, tmp_path)
    opened(host, interfaces=["lb0"])
    fd = load(compile_program("pass"), {})
    with netns.entered(host.name):
        programs.attach(fd, "lb1", "generic")
    text = run(host, f"tidegate agent remove -c {file}")
    assert text.returncode == 1
    assert "lb0: program detached" in text.stdout
    named = f"the XDP program 'pass' (id {bpf.object_id(fd)}), which is not Tidegate's"
    assert f"lb1: left alone: {named}" in text.stdout
    assert "pins removed" in text.stdout
    assert host.attached("lb1") == bpf.object_id(fd)
    assert removed(host, file) == (1, results(host, "absent", "foreign", "absent"))
    os.close(fd)


def test_another_tidegates_program_is_left(host: Host, tmp_path: Path) -> None:
    """Its owner has another name: it goes with its own agent's file only."""
    opened(host)
    other = file_of(host, tmp_path, host="lb2", pin_dir=f"{host.pins}-2")
    before = host.attached()
    done = run(host, f"tidegate agent remove -c {other}")
    assert done.returncode == 1
    assert "host 'lb1' of fleet 'test'" in done.stdout
    assert host.attached() == before
    assert host.pins.exists()


def test_an_interface_that_is_gone_holds_nothing_up(host: Host, tmp_path: Path) -> None:
    """Nothing of ours can be on it: the rest is removed."""
    opened(host)
    assert run(host, "ip link delete lb1").returncode == 0
    assert removed(host, file_of(host, tmp_path)) == (
        0,
        results(host, "removed", "absent", "removed"),
    )


def test_a_running_agent_is_not_removed_under(host: Host, tmp_path: Path) -> None:
    """It would put everything back: nothing is touched, and the reason says what to do."""
    with netns.entered(host.name):
        plane = host.open()
    before = host.attached()
    done = run(host, f"tidegate agent remove -c {file_of(host, tmp_path)}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "stop it first" in done.stderr
    assert host.attached() == before
    plane.close()


def test_pins_that_stay_are_no_success(host: Host, tmp_path: Path) -> None:
    """The text names the one that could not be removed; the programs are off all the same."""
    opened(host)
    held = host.pins / "owner"
    subprocess.run(["mount", "--bind", "/dev/null", str(held)], check=True)
    try:
        done = run(host, f"tidegate agent remove -c {file_of(host, tmp_path)}")
    finally:
        subprocess.run(["umount", str(held)], check=True)
    assert done.returncode == 1
    assert f"{host.pins}: pins not removed: {held}: Device or resource busy" in done.stdout
    assert host.attached() is host.attached("lb1") is None
