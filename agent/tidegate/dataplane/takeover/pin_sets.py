# SPDX-License-Identifier: Apache-2.0
"""The two sets of pins of a takeover: the maps that are used, and those that are to replace some.

New maps are pinned in a folder of their own, `next`, until a program that uses them is on every
interface; then each pin is renamed into its place. So the folder says how far a start came that was
killed. If nothing that runs uses a map in it, it was killed before the exchange: the folder goes,
and the old maps have all. Else the program that runs, on one interface at least, is the new one:
the maps in the folder are the ones to go on with, and what still stands at the old names is what
they replace.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from tidegate.dataplane.kernel import maps, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.maps import Shape
from tidegate.dataplane.kernel.pins import NEXT_PROGRAM, PROGRAM
from tidegate.dataplane.publish.steps import Reached, Step, unwatched
from tidegate.dataplane.takeover.hashed import is_hashed
from tidegate.errors import DataplaneError
from tidegate.event_log import EventLog

log = EventLog(__name__)

NEXT: Final = "next"
FLOWS: Final = "flows"
IRREPLACEABLE: Final = ("outer", "ledger", "wide_ledger")
"""Maps whose content follows from nothing else, and cannot be copied without knowing its shape."""


def settle(folder: Path, shapes: Mapping[str, Shape], interfaces: Iterable[str]) -> None:
    """Bring what a start left that was killed into one of the two states that are gone on from.

    Raises:
        OSError: the kernel refused.
    """
    live = _live_maps(folder, interfaces)
    left = folder / NEXT
    if not left.exists():
        return
    found = {path.name: _described(path) for path in left.iterdir()}
    if not live.intersection(map_id for map_id, _ in found.values()):
        _remove(left)
    elif any(shape != shapes.get(name) for name, (_, shape) in found.items()):
        # The settings were changed once more. Left behind is what the old maps had and no pass had
        # copied: entries of the milliseconds around the exchange.
        log.warning("takeover_cut_short", maps=tuple(sorted(found)))
        put_in_place(folder)


def put_in_place(folder: Path, reached: Reached = unwatched) -> None:
    """Rename the new maps' pins to their names.

    The connection table goes last: as long as it has not, a start that is killed is finished by the
    next one.
    """
    names = (path.name for path in (folder / NEXT).iterdir())
    for name in sorted(names, key=FLOWS.__eq__):
        (folder / NEXT / name).rename(folder / name)
        reached(Step.TAKEOVER_RENAMED)
    (folder / NEXT).rmdir()


def _live_maps(folder: Path, interfaces: Iterable[str]) -> set[int]:
    """Return ids of the maps that our programs on these interfaces use.

    If only a program that was to replace another one is there, it has done so: its pin is renamed.
    """
    running = set()
    for interface in interfaces:
        with suppress(DataplaneError):  # it is away
            there = programs.attached(interface)
            running.add(there.program_id if there else 0)
    used = {}
    for name in (PROGRAM, NEXT_PROGRAM):
        if (folder / name).exists():
            fd = bpf.open_pin(str(folder / name))
            if bpf.object_id(fd) in running:
                used[name] = bpf.program_maps(fd)
            os.close(fd)
    if used.keys() == {NEXT_PROGRAM}:
        (folder / NEXT_PROGRAM).rename(folder / PROGRAM)
    return set().union(*used.values())


def _described(path: Path) -> tuple[int, Shape]:
    fd = bpf.open_pin(str(path))
    try:
        return bpf.object_id(fd), maps.shape_of(fd)
    finally:
        os.close(fd)


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


class PinSets:
    """The maps to work with, open: those that are pinned and fit, and new ones for the others.

    Attributes:
        maps: all of them, by name.
        fresh: names of those that are pinned in `next`.
        old_flows: the connection table that is replaced, or -1.
        adopted: whether any was there before.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, Shape], pins: Path) -> None:
        """Open and create them; `settle` comes before.

        Args:
            folder: of the pins.
            shapes: that are wanted.
            pins: the folder's name for people.

        Raises:
            DataplaneError: a map has another shape, and is none that can be replaced.
        """
        self._folder = folder
        self._fds: dict[str, int] = {}
        self.fresh: set[str] = set()
        self.old_flows, self.adopted = -1, False
        misfits: dict[str, Shape] = {}
        try:
            for name, shape in shapes.items():
                self._open(name, shape, misfits)
            _check(misfits, shapes, pins)
            self._create({n: s for n, s in shapes.items() if n not in self._fds}, misfits)
        except BaseException:
            self.close_old()
            maps.Maps(self._fds).close()
            raise
        self.maps = maps.Maps(self._fds)

    def _open(self, name: str, shape: Shape, misfits: dict[str, Shape]) -> None:
        """Open a map's pins; keep the descriptor of what fits."""
        for path in (self._folder / NEXT / name, self._folder / name):
            if not path.exists():
                continue
            self.adopted = True
            fd = bpf.open_pin(str(path))
            found = maps.shape_of(fd)
            if found == shape and name not in self._fds:
                self._fds[name] = fd
                if path.parent.name == NEXT:
                    self.fresh.add(name)
            elif name == FLOWS:
                self.old_flows, misfits[name] = fd, found
            else:
                os.close(fd)
                misfits[name] = found

    def _create(self, missing: Mapping[str, Shape], misfits: Mapping[str, Shape]) -> None:
        """Create what is missing: in its place if nothing runs that it would be away from."""
        is_running = (self._folder / PROGRAM).exists()
        is_beside = bool(misfits or self.fresh or is_running)
        place = self._folder / NEXT if is_beside else self._folder
        if missing:
            place.mkdir(mode=0o700, exist_ok=True)
        for name, shape in missing.items():
            self._fds[name] = maps.create_one(name, shape)
            bpf.pin(self._fds[name], str(place / name))
            if is_beside:
                self.fresh.add(name)
            if name in misfits:
                found = misfits[name]
                log.info("map_replaced", map=name, found=str(found), wanted=str(shape))

    def folder_of(self, name: str) -> Path:
        """Return the folder that a map is pinned in now."""
        return self._folder / NEXT if name in self.fresh else self._folder

    def close_old(self) -> None:
        """Close the table that is replaced."""
        if self.old_flows >= 0:
            os.close(self.old_flows)
        self.old_flows = -1


def _check(misfits: Mapping[str, Shape], shapes: Mapping[str, Shape], pins: Path) -> None:
    for name, found in misfits.items():
        if not _is_replaceable(name, found, shapes[name]):
            raise maps.other_shape(pins / name, found, shapes[name])


def _is_replaceable(name: str, found: Shape, wanted: Shape) -> bool:
    """Return whether a map of this shape may make way: copied, filled anew, or begun at zero."""
    if name == FLOWS:
        return is_hashed(found) or found == replace(wanted, max_entries=found.max_entries)
    return name not in IRREPLACEABLE
