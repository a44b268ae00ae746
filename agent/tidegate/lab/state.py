# SPDX-License-Identifier: Apache-2.0
"""A lab's folder: what was built, who holds it, and how it is left without a trace.

    /run/tidegate/lab/<name>.lock       locked by the process that builds, uses or removes the lab
    /run/tidegate/lab/<name>/lab.json   the spec; written when everything answers
    /run/tidegate/lab/<name>/<node>/    configuration files, logs, data

Leftovers of a crashed owner are found by name, not by what this folder says.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from tidegate.errors import CapabilityError, LabError
from tidegate.lab import netns
from tidegate.lab.plan import STATE_ROOT, LabSpec
from tidegate.lab.processes import end_all

_FILE = "lab.json"


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lab; the lock goes with the process, however it ends.

    Raises:
        LabError: another process holds it.
        CapabilityError: not allowed to write under /run.
    """
    fd = _lock(name, STATE_ROOT / f"{name}.lock")
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        (STATE_ROOT / f"{name}.lock").unlink(missing_ok=True)
        os.close(fd)


def _lock(name: str, path: Path) -> int:
    while True:
        try:
            STATE_ROOT.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except PermissionError as error:
            raise CapabilityError(f"may not write {path}: the lab needs root") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the file between our open and our lock.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(fd)):
                return fd
        except BlockingIOError as error:
            owner = os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise LabError(
                f"lab {name!r} is in use by process {owner}: end that first, or choose another "
                "--name"
            ) from error
        os.close(fd)


def save(spec: LabSpec) -> None:
    """Note that the lab is complete."""
    (spec.folder / _FILE).write_text(json.dumps(asdict(spec)))


def saved(name: str) -> LabSpec | None:
    """Return the spec of a complete lab, or None."""
    try:
        return LabSpec(**json.loads((STATE_ROOT / name / _FILE).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def names() -> list[str]:
    """Return the names of all complete labs."""
    return sorted(path.parent.name for path in STATE_ROOT.glob(f"*/{_FILE}"))


def erase(spec: LabSpec) -> bool:
    """Remove everything of a lab of this name, complete or not; return whether there was anything.

    Processes first, since they hold namespaces and write files; then namespaces, pins and folder.

    Raises:
        LabError: a process does not end.
    """
    namespaces = netns.named(spec.prefix)
    end_all(namespaces)
    for namespace in namespaces:
        netns.remove(namespace)
    pins = sorted(Path("/sys/fs/bpf").glob(f"tidegate-{spec.name}-lb*"))
    for folder in pins:
        _unpin(folder)
    found = bool(namespaces or pins or spec.folder.exists())
    shutil.rmtree(spec.folder, ignore_errors=True)
    return found


def _unpin(folder: Path) -> None:
    with suppress(FileNotFoundError):
        for entry in folder.iterdir():
            if entry.is_dir():
                _unpin(entry)
            else:
                entry.unlink()
        folder.rmdir()
