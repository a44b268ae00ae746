# SPDX-License-Identifier: Apache-2.0
"""Read and check documents in files, as people keep them under version control.

* A file is an object from key, relative to the release, to document: `{"pools/web": {}, …}`.
* A folder is all files below it that end in .json, .yaml or .yml. Those at its top are objects from
  key to document too. Those further down are one document each, and so is `settings.yaml` at the
  top: the path below the folder, without the suffix, is the key (`pools/web/backends/b1.json`).
* `-` is standard input, and is read as a file.

Hidden files and folders are left out, and so is what has another suffix; `Documents.ignored` names
that. All documents together are one set: they count as written in the order in which they are read,
files of a folder in the order of their paths. A key may appear once.

What is wrong with a document is a `Fault` with its file and line, not an exception.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tidegate.errors import ConfigError
from tidegate.keyspace.documents.decode import key_shown
from tidegate.keyspace.documents.json_yaml import (
    Entry,
    TextError,
    is_json,
    json_entries,
    json_fault,
    yaml_document,
    yaml_entries,
)
from tidegate.keyspace.documents.validate import validate
from tidegate.keyspace.paths import SETTINGS_KEY
from tidegate.model.byte_order_mark import without_mark
from tidegate.model.values import EMPTY, Desired, Document, Rejection, Snapshot, Stage

_YAML: Final = (".yaml", ".yml")
_SUFFIXES: Final = (".json", *_YAML)
_STDIN: Final = "-"


class Place(NamedTuple):
    """Where a document is."""

    file: str
    line: int


class Fault(NamedTuple):
    """Why a document or a file was refused.

    Attributes:
        line: of the document's key, or of the fault itself if the file cannot be read beyond it.
        key: relative to the release; empty if it is a file's fault.
        field: empty if it is the whole document's fault.
    """

    file: str
    line: int
    key: str
    field: str
    reason: str
    stage: Stage

    def __str__(self) -> str:
        names = ": ".join(name for name in (self.key, self.field) if name)
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(filter(None, (place, names, self.reason)))


@dataclass
class Documents:
    """What some files hold.

    Attributes:
        values: bytes of each document by key relative to the release, in the order of reading.
        places: where each is.
        faults: of files and documents that could not be read, and keys that appear twice.
        unread: keys of documents among them, whose bytes are not to be used.
        ignored: files in folders that are not documents by their suffix.
    """

    values: dict[str, bytes] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    ignored: list[str] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
        """Return the snapshot of an empty release to which they were written one after another."""
        documents = {
            key: Document(value, number, number)
            for number, (key, value) in enumerate(self.values.items(), 1)
        }
        return Snapshot(len(documents), documents)

    def check(self) -> "Checked":
        """Check every document and reference as an agent does that has accepted none yet."""
        desired, rejections = validate(self.snapshot(), EMPTY)
        unseen = [rejection for rejection in rejections if rejection.key not in self.unread]
        faults = [*self.faults, *map(self._placed, unseen)]
        return Checked(desired, tuple(sorted(faults, key=lambda fault: fault[:4])))

    def _placed(self, rejection: Rejection) -> Fault:
        # A very long key is shortened in its rejection, and one without a name has one there.
        place = self.places.get(rejection.key) or next(
            place for key, place in self.places.items() if key_shown(key) == rejection.key
        )
        return Fault(*place, rejection.key, rejection.field, rejection.reason, rejection.stage)


class Checked(NamedTuple):
    """What files ask for, and everything that is wrong with them, in the order of places."""

    desired: Desired
    faults: tuple[Fault, ...]


def read(paths: Sequence[str | Path]) -> Documents:
    """Read files and folders.

    Raises:
        ConfigError: one of them cannot be read at all.
    """
    found = Documents()
    for given in map(str, paths):
        if given == _STDIN:
            _read_file(found, given, sys.stdin.buffer.read())
        elif Path(given).is_dir():
            _read_folder(found, Path(given))
        else:
            _read_file(found, given, _bytes(Path(given)))
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _read_folder(found: Documents, folder: Path) -> None:
    for path in _files(folder):
        below = path.relative_to(folder)
        if path.suffix not in _SUFFIXES:
            found.ignored.append(str(path))
            continue
        key = str(below.with_suffix(""))
        if len(below.parts) == 1 and key != SETTINGS_KEY:
            _read_file(found, str(path), _bytes(path))
        else:
            _read_one(found, str(path), key, _bytes(path))


def _files(folder: Path) -> Iterator[Path]:
    """Yield files below a folder without the hidden ones, in the order of their paths."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise ConfigError(f"cannot read {folder}: {error.strerror}") from error
    for path in entries:
        if path.name.startswith("."):
            continue
        # A link to a folder may lead in a circle.
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        elif not path.is_dir():
            yield path


def _read_file(found: Documents, file: str, data: bytes) -> None:
    """Read a file that is an object from key to document."""
    try:
        text = _text(data)
        entries = yaml_entries(text) if _is_yaml(file, text) else json_entries(text)
    except TextError as error:
        found.faults.append(Fault(file, error.line, "", "", error.reason, "decode"))
        return
    for entry in entries:
        _add(found, file, entry)


def _read_one(found: Documents, file: str, key: str, data: bytes) -> None:
    """Read a file that is one document, whose key is its path."""
    line, value = 1, without_mark(data)
    try:
        text = _text(data)
        if _is_yaml(file, text):
            value = yaml_document(text)
        else:
            line = json_fault(text)
    except TextError as error:
        found.faults.append(Fault(file, error.line, key, "", error.reason, "decode"))
        found.unread.add(key)
    _add(found, file, Entry(key, line, value))


def _add(found: Documents, file: str, entry: Entry) -> None:
    key, line, value = entry
    if key in found.values:
        there = "{}:{}".format(*found.places[key])
        reason = f"the key appears more than once: {there} has it too"
        found.faults.append(Fault(file, line, key, "", reason, "decode"))
        return
    found.values[key] = value
    found.places[key] = Place(file, line)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise TextError(line, f"the file is not UTF-8: it has the byte 0x{byte:02x}") from error


def _is_yaml(file: str, text: str) -> bool:
    suffix = os.path.splitext(file)[1]  # noqa: PTH122 - "-" is no path
    return suffix in _YAML or (suffix != ".json" and not is_json(text))
