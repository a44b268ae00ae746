# SPDX-License-Identifier: Apache-2.0
"""What is attached to the interfaces, and whose it is: told by name, maps and owner, not by pins.

A program is this data plane's if it is a balancer and uses a map that is pinned in our folder, or
if the owner in its maps is this agent: same fleet, host and `pin_dir`. A balancer of another owner
is another Tidegate's; one without an owner is of a version that did not write it.
"""

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from tidegate.dataplane.kernel import maps, objects, owner, programs
from tidegate.dataplane.kernel.owner import Owner
from tidegate.dataplane.kernel.programs import Attachment, XdpMode
from tidegate.errors import DataplaneError

_NAMES = {maps.kernel_name(name): name for name in maps.shapes(maps.Capacity())}


@dataclass(frozen=True)
class Seen:
    """A program on one or more interfaces.

    Attributes:
        id: its number.
        where: its mode by the name of each interface.
        info: what the kernel says of it; None if we may not look.
        maps: numbers of its maps, by the names that `maps.shapes` has for them.
        owner: as its maps name it.
    """

    id: int
    where: Mapping[str, XdpMode]
    info: objects.ProgramInfo | None = None
    maps: Mapping[str, int] | None = None
    owner: Owner | None = None

    @property
    def is_balancer(self) -> bool:
        """Whether it is a Tidegate's, of whatever version."""
        has_name = self.info is not None and self.info.name == programs.BALANCER
        return has_name and bool(self.maps) and "backends" in (self.maps or {})

    def is_of(self, wanted: Owner, pinned: Collection[int]) -> bool:
        """Return whether it is the data plane of this owner, which has these maps pinned."""
        if not self.is_balancer:
            return False
        shares = not set(pinned).isdisjoint((self.maps or {}).values())
        return shares or self.owner == wanted

    def __str__(self) -> str:
        """Return what it is, as part of a sentence."""
        if self.info is None:
            return f"an XDP program (id {self.id}) that only CAP_SYS_ADMIN may look at"
        if not self.is_balancer:
            return f"the XDP program {self.info.name!r} (id {self.id}), which is not Tidegate's"
        whose = f"of {self.owner}" if self.owner else "of an older version, which names no owner"
        return f"a balancer (id {self.id}, tag {self.info.tag}) {whose}"


def attachments_of(interfaces: Iterable[str]) -> dict[str, Attachment]:
    """Return what is on each interface; those without a program are left out."""
    found = {}
    for interface in interfaces:
        with suppress(DataplaneError):  # it is away
            if there := programs.attached(interface):
                found[interface] = there
    return found


def places(interfaces: Iterable[str]) -> dict[int, dict[str, XdpMode]]:
    """Return where each program is, by its number: modes by the name of the interface."""
    found: dict[int, dict[str, XdpMode]] = {}
    for interface, there in attachments_of(interfaces).items():
        found.setdefault(there.program_id, {})[interface] = there.mode
    return found


def look(number: int, where: Mapping[str, XdpMode]) -> Seen:
    """Look at a program, as far as this process may."""
    try:
        with objects.program(number) as fd:
            return of_program(fd, where)
    except (PermissionError, FileNotFoundError):
        return Seen(number, where)


def of_program(fd: int, where: Mapping[str, XdpMode]) -> Seen:
    """Look at an open program; its maps are left out where we may not open them.

    Raises:
        OSError: the kernel refused.
    """
    info = objects.program_info(fd)
    found, named = {}, None
    try:
        for number in info.maps:
            with suppress(FileNotFoundError), objects.opened_map(number) as each:
                name = _NAMES.get(objects.map_name(each))
                if name is None:
                    continue
                found[name] = number
                if name == "owner" and maps.shape_of(each).value_size == maps.OWNER_BYTES:
                    named = owner.read(each)
    except PermissionError:
        return Seen(info.id, where, info)
    return Seen(info.id, where, info, found, named)
