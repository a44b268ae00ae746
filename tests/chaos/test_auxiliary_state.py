# SPDX-License-Identifier: Apache-2.0
"""What an agent keeps on disk beside its job, damaged in every way: it starts, and says by name.

Its journal, ready file, control socket and pipe to ExaBGP. It runs with the capabilities of its
unit: root without the right to read what is somebody else's. Nothing is written through a link.
"""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest

from tidegate.lab.agents import AgentProcess, config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import LabSpec
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

HOST, SOMEBODY = "lb1", 65534
UNIT = ["setpriv", "--bounding-set=-all,+bpf,+net_admin,+perfmon", "--no-new-privs"]
JOURNAL_FILE = "state/journal/00000007.jsonl"
READY, READY_FRESH, SOCKET, PIPE = "ready", ".ready.fresh", "agent.sock", "exabgp"
FILES = (JOURNAL_FILE, READY, READY_FRESH, SOCKET, PIPE)
KEPT = "what somebody else has written"


def _huge(path: Path, _: Path) -> None:
    with path.open("wb") as opened:
        opened.truncate(1 << 40)


def _foreign(path: Path, _: Path) -> None:
    path.write_text("x")
    os.chown(path, SOMEBODY, SOMEBODY)
    path.chmod(0)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "corrupt": lambda path, _: path.write_bytes(bytes(range(256)) * 40),
    "empty": lambda path, _: path.write_bytes(b""),
    "huge": _huge,
    "foreign": _foreign,
    "link": lambda path, victim: path.symlink_to(victim),
    "folder": lambda path, _: path.mkdir(),
    "pipe": lambda path, _: os.mkfifo(path),
}
REPLACED = {READY, READY_FRESH}
"""Unless a folder stands there they are made anew, whatever they were."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab for all cases; its agents are started by them, one after another on one data plane."""
    with Lab(LabSpec(name=f"x{secrets.token_hex(4)}", backends=1)) as built:
        yield built


@pytest.fixture
def place(lab: Lab) -> Iterator[Path]:
    """The folder of all that the agent keeps, and its file, which says so."""
    folder = lab.folder(HOST) / f"kept-{secrets.token_hex(4)}"
    (folder / "state" / "journal").mkdir(parents=True)
    config, own = config_path(lab.spec, HOST), lab.folder(HOST)
    before = config.read_text()
    text = before.replace(f'"{own}/agent.sock"', f'"{folder / SOCKET}"')
    text = text.replace(f'"{own}/state"', f'"{folder}/state"')
    text = text.replace("[etcd]", f'ready_file = "{folder / READY}"\n\n[etcd]')
    announce = f'exabgp_pipe = "{folder / PIPE}"\nhold = 0.0\nwithdraw_on_stop = false\n'
    config.write_text(f"{text}\n[announce]\n{announce}")
    yield folder
    config.write_text(before)
    shutil.rmtree(folder)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small file system of its own at a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Run:
    """An agent that came into force on what it found, and what it said of that."""

    def __init__(self, lab: Lab, *through: str) -> None:
        self._lab = lab
        self.log = lab.folder(HOST) / f"{secrets.token_hex(4)}.log"
        config = config_path(lab.spec, HOST)
        run = [sys.executable, "-m", "tidegate.cli.main", "agent", "run", "-c", str(config)]
        process = lab.node(HOST).daemon([*UNIT, *through, *run], self.log)
        self.agent = AgentProcess(lab.node(HOST), config, self.log, process)
        lab.agents[HOST] = self.agent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.agent.kill()

    def warnings(self, *wanted: Path | str) -> str:
        """Publish a change; return the status's warnings once these are named in it."""
        document: dict[str, Any] = {"mtu": 1400 + secrets.randbelow(10_000)}
        with StatusWatch(self._lab, HOST) as watch:
            revision = Control(self._lab).put("pools/web", document).revision

            def says_all(status: dict[str, Any]) -> bool:
                said = "\n".join(status["warnings"])
                is_in_force = status["generation_revision"] >= revision
                return is_in_force and all(str(each) in said for each in wanted)

            seen = watch.wait(f"{revision} in force and {wanted}", says_all, 60)
        assert not seen.status["refusals"]
        return "\n".join(seen.status["warnings"])

    def end(self) -> None:
        """Ask it to end, which it does as any other."""
        assert self.agent.terminate() == 0, self.agent.tail()
        assert "Traceback" not in self.log.read_text()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_stop_no_start(lab: Lab, place: Path, damage: str) -> None:
    """All of them at once: set aside, made anew or left, each by name; no link is written to."""
    victim = place / "victim"
    victim.write_text(KEPT)
    for name in FILES:
        DAMAGES[damage](place / name, victim)
    left = {SOCKET, PIPE} | (REPLACED if damage == "folder" else set())
    with Run(lab) as run:
        run.warnings(*(place / name for name in left - {READY_FRESH}))
        if damage != "folder":
            assert (place / READY).read_text().startswith("generation ")
            assert not (place / READY).is_symlink()
        aside = place / f"{JOURNAL_FILE}.unusable"
        assert aside.exists() or aside.is_symlink()
        assert f"{aside.name}" in run.log.read_text()
        run.end()
    assert victim.read_text() == KEPT
    journal = [each for each in aside.parent.glob("*.jsonl") if each.stat().st_size]
    assert len(journal) == 1  # it is written again, beside what was set aside


def _file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def _dangling(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent / "nowhere" / "at all")


def _closed(folder: Path) -> None:
    os.chown(folder, SOMEBODY, SOMEBODY)
    folder.chmod(0)


@pytest.mark.parametrize("where", ["state", "state/journal"])
@pytest.mark.parametrize("damage", [_file, _dangling, _closed], ids=lambda each: each.__name__[1:])
def test_a_damaged_folder_stops_no_start(
    lab: Lab, place: Path, where: str, damage: Callable[[Path], None]
) -> None:
    """The journal is not written then; all else works, and a warning names the folder."""
    damage(place / where)
    with Run(lab) as run:
        run.warnings(place / "state" / "journal")
        run.end()
    assert not (place / "nowhere").exists()


@pytest.mark.parametrize("damage", ["full", "read-only"])
def test_a_disk_that_takes_nothing_stops_no_start(lab: Lab, place: Path, damage: str) -> None:
    """Full to its last file, or read-only: each thing that cannot be written is named."""
    with mounted(place, "size=64k,nr_inodes=8"):
        (place / "state" / "journal").mkdir(parents=True)
        if damage == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        else:
            _fill(place)
        with Run(lab) as run:
            run.warnings(place / "state/journal", place / READY, place / SOCKET, place / PIPE)
            run.end()


def _fill(folder: Path) -> None:
    """Take all bytes, then all names."""
    with suppress(OSError), (folder / "all").open("wb", 0) as opened:
        while True:
            opened.write(bytes(4096))
    with suppress(OSError):
        for number in count():
            (folder / str(number)).touch()


@pytest.mark.usefixtures("place")
def test_an_agent_without_stderr_starts(lab: Lab) -> None:
    """Whoever started it has closed it: what it would have said goes nowhere, and to no map."""
    with Run(lab, "sh", "-c", 'exec "$@" 2>&-', "sh") as run:
        run.warnings()
        assert Path(f"/proc/{run.agent.process.pid}/fd/2").readlink() == Path(os.devnull)
        run.end()
