# SPDX-License-Identifier: Apache-2.0
"""What the data plane has room for, and whose documents are beyond it. Pure.

Each kind of document has a limit. What is in force stays; of the rest those have room whose keys
were created first, and each of the others is refused for itself, so that one document too many
keeps nothing else from coming into force.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple, TypeVar

from tidegate.model.constants import (
    MAX_BACKENDS,
    MAX_NETWORK_VIPS,
    MAX_POOLS,
    MAX_ROUTES,
    MAX_VIPS,
)

_Name = TypeVar("_Name")


class Room(NamedTuple):
    """A limit, and what it is on."""

    limit: int
    what: str

    @property
    def reason(self) -> str:
        """Why a document is refused."""
        return (
            f"there is room for {self.limit} {self.what}, and those in force or created before "
            "this one take it; delete some of them"
        )


POOLS: Final = Room(MAX_POOLS - 1, "pools")
VIPS: Final = Room(MAX_VIPS - 1, "VIPs")
NETWORKS: Final = Room(MAX_NETWORK_VIPS, "VIPs that are networks")
ROUTES: Final = Room(MAX_ROUTES, "source routes and denied prefixes")
BACKENDS: Final = Room(MAX_BACKENDS - 1, "backends")


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
