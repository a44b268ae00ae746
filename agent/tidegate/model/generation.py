# SPDX-License-Identifier: Apache-2.0
"""A generation: everything that the data plane holds at one moment, with its ids and tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tidegate.model.values import (
    FIT,
    Backend,
    BackendKey,
    ByPool,
    Endpoint,
    Fitness,
    Pool,
    Vip,
)

Slots: TypeAlias = npt.NDArray[np.uint32]
WindowIndex: TypeAlias = npt.NDArray[np.uint8]
Marks: TypeAlias = npt.NDArray[np.bool_]

WINDOWS = 256
"""Windows of a table; index 0 means that the slot is not in transition."""


class Window(NamedTuple):
    """The time in which a slot's untracked flows stay with its fallback."""

    opened: int
    """Generation whose table opened it."""
    closes_at: int
    """Wall-clock second at which the fallback becomes the current owner."""


CLOSED = Window(0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A pool's Maglev table as the data plane reads it. The arrays are read-only.

    Attributes:
        generation: number of the generation that filled it.
        current: uint32[TABLE_SIZE], backend id that owns each slot; 0 where the pool has none.
        fallback: uint32[TABLE_SIZE], owner when the slot's window opened; equal to `current` where
            the slot is not in transition.
        window: uint8[TABLE_SIZE], index into `windows`; 0 where the slot is not in transition. A
            slot that moved away and back inside its window is in transition with equal owners.
        windows: the open windows, at most WINDOWS; entry 0 is CLOSED.
        tracked: bool[TABLE_SIZE], slots that may have tracked flows: set when a slot's window opens
            and left set when it closes, since flows that were tracked in it may outlive it.
    """

    generation: int
    current: Slots
    fallback: Slots
    window: WindowIndex
    tracked: Marks
    windows: tuple[Window, ...] = (CLOSED,)


class Identity(NamedTuple):
    """An id and which use of that id it is."""

    id: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class PlacedVip:
    """A VIP with its id.

    Attributes:
        unserved: its pools of which no backend takes new flows, while its sorry pool has one that
            does; sorted.
        moved: whether it has had other pools since it has this identity. Flows that began at
            another pool may still have entries, so the SYNs of such a VIP have to look for them.
        line: of the generation's digest.
    """

    identity: Identity
    vip: Vip
    unserved: tuple[str, ...] = ()
    moved: bool = False
    line: str = field(default="", compare=False, repr=False)

    def serving(self, pool: str) -> str:
        """Return the pool whose table serves for a pool: itself, or the sorry pool in its place."""
        sorry = self.vip.sorry_pool
        return sorry if sorry is not None and pool in self.unserved else pool


class Level(NamedTuple):
    """How many backends of a pool served, by their documents, until there were fewer."""

    until: int
    """Wall-clock second."""
    serving: int


@dataclass(frozen=True, slots=True)
class PlacedPool:
    """A pool with its id, which is its slot of the outer map, and its table.

    Attributes:
        digest: hash of the current table by backend names.
        levels: those that were higher than all after them, oldest first; guards look back to them.
            They are no part of what a packet meets, so they make no generation.
    """

    identity: Identity
    pool: Pool
    table: Table
    digest: bytes
    levels: tuple[Level, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class PlacedBackend:
    """A backend with its id, and what it does at the generation's time.

    Attributes:
        weight: its share of new flows now, as states and ramps have it; 0 takes none.
        reachable: whether its flows still go to it.
        retire_at: None while its key exists; else the wall-clock second at which its
            deregistration delay ends.
        fitness: what health checks have made of it.
        line: of the generation's digest; empty where it has not been asked for.
    """

    identity: Identity
    backend: Backend
    weight: int
    reachable: bool
    retire_at: int | None = None
    fitness: Fitness = FIT
    line: str = field(default="", compare=False, repr=False)


class Freed(NamedTuple):
    """A freed id: the incarnation of its last use, and the wall-clock second of its freeing.

    A VIP's has the endpoint, which gets the identity back if it returns while the id rests.
    """

    incarnation: int
    at: int
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class FreedIds:
    """Ids that were used before, by kind; each rests before it is used again."""

    vips: Mapping[int, Freed] = field(default_factory=dict)
    pools: Mapping[int, Freed] = field(default_factory=dict)
    backends: Mapping[int, Freed] = field(default_factory=dict)


class PlannedPool(NamedTuple):
    """A pool, or backends that outlive theirs, as one plan has it: from what, and the result.

    Attributes:
        document: the pool's; None if there is none.
        wanted: its backends' documents.
        fitness: what health made of its backends; None if that was not known.
        placed: the result, None without a document.
        backends: its backends in the result.
        next_change: wall-clock second at which time alone changes the result, or None.
        serves: whether any backend takes new flows.
        line: of the generation's digest; empty without a document.
    """

    document: Pool | None
    wanted: Mapping[BackendKey, Backend]
    fitness: Mapping[BackendKey, Fitness] | None
    placed: PlacedPool | None
    backends: Mapping[BackendKey, PlacedBackend]
    next_change: int | None
    serves: bool
    line: str


@dataclass(frozen=True, slots=True)
class Generation:
    """What the data plane holds at one moment.

    Attributes:
        number: monotonic on this host, over restarts too; 0 is the empty one before the first.
        revision: etcd revision that it was built from.
        digest: hex digest of VIPs, backends and current tables by name, not by id, and without what
            has moved, so that it is equal on every host with the same inputs whatever its history.
        hash_seed: key of the flow hash from the keyspace; None leaves it to the agent's file.
        release: release that it was built from; empty if that is not known.
        pointer: track whose key named the release; empty if none did.
        planned: by pool, what it was planned from and what follows: the next plan leaves out each
            pool of which nothing is another one. It may be empty, or older than the rest.
    """

    number: int
    revision: int
    digest: str
    vips: Mapping[str, PlacedVip]
    pools: Mapping[str, PlacedPool]
    backends: Mapping[BackendKey, PlacedBackend]
    freed: FreedIds = field(default_factory=FreedIds)
    hash_seed: str | None = None
    release: str = ""
    pointer: str = ""
    planned: Mapping[str, PlannedPool] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Keep backends by pool."""
        object.__setattr__(self, "backends", ByPool.of(self.backends))

    @property
    def by_pool(self) -> ByPool[PlacedBackend]:
        """The backends, in groups by pool."""
        return ByPool.of(self.backends)

    def server_ids(self, pool: str) -> dict[bytes, PlacedBackend]:
        """Return who has each QUIC server id of a pool.

        A backend that drains yields to one that has a key; of two that drain one that is reachable
        comes first, and then the first by name: no host knows better than the others.
        """
        having = [each for each in self.by_pool.group(pool).values() if each.backend.quic_server_id]
        having.sort(key=lambda p: (p.retire_at is not None, not p.reachable, p.backend.key))
        found: dict[bytes, PlacedBackend] = {}
        for placed in having:
            found.setdefault(placed.backend.quic_server_id, placed)
        return found

    @property
    def on_sorry_pool(self) -> tuple[str, ...]:
        """VIPs that their sorry pool serves, for some of their clients at least; sorted."""
        return tuple(sorted(name for name, placed in self.vips.items() if placed.unserved))


NOTHING = Generation(number=0, revision=0, digest="", vips={}, pools={}, backends={})
