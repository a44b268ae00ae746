# SPDX-License-Identifier: Apache-2.0
"""What the data plane has room for, and whose documents are beyond it. Pure.

Each kind of document has a limit. What is in force stays; of the rest those have room whose keys
were created first, and each of the others is refused for itself, so that one document too many
keeps nothing else from coming into force.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from tidegate.model.constants import (
    MAX_BACKENDS,
    MAX_NETWORK_VIPS,
    MAX_POOLS,
    MAX_ROUTES,
    MAX_VIPS,
)
from tidegate.model.grouped import Edits
from tidegate.model.values import Backend, BackendKey, Stage, Vip

if TYPE_CHECKING:  # it brings numpy, which `tidegate validate` does without
    from tidegate.model.generation import Generation, PlacedPool, PlacedVip

_Name = TypeVar("_Name")

RETRY_SECONDS: Final = 5
"""After which documents are looked at again that found no id; earlier where something has left."""


class Room(NamedTuple):
    """A limit, and what it is on.

    Attributes:
        most: that fit.
        what: they are.
        leaving: of what is in force and not wanted any more, which has its place until it has left.
    """

    most: int
    what: str
    leaving: int = 0

    @property
    def limit(self) -> int:
        """Those that fit now beside what leaves."""
        return self.most - self.leaving

    @property
    def stage(self) -> Stage:
        """Where a document is refused: for want of ids now, or for want of room at all."""
        return "build" if self.leaving else "reference"

    @property
    def reason(self) -> str:
        """Why a document is refused."""
        if self.leaving:
            return (
                f"there is room for {self.most} {self.what}, and {self.leaving} that were deleted "
                "have not left yet: nothing to do, it is tried again when they have"
            )
        return (
            f"there is room for {self.most} {self.what}, and those in force or created before "
            "this one take it; delete some of them"
        )


POOLS: Final = Room(MAX_POOLS - 1, "pools")
VIPS: Final = Room(MAX_VIPS - 1, "VIPs")
NETWORKS: Final = Room(MAX_NETWORK_VIPS, "VIPs that are networks")
ROUTES: Final = Room(MAX_ROUTES, "source routes and denied prefixes")
BACKENDS: Final = Room(MAX_BACKENDS - 1, "backends")


class Places:
    """Room as far as what is in force leaves it: whatever has an id has it until it has left.

    What leaves gives its id back with the change after which it is gone, and a backend that drains
    later. So as long as documents change places with what they replace there may be fewer ids than
    documents fit; who finds none is refused, and not the change that everybody else is in.

    Args:
        in_force: the generation; None for none.
    """

    def __init__(self, in_force: "Generation | None" = None) -> None:
        self._in_force = in_force
        self._pools: Mapping[str, PlacedPool] = in_force.pools if in_force else {}
        self._vips: Mapping[str, PlacedVip] = in_force.vips if in_force else {}

    def pools(self, wanted: Collection[str]) -> Room:
        """Return the room for pools."""
        there = self._pools
        if len(wanted) + len(there) <= POOLS.most:
            return POOLS
        return POOLS._replace(leaving=sum(name not in wanted for name in there))

    def vips(self, wanted: Mapping[str, Vip]) -> Room:
        """Return the room for VIPs; one is the same whose name is, or whose endpoint is."""
        there = self._vips
        if len(wanted) + len(there) <= VIPS.most:
            return VIPS
        fresh = {wanted[name].endpoint for name in wanted.keys() - there.keys()}
        gone = (there[name].vip.endpoint for name in there.keys() - wanted.keys())
        return VIPS._replace(leaving=sum(endpoint not in fresh for endpoint in gone))

    def backends(self, wanted: Edits[BackendKey, Backend]) -> Room:
        """Return the room for backends; one is the same whose name is, or whose address is."""
        generation = self._in_force
        if generation is None or len(wanted) + len(generation.backends) <= BACKENDS.most:
            return BACKENDS
        leaving = 0
        for pool, there in generation.by_pool.groups.items():
            here, planned = wanted.group(pool), generation.planned.get(pool)
            if planned is not None and planned.wanted is here and planned.backends is there:
                leaving += len(there) - len(here)  # as in nearly all pools
                continue
            fresh = {here[key].address for key in here.keys() - there.keys()}
            gone = (there[key].backend.address for key in there.keys() - here.keys())
            leaving += sum(address not in fresh for address in gone)
        return BACKENDS._replace(leaving=leaving)


class Claim(NamedTuple):
    """What a document takes of a limit.

    Attributes:
        kept: what its last value takes, which stays if the document is refused; 0 if there is none.
        created: revision of its key.
    """

    wanted: int
    kept: int
    created: int


def beyond(room: Room, claims: Iterable[tuple[_Name, Claim]]) -> list[_Name]:
    """Return whose documents there is no room for.

    Who takes no more than before always has room.
    """
    ordered = sorted(claims, key=lambda item: (item[1].kept == 0, item[1].created))
    left = room.limit - sum(min(claim.kept, claim.wanted) for _, claim in ordered)
    refused = []
    for name, claim in ordered:
        more = claim.wanted - min(claim.kept, claim.wanted)
        if not more or more <= left:
            left -= more
            continue
        refused.append(name)
        left -= claim.kept - min(claim.kept, claim.wanted)
    return refused
