# SPDX-License-Identifier: Apache-2.0
"""Whatever a crash, a disk or a person has left of the journal, an agent starts and goes on."""

import os
import queue
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from support.documents.roster import backend, web
from tidegate.agent.config import AgentConfig, Encapsulation
from tidegate.agent.history import History
from tidegate.agent.journal import files, line_format
from tidegate.agent.journal.limits import Limits
from tidegate.agent.journal.writer import Writer
from tidegate.agent.outcome import Applied
from tidegate.model.generation import NOTHING, Generation
from tidegate.planner import plan
from tidegate.planner.diff import difference


def _write(text: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text)


def _huge(path: Path) -> None:
    with path.open("wb") as opened:
        opened.truncate(1 << 40)


def _link(path: Path) -> None:
    path.symlink_to("/dev/zero")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": _write(b""),
    "cut in its first line": _write(b'{"type":"base","at":"2026'),
    "garbage": _write(bytes(range(256)) * 9),
    "of another version": _write(b'{"type":"base","format":99}\n'),
    "without a base": _write(b'{"type":"order","at":"x","order":"freeze","by":"me"}\n'),
    "huge": _huge,
    "a link": _link,
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
}


def start(state: Path, in_force: Generation) -> History:
    sources = Encapsulation(source4=IPv4Network("10.0.0.1"), source6=IPv6Network("fd00::/64"))
    config = AgentConfig(interfaces=("eth0",), encapsulation=sources, state_dir=str(state))
    return History(config, in_force, lambda: None)


def apply(history: History, last: Generation, *names: str) -> Generation:
    wanted = web(*(backend(name) for name in names))
    fresh = plan(wanted, last, 1000 + last.number)
    change = (fresh, difference(last, fresh), wanted, 1000, 0, None, frozenset[str](), "")
    history.applied(Applied(last, *change))
    return fresh


def numbers(folder: Path) -> list[int]:
    """Return the generations that the journal has, in their order."""
    lines = [line for file in files.read_usable(folder, 1 << 20) for line in file.lines]
    return [line.number for line in lines if isinstance(line, line_format.GenerationLine)]


@pytest.mark.parametrize("name", ["00000001.jsonl", "00000002.jsonl"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_stops_no_start(tmp_path: Path, damage: str, name: str) -> None:
    """Its only file, or a newer one: it is set aside by name; what else there is counts."""
    folder = files.folder_of(tmp_path)
    history = start(tmp_path, NOTHING)
    first = apply(history, NOTHING, "b1")
    history.close()
    (folder / name).unlink(missing_ok=True)
    DAMAGES[damage](folder / name)
    again = start(tmp_path, first)
    second = apply(again, first, "b1", "b2")
    again.close()
    assert (folder / f"{name}.unusable").exists() or (folder / f"{name}.unusable").is_symlink()
    assert numbers(folder) == ([1, 2] if name.startswith("00000002") else [2])
    assert again.problem == ""
    before = again.states.before()
    assert before is not None
    assert (before.last, again.states.states[-1].last) == (1, second.number)


def test_a_history_that_cannot_be_replayed_is_left_alone(tmp_path: Path) -> None:
    """Whole lines with what no agent wrote: nothing to roll back to, and the agent starts."""
    history = start(tmp_path, NOTHING)
    first = apply(history, NOTHING, "b1")
    second = apply(history, first, "b1", "b2")
    history.close()
    (path,) = files.paths(files.folder_of(tmp_path))
    path.write_bytes(path.read_bytes().replace(b"10.99.0.1/32", b"nowhere"))
    assert files.read(path).fault == ""
    again = start(tmp_path, second)
    assert [state.last for state in again.states.states] == [second.number]
    third = apply(again, second, "b1")
    again.close()
    assert numbers(files.folder_of(tmp_path))[-1] == third.number


@pytest.mark.parametrize("kind", ["file", "link to nowhere"])
def test_a_folder_that_is_none_stops_no_start(tmp_path: Path, kind: str) -> None:
    """The journal is not written then, and the reason is known."""
    folder = files.folder_of(tmp_path)
    if kind == "file":
        folder.write_text("x")
    else:
        folder.symlink_to(tmp_path / "nowhere" / "at all")
    history = start(tmp_path, NOTHING)
    apply(history, NOTHING, "b1")
    history.close()
    assert "state_dir" in history.problem


def test_only_a_few_damaged_files_are_kept(tmp_path: Path) -> None:
    """A host that crashes again and again does not fill its disk with them."""
    folder = files.folder_of(tmp_path)
    for number in range(1, 10):
        history = start(tmp_path, NOTHING)
        history.close()
        (folder / f"{number:08d}.jsonl").write_bytes(b"")
    start(tmp_path, NOTHING).close()
    assert len(list(folder.glob("*.unusable"))) == 4


def test_folders_among_the_damaged_are_no_hindrance(tmp_path: Path) -> None:
    """They are not emptied; the agent starts again and again, and goes on with its journal."""
    folder = files.folder_of(tmp_path)
    for _ in range(9):
        history = start(tmp_path, NOTHING)
        history.close()
        assert history.problem == ""
        newest = files.paths(folder)[-1]
        assert files.read(newest).lines
        newest.unlink()
        (newest / "kept").mkdir(parents=True)
    assert len(list(folder.glob("*/kept"))) == 9


def test_a_line_that_cannot_be_made_ends_no_thread(tmp_path: Path) -> None:
    """It is lost, `problem` says so, and what comes after it is written."""
    said: queue.Queue[str] = queue.Queue()
    limits = Limits(100, 1 << 24)
    writer = Writer(files.folder_of(tmp_path), limits, NOTHING, lambda: said.put(writer.problem))
    writer.start([])
    writer.write(line_format.OrderLine("x", "freeze", object(), ""))  # type: ignore[arg-type]
    assert "object" in said.get(timeout=20)
    order = line_format.OrderLine("y", "thaw", "me", "")
    writer.write(order)
    assert said.get(timeout=20) == ""
    writer.close()
    file = files.read_usable(files.folder_of(tmp_path), 1 << 24)[-1]
    assert file.lines[-1] == order


@pytest.mark.parametrize("damage", ["garbage", "a link", "a folder", "a pipe"])
def test_readers_leave_out_what_cannot_be_read(tmp_path: Path, damage: str) -> None:
    """They name the file, and show all the others."""
    folder = files.folder_of(tmp_path)
    history = start(tmp_path, NOTHING)
    apply(history, NOTHING, "b1")
    history.close()
    DAMAGES[damage](folder / "00000002.jsonl")
    whole, damaged = files.read_all(folder)
    assert whole.lines
    assert not damaged.lines
    assert "00000002.jsonl" in damaged.fault
