# SPDX-License-Identifier: Apache-2.0
"""The end of a data plane: program off, filter off, pins gone, and a true account of each.

Pins go last, and only when no program of ours is left: until then they say what is ours.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tidegate.dataplane.kernel import maps, programs
from tidegate.dataplane.kernel.owner import Owner
from tidegate.dataplane.kernel.pins import number_at, own_pins, pinned_programs
from tidegate.dataplane.takeover import attached
from tidegate.dataplane.tunnel.probe_tunnel import release
from tidegate.errors import CapabilityError, DataplaneError

Result = Literal["removed", "absent", "foreign", "failed"]

_GOOD: Final = frozenset({"removed", "absent"})


@dataclass(frozen=True)
class Part:
    """What became of one part.

    Attributes:
        part: `program` or `filter` of an interface, or `pins`.
        of: the interface, or the folder.
        result: `absent`: there was nothing; `foreign`: not ours, left alone.
        detail: what was found, or why it failed.
    """

    part: Literal["program", "filter", "pins"]
    of: str
    result: Result
    detail: str = ""

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left."""
        return self.result in _GOOD

    def __str__(self) -> str:
        """Return a line for people."""
        words = {
            ("program", "removed"): "program detached",
            ("program", "absent"): "no program was there",
            ("program", "foreign"): "left alone",
            ("program", "failed"): "program not detached",
            ("filter", "removed"): "filter of health checks removed",
            ("filter", "absent"): "no filter was there",
            ("filter", "failed"): "filter of health checks not removed",
            ("pins", "removed"): "pins removed",
            ("pins", "absent"): "no pins were there",
            ("pins", "failed"): "pins not removed",
        }[self.part, self.result]
        return f"{self.of}: {words}" + (f": {self.detail}" if self.detail else "")


def remove(pins: Path, interfaces: Sequence[str], owner: Owner | None = None) -> list[Part]:
    """Detach this data plane's program from all interfaces and remove its pins.

    Args:
        pins: their folder.
        interfaces: of the data plane; what is on them is reported in any case.
        owner: whose it is, to know a program whose pins are lost.

    Returns:
        What became of each part; read again from the kernel, not concluded.

    Raises:
        DataplaneError: an agent runs on these pins, and would put back what is removed.
    """
    interfaces = _with_others(pins, interfaces, owner or Owner(pins=str(pins)))
    with _locked(pins):
        ours = _ours(pins, interfaces, owner or Owner(pins=str(pins)))
        found = []
        for interface in interfaces:
            found += [_detach(interface, ours), _unfilter(interface, pins)]
        if any(each.part == "program" and each.result == "failed" for each in found):
            why = "a program that they belong to is still attached"
            return [*found, Part("pins", str(pins), "failed", why)]
        return [*found, _unpin(pins)]


def _with_others(pins: Path, interfaces: Sequence[str], owner: Owner) -> Sequence[str]:
    """Add other interfaces that have a program of ours: an earlier file may have named them."""
    there = programs.attached_anywhere()
    ours = _ours(pins, there, owner)
    others = (name for name, on in there.items() if on.program_id in ours)
    return tuple(dict.fromkeys((*interfaces, *others)))


@contextmanager
def _locked(pins: Path) -> Iterator[None]:
    """Hold the folder's lock, if there is a folder."""
    fd = -1
    with suppress(FileNotFoundError):
        fd = os.open(pins, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DataplaneError(
            f"an agent runs on {pins} and would put back what is removed: stop it first "
            "(systemctl stop tidegate-agent), then run this again"
        ) from None
    finally:
        if fd >= 0:
            os.close(fd)


def _ours(pins: Path, interfaces: Iterable[str], owner: Owner) -> set[int]:
    """Return the numbers of this data plane's programs: pinned ones, and those known otherwise."""
    ours = pinned_programs(pins)
    held = {number_at(pins / name) for name in maps.shapes(maps.Capacity())} - {0}
    for number, where in attached.places(interfaces).items():
        if number not in ours and attached.look(number, where).is_of(owner, held):
            ours.add(number)
    return ours


def _detach(interface: str, ours: set[int]) -> Part:
    try:
        there = programs.attached(interface)
        if there is None:
            return Part("program", interface, "absent")
        if there.program_id not in ours:
            what = str(attached.look(there.program_id, {interface: there.mode}))
            return Part("program", interface, "foreign", what)
        programs.detach(interface, there.mode)
        left = programs.attached(interface)
    except (DataplaneError, CapabilityError) as error:
        is_away = _is_away(interface)
        return Part("program", interface, "absent" if is_away else "failed", str(error))
    if left is not None:
        return Part("program", interface, "failed", f"program {left.program_id} is there")
    return Part("program", interface, "removed", f"id {there.program_id}")


def _unfilter(interface: str, pins: Path) -> Part:
    try:
        was_there = release(interface, pins)
    except (DataplaneError, CapabilityError) as error:
        is_away = _is_away(interface)
        return Part("filter", interface, "absent" if is_away else "failed", str(error))
    return Part("filter", interface, "removed" if was_there else "absent")


def _is_away(interface: str) -> bool:
    try:
        programs.interface_index(interface)
    except DataplaneError:
        return True
    return False


def _unpin(pins: Path) -> Part:
    """Remove the folder; a mount of its own stays, for the next agent."""
    if not pins.exists():
        return Part("pins", str(pins), "absent")
    count = 0
    try:
        for folder, _, names in os.walk(pins, topdown=False):
            for name in own_pins(names):
                (Path(folder) / name).unlink()
                count += 1
            if not os.path.ismount(folder):
                Path(folder).rmdir()
    except OSError as error:
        return Part("pins", str(pins), "failed", f"{error.filename}: {error.strerror}")
    return Part("pins", str(pins), "removed" if count else "absent", f"{count}" if count else "")
