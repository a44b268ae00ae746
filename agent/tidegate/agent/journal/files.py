# SPDX-License-Identifier: Apache-2.0
"""The files of the journal: `<state_dir>/journal/<number>.jsonl`, in the order of their numbers.

A line counts once its end is there. What follows the last end is the line that a crash or a full
disk cut short: readers leave it out, and a writer that continues the file cuts it off. Anything
else that is not a line ends what can be read of its file, and is named.

The folder is for its owner alone, as documents may say more of a network than is for everyone.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import msgspec

from tidegate.agent.journal.limits import EMPTY, Size
from tidegate.agent.journal.line_format import BaseLine, GenerationLine, Line, decode
from tidegate.errors import AgentError
from tidegate.event_log import EventLog

log = EventLog(__name__)

_ASIDE: Final = ".unusable"
_ASIDE_KEPT: Final = 4
_NAME: Final = re.compile(r"(\d{8})\.jsonl")


def folder_of(state_dir: Path) -> Path:
    """Return the folder of the journal."""
    return state_dir / "journal"


@dataclass
class File:
    """One file, as far as it can be read.

    Attributes:
        size: of what can be read.
        fault: why not all of it can be; empty if it can, a line that was cut short left aside.
    """

    path: Path
    lines: list[Line] = field(default_factory=list)
    size: Size = EMPTY
    fault: str = ""


def paths(folder: Path) -> list[Path]:
    """Return the journal's files, the oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def next_path(folder: Path) -> Path:
    """Return the path of the file after the last one."""
    there = paths(folder)
    number = int(there[-1].stem) + 1 if there else 1
    return folder / f"{number:08d}.jsonl"


def read(path: Path, most: int | None = None) -> File:
    """Read one file of at most so many bytes.

    Raises:
        AgentError: it cannot be read at all, is larger, or is no file.
    """
    try:
        text = _bytes(path, most)
    except OSError as error:
        reason = error.strerror or error
        raise AgentError(f"cannot read the journal: {path}: {reason}") from error
    found = File(path)
    size = generations = 0
    for number, part in enumerate(text.split(b"\n")[:-1], start=1):
        try:
            line = decode(part)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            found.fault = f"{path.name}:{number}: {error}"
            break
        if number == 1 and not isinstance(line, BaseLine):
            found.fault = f"{path.name}: it does not begin with what was in force"
            break
        found.lines.append(line)
        size += len(part) + 1
        generations += isinstance(line, GenerationLine)
    found.size = Size(generations, size)
    return found


def _bytes(path: Path, most: int | None) -> bytes:
    """Return the content of a plain file: no link is followed, and nobody is waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as opened:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file")
        if most is not None and status.st_size > most:
            raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, more than {most}")
        return opened.read()


def read_usable(folder: Path, most: int) -> list[File]:
    """Read every file, the oldest first; set aside those of which nothing can be used.

    An agent starts whatever a crash, a full disk or a person has left here.

    Args:
        folder: of the journal.
        most: bytes that a file may have.

    Raises:
        AgentError: the folder cannot be read.
    """
    found = []
    for path in _listed(folder):
        try:
            file = read(path, most)
        except AgentError as error:
            _set_aside(path, str(error))
            continue
        if file.lines:
            found.append(file)
        else:
            _set_aside(path, file.fault or f"{path} has no whole line")
    return found


def _set_aside(path: Path, reason: str) -> None:
    """Rename what cannot be used, for whoever wants to look; a few are kept."""
    aside = path.with_name(f"{path.name}{_ASIDE}")
    try:
        path.rename(aside)
    except OSError as error:
        log.warning("journal_left", reason=reason, failure=error.strerror)
        return
    log.warning("journal_set_aside", reason=reason, name=aside.name)
    for each in sorted(path.parent.glob(f"*{_ASIDE}"))[:-_ASIDE_KEPT]:
        with suppress(OSError):  # a folder is not ours to empty
            each.unlink()


def _listed(folder: Path) -> list[Path]:
    try:
        return paths(folder)
    except OSError as error:
        raise AgentError(f"cannot read the journal: {folder}: {error.strerror}") from error


def read_all(folder: Path) -> Iterator[File]:
    """Read every file, the oldest first. One that the agent drops meanwhile is left out.

    One that cannot be read has no lines, and the reason.

    Raises:
        AgentError: the folder cannot be read.
    """
    for path in _listed(folder):
        try:
            yield read(path)
        except AgentError as error:
            if path.exists() or path.is_symlink():
                yield File(path, fault=str(error))


class Appender:
    """Writes to one file, whole lines only."""

    def __init__(self, path: Path, at: int = 0, flags: int = 0) -> None:
        """Open it, and cut off what follows its first `at` bytes. No link is followed.

        Raises:
            OSError: it cannot be opened.
        """
        self.path = path
        flags |= os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        self._at = at
        os.ftruncate(self._fd, at)

    @classmethod
    def create(cls, path: Path, first: bytes) -> Self:
        """Make a new file with its first lines; if they cannot be written there is no file.

        Raises:
            OSError: it cannot be written, or something is there.
        """
        made = cls(path, flags=os.O_CREAT | os.O_EXCL)
        try:
            made.append(first)
        except OSError:
            made.close()
            path.unlink()
            raise
        return made

    def append(self, text: bytes) -> None:
        """Append lines, all of them or none, and wait until the disk has them.

        Raises:
            OSError: they could not be written.
        """
        at = 0
        try:
            while at < len(text):
                at += os.pwrite(self._fd, text[at:], self._at + at)
            os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._at)
            raise
        self._at += len(text)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
