# SPDX-License-Identifier: Apache-2.0
"""The journal's writer on real disks: bounds, restarts, a full disk, and one that is too slow."""

import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.documents.roster import backend, web
from tidegate.agent.journal import files, line_format, replay
from tidegate.agent.journal.limits import Limits
from tidegate.agent.journal.writer import Published, Writer
from tidegate.errors import AgentError
from tidegate.model.generation import NOTHING, Generation
from tidegate.planner import plan
from tidegate.planner.diff import difference

AT = "2026-01-31T12:00:00.000Z"
LIMITS = Limits(80, 1 << 20)


class Journal:
    """A writer with generations to write, and what there should be in its folder then."""

    def __init__(
        self, folder: Path, limits: Limits = LIMITS, in_force: Generation = NOTHING
    ) -> None:
        self.folder = folder
        self.generation = in_force
        self.heard = threading.Semaphore(0)
        self.writer = Writer(folder, limits, in_force, self.heard.release)

    def start(self) -> "Journal":
        """Let its thread run."""
        self.writer.start(list(files.read_all(self.folder)))
        return self

    def publish(self, *names: str) -> None:
        """One more generation, with these backends."""
        now = 1000 + self.generation.number
        following = plan(web(*map(backend, names), window=60), self.generation, now)
        assert following.number > self.generation.number
        summary = line_format.summary(difference(self.generation, following))
        origin = line_format.Origin(AT, now, line_format.Cause("time"), summary)
        self.generation = following
        self.writer.write(Published(following, origin))

    def publish_many(self, count: int) -> None:
        """So many more generations, each unlike the one before."""
        for number in range(count):
            self.publish("b1", f"b{number % 2 + 2}")

    def assert_whole(self) -> list[int]:
        """Check that the last generation can be made again; return the numbers that are there."""
        there = [line for file in files.read_all(self.folder) for line in file.lines]
        again = replay.rebuild(lambda: replay.standings(there), None)
        assert again is not None
        wanted = self.generation
        assert (again.generation.digest, again.generation.backends, again.generation.freed) == (
            wanted.digest,
            wanted.backends,
            wanted.freed,
        )
        return [line.number for line in there if isinstance(line, line_format.GenerationLine)]


def test_a_restart_goes_on_in_the_same_file(tmp_path: Path) -> None:
    """If what is in force is what the file ends with."""
    folder = tmp_path / "state" / "journal"
    first = Journal(folder).start()
    first.publish_many(3)
    first.writer.close()
    second = Journal(folder, in_force=first.generation).start()
    second.publish("b9")
    second.writer.close()
    assert second.assert_whole() == [1, 2, 3, 4]
    assert [path.name for path in files.paths(folder)] == ["00000001.jsonl"]


def test_a_restart_on_something_else_begins_a_new_file(tmp_path: Path) -> None:
    """A generation that was published as the agent died was not written; the base has it."""
    first = Journal(tmp_path).start()
    first.publish_many(2)
    first.writer.close()
    unwritten = plan(web(backend("b7")), first.generation, 1010)
    second = Journal(tmp_path, in_force=unwritten).start()
    second.publish("b8")
    second.writer.close()
    assert second.assert_whole() == [1, 2, 4]
    assert len(files.paths(tmp_path)) == 2


def test_it_is_its_owners_alone(tmp_path: Path) -> None:
    """The folder and the files."""
    journal = Journal(tmp_path / "journal").start()
    journal.publish("b1")
    journal.writer.close()
    (path,) = files.paths(journal.folder)
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (journal.folder, path)]
    assert modes == [0o700, 0o600]


def test_two_agents_do_not_share_one(tmp_path: Path) -> None:
    """The second one says which key to set."""
    journal = Journal(tmp_path).start()
    with pytest.raises(AgentError, match="state_dir: another agent"):
        Journal(tmp_path)
    journal.writer.close()
    Journal(tmp_path).start().writer.close()


def drained(journal: Journal) -> None:
    """Wait until everything is on the disk, and open the journal again."""
    journal.writer.close(60)
    journal.writer = Writer(
        journal.folder, journal.writer._limits, journal.generation, journal.heard.release
    )
    journal.start()


def test_it_keeps_the_last_generations_and_no_more(tmp_path: Path) -> None:
    """At least as many as it shall, and at most an eighth more; each file stands alone."""
    journal = Journal(tmp_path).start()
    for _ in range(6):
        journal.publish_many(40)
        drained(journal)
    journal.writer.close()
    numbers = journal.assert_whole()
    assert numbers == list(range(241 - len(numbers), 241))
    assert 80 <= len(numbers) <= 90
    for file in files.read_all(tmp_path):
        assert isinstance(file.lines[0], line_format.BaseLine)


def test_it_keeps_within_its_bytes(tmp_path: Path) -> None:
    """Though fewer generations are left than it shall keep."""
    limits = Limits(10_000, 40_000)
    journal = Journal(tmp_path, limits).start()
    for _ in range(5):
        journal.publish_many(50)
        drained(journal)
        assert sum(path.stat().st_size for path in files.paths(tmp_path)) <= limits.bytes
    journal.writer.close()
    assert journal.assert_whole()[-1] == 250


def test_what_comes_too_fast_is_lost_and_not_wrong(tmp_path: Path) -> None:
    """After a gap a new file tells all, windows too."""
    journal = Journal(tmp_path)
    journal.publish_many(100)  # its thread does not run yet, as on a disk that is stuck
    journal.start()
    drained(journal)
    journal.publish("b1", "b7")
    journal.writer.close()
    assert journal.assert_whole() == [*range(1, 65), 101]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.root
def test_a_full_disk_is_reported_and_survived(small_disk: Path) -> None:
    """Whole lines stay; when there is room again, it goes on with what is in force then."""
    hog = small_disk / "hog"
    hog.write_bytes(bytes(48 << 10))
    journal = Journal(small_disk / "journal").start()
    for _ in range(200):
        journal.publish_many(2)
        if journal.heard.acquire(timeout=0.01):
            break
    assert "No space left" in journal.writer.problem
    for file in files.read_all(journal.folder):
        assert file.path.stat().st_size == file.size.bytes
        assert not file.fault
    hog.unlink()
    journal.publish("b1", "b7")
    assert journal.heard.acquire(timeout=20)
    assert journal.writer.problem == ""
    journal.writer.close()
    assert journal.assert_whole()[-1] == journal.generation.number
