# SPDX-License-Identifier: Apache-2.0
"""Finds this agent's own program where its pins are lost, some or all, and puts them back.

A program that is attached lives without pins, and with it all its maps: the ledger, the connection
table and what else no packet reads are bound to it (`objects.bind`). So what was pinned can be
opened from the program, and a start goes on from there as if nothing had happened. To open it
takes CAP_SYS_ADMIN; who lacks that refuses and names the command that has it.

What is certain: a program that is pinned in our folder, that uses a map pinned there, or whose maps
name this agent as their owner (`attached.Seen.is_of`). Anything else is refused by name unless
the start is told to take over.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tidegate.dataplane.kernel import maps, objects, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.maps import Shape
from tidegate.dataplane.kernel.owner import Owner
from tidegate.dataplane.kernel.pins import (
    PROGRAM,
    empty_plane_folder,
    number_at,
    pin_anew,
    pinned_programs,
)
from tidegate.dataplane.publish import tables
from tidegate.dataplane.takeover import attached
from tidegate.dataplane.takeover.attached import Seen
from tidegate.dataplane.takeover.pin_sets import IRREPLACEABLE, NEXT
from tidegate.errors import DataplaneError
from tidegate.event_log import EventLog

log = EventLog(__name__)

_EVERY_VERSION_HAS: Final = frozenset({*IRREPLACEABLE, "backends", "vips", "flows"})
"""Maps that no upgrade adds: without their pins something was lost."""


class Recovery:
    """One look at what is attached and pinned, and what follows from it.

    Args:
        folder: of the pins, locked.
        owner: this agent.
        shapes: of the maps that are wanted.
        interfaces: of the data plane.
        file: the agent's file, for advice.
        is_forced: whether programs that are not certainly ours are replaced (`--take-over`).
    """

    def __init__(
        self,
        folder: Path,
        owner: Owner,
        shapes: Mapping[str, Shape],
        interfaces: Iterable[str],
        file: Path,
        *,
        is_forced: bool = False,
    ) -> None:
        self._folder, self._owner, self._shapes, self._file = folder, owner, shapes, file
        self._is_forced = is_forced
        self._there = attached.places(interfaces)
        self.put_back = 0
        """Pins that were put back."""

    def run(self) -> set[int]:
        """Put pins back; return the numbers of programs that are to be replaced.

        Raises:
            DataplaneError: a program is not certainly ours, or its maps cannot be reached.
            OSError: the kernel refused.
        """
        pinned = pinned_programs(self._folder)
        seen = [attached.look(n, self._there[n]) for n in sorted(self._there.keys() - pinned)]
        held = set(self._held().values())
        ours = [each for each in seen if each.is_of(self._owner, held)]
        others = [each for each in seen if each not in ours]
        running = pinned.intersection(self._there)
        if running:
            self._fill(self._pinned_one(max(running)))
        elif ours:
            self._fill(ours[-1], is_whole=True)
        if others and not self._is_forced:
            raise DataplaneError("; ".join(refusal(each, self._file) for each in others))
        self._require_whole(is_live=bool(running or ours))
        if self.put_back:
            log.warning("pins_put_back", pins=self.put_back, folder=self._owner.pins)
        for each in seen:
            log.warning("program_found", found=each, is_ours=each in ours)
        return pinned | {each.id for each in seen}

    def _pinned_one(self, number: int) -> Seen:
        """Return a pinned program as it is seen through its pin, which takes no capability."""
        for path in self._folder.glob(f"{PROGRAM}*"):
            fd = bpf.open_pin(str(path))
            try:
                if bpf.object_id(fd) == number:
                    return attached.of_program(fd, self._there[number])
            finally:
                os.close(fd)
        raise DataplaneError(f"program {number} lost its pin a moment ago: start again")

    def _held(self) -> dict[str, int]:
        """Return the numbers of the pinned maps by name; those of an unfinished takeover first."""
        found = {}
        for name in self._shapes:
            for path in (self._folder / NEXT / name, self._folder / name):
                if name not in found and (number := number_at(path)):
                    found[name] = number
        return found

    def _fill(self, live: Seen, *, is_whole: bool = False) -> None:
        """Pin what a program of ours uses and the folder lacks.

        Args:
            live: the program.
            is_whole: whether it has no pin itself: then what packets use goes before what is
                pinned in its place, and it is pinned too.
        """
        held = self._held()
        if live.maps is None:
            lost = sorted(_EVERY_VERSION_HAS - held.keys())
            if lost and not self._is_forced:
                raise DataplaneError(self._unreached(f"the pins of {', '.join(lost)}"))
        for name, number in (live.maps or {}).items():
            if name in held and (held[name] == number or not is_whole):
                continue
            with objects.opened_map(number) as fd:
                pin_anew(fd, self._folder / name)
            self.put_back += 1
        self._fill_tables()
        if is_whole:
            with objects.program(live.id) as fd:
                pin_anew(fd, self._folder / PROGRAM)
            self.put_back += 1

    def _fill_tables(self) -> None:
        """Pin the tables that slots point to and no pin has."""
        paths = (self._folder / NEXT / "outer", self._folder / "outer")
        outer = next((path for path in paths if path.exists()), None)
        if outer is None:
            return
        fd = bpf.open_pin(str(outer))
        try:
            slots = tables.slots(fd)
        finally:
            os.close(fd)
        pinned = {number_at(path) for path in (self._folder / "tables").iterdir()}
        for pool_id, number in slots.items():
            if number in pinned:
                continue
            try:
                with objects.opened_map(number) as table:
                    path = tables.pin_path(self._folder, pool_id, tables.read(table).generation)
                    pin_anew(table, path)
            except PermissionError:
                if not self._is_forced:
                    raise DataplaneError(self._unreached("pins of tables")) from None
                return
            self.put_back += 1

    def _unreached(self, what: str) -> str:
        return (
            f"{what} in {self._owner.pins} are lost, and to open what they stood for takes "
            f"CAP_SYS_ADMIN: run `tidegate agent repin -c {self._file}` as root, which puts them "
            "back, and start the agent again; meanwhile what is attached forwards"
        )

    def _require_whole(self, *, is_live: bool) -> None:
        """Make sure that what follows from nothing else is there, or that all begins anew."""
        held = self._held()
        lost = [name for name in IRREPLACEABLE if name not in held]
        if self._is_forced and (lost or self._misfits()):
            log.warning("begun_anew", folder=self._owner.pins, lost=tuple(lost))
            empty_plane_folder(self._folder)
        elif lost and is_live:
            raise DataplaneError(
                f"the pins of {', '.join(lost)} in {self._owner.pins} are lost and the program "
                "that runs is of a version that did not keep them, so nobody knows any more which "
                "backend an id stands for; to begin anew, by which connections may move, run "
                f"`tidegate agent run --take-over -c {self._file}`"
            )
        elif lost and held:
            log.warning("begun_anew", folder=self._owner.pins, lost=tuple(lost))
            empty_plane_folder(self._folder)

    def _misfits(self) -> bool:
        for name in IRREPLACEABLE:
            path = self._folder / name
            if path.exists():
                fd = bpf.open_pin(str(path))
                try:
                    if maps.shape_of(fd) != self._shapes[name]:
                        return True
                finally:
                    os.close(fd)
        return False


def refusal(seen: Seen, file: Path) -> str:
    """Return what is in our place, that it was left alone, and what to do about it."""
    where = ", ".join(seen.where)
    force = f"`tidegate agent run --take-over -c {file}` replaces it"
    detach = " and ".join(programs.off_command(name, mode) for name, mode in seen.where.items())
    if seen.info is None:
        return (
            f"{where} has {seen}, and that has no pin in our pin_dir: if it is this agent's, "
            f"`tidegate agent repin -c {file}`, run as root, puts its pins back; if not, it says "
            "whose it is"
        )
    if not seen.is_balancer:
        return (
            f"{where} has an XDP program that is not Tidegate's (id {seen.id}, named "
            f"{seen.info.name!r}), and was left alone: if it is not needed, detach it with "
            f"{detach}; {force} at once"
        )
    if seen.owner is None:
        return f"{where} has {seen}, and was left alone: it cannot be adopted; {force}"
    return (
        f"{where} has {seen}, and was left alone: stop that agent and run `tidegate agent remove` "
        f"with its file; {force} at once"
    )
