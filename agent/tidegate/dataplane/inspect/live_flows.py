# SPDX-License-Identifier: Apache-2.0
"""Which entries of the connection table are live flows.

A live flow is an entry whose flow goes on as far as packets show, and whose next packet would
follow it: its client has not ended it (ENDING), it has not been silent for longer than its VIP's
idle timeout, its VIP is in force and tracks flows, and its backend exists and may be reached.
Silence is counted in ticks, as packets count it.

An entry that came from a table of another size was copied into every place where its flow may look
for it (COPIED). Of such copies one is a flow, and none is where the flow has an entry without that
flag.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.kernel.lines import Lines, Occupied, occupied
from tidegate.model.constants import MAX_BACKENDS, MAX_VIPS
from tidegate.model.generation import Generation
from tidegate.model.ticks import AHEAD, TICKS, Clock
from tidegate.model.values import Vip
from tidegate.spec.lines import COPIED, ENDING

NONE: Final = -1


class Flows(NamedTuple):
    """Entries of the connection table, one array element each.

    Attributes:
        owner: the entry's word as it stands, which tells flows apart.
        vip: ids.
        backend: ids.
        incarnation: lower 8 bits of which use of the backend's id it is.
        age: ticks since it last spoke.
        flags: as in `spec.lines`.
    """

    owner: npt.NDArray[np.uint64]
    vip: npt.NDArray[np.uint32]
    backend: npt.NDArray[np.uint32]
    incarnation: npt.NDArray[np.uint8]
    age: npt.NDArray[np.uint16]
    flags: npt.NDArray[np.uint8]

    def where(self, mask: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> "Flows":
        """Return some of them."""
        return Flows._make(each[mask] for each in self)


def decoded(part: Occupied, tick: int) -> Flows:
    """Return entries as flows at this tick."""
    halves = part.owners.view(np.uint32)[::2]
    ticks = part.states.view(np.uint16)[1::2]
    age = np.uint16((tick + AHEAD) % TICKS) - ticks
    np.maximum(age, AHEAD, out=age)
    age -= np.uint16(AHEAD)
    return Flows(
        part.owners,
        part.states >> np.uint32(4) & np.uint32(MAX_VIPS - 1),
        halves & np.uint32(MAX_BACKENDS - 1),
        (halves >> np.uint32(16)).astype(np.uint8),
        age,
        part.states.astype(np.uint8) & np.uint8(15),
    )


def read(lines: Lines, tick: int) -> Iterator[Flows]:
    """Yield the entries of a table in parts, of copies one; those come last."""
    copies: list[Flows] = []
    places: list[npt.NDArray[np.intp]] = []
    for part in occupied(lines):
        flows = decoded(part, tick)
        is_copy = (flows.flags & np.uint8(COPIED)) != 0
        if is_copy.any():
            copies.append(flows.where(is_copy))
            places.append(part.owner_at[is_copy])
            flows = flows.where(~is_copy)
        yield flows
    if copies:
        found = Flows._make(map(np.concatenate, zip(*copies, strict=True)))
        yield _once(lines, found, np.concatenate(places))


def _once(lines: Lines, copies: Flows, places: npt.NDArray[np.intp]) -> Flows:
    """Return one copy of each owner that has no entry of its own.

    The place of a copy does not count as such an entry, though its flow may speak meanwhile.
    """
    owners, first = np.unique(copies.owner, return_index=True)
    is_alone = np.ones(len(owners), bool)
    places = np.sort(places)
    for part in occupied(lines):
        own = (part.states & np.uint32(COPIED)) == 0
        own[_held(places, part.owner_at)] = False
        at = np.searchsorted(owners, each := part.owners[own])
        at[at == len(owners)] = 0
        is_alone[at[owners[at] == each]] = False
    return copies.where(first[is_alone])


def _held(held: npt.NDArray[np.intp], wanted: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Return which of the wanted numbers are among those held, which are sorted."""
    at = np.searchsorted(held, wanted)
    at[at == len(held)] = 0
    found: npt.NDArray[np.bool_] = held[at] == wanted
    return found


@dataclass(frozen=True)
class Rules:
    """A generation by ids, as far as it decides which entries are live flows.

    Attributes:
        vips: incarnation of each VIP id; 0 for none.
        limits: largest age in ticks of a live flow of each VIP id; NONE where no flow is tracked.
        backends: lower 8 bits of the incarnation of each backend id; NONE where packets may not go.
        leaving: backends that take no new flows until they end.
    """

    vips: npt.NDArray[np.uint32]
    limits: npt.NDArray[np.int32]
    backends: npt.NDArray[np.int16]
    leaving: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, generation: Generation, clock: Clock) -> Self:
        """Return the rules of a generation."""
        rules = cls(
            np.zeros(MAX_VIPS, np.uint32),
            np.full(MAX_VIPS, NONE, np.int32),
            np.full(MAX_BACKENDS, NONE, np.int16),
            np.zeros(MAX_BACKENDS, bool),
        )
        for placed in generation.vips.values():
            id_, incarnation = placed.identity
            rules.vips[id_] = incarnation
            if placed.vip.tracking != "none":
                rules.limits[id_] = idle_limit(placed.vip, clock)
        for backend in generation.backends.values():
            id_, incarnation = backend.identity
            if backend.reachable:
                rules.backends[id_] = incarnation & 0xFF
            rules.leaving[id_] = backend.retire_at is not None or bool(
                backend.backend.state == "drain" and backend.backend.drain_deadline
            )
        return rules

    def live(self, flows: Flows) -> npt.NDArray[np.bool_]:
        """Return which of these entries are live flows."""
        is_live: npt.NDArray[np.bool_] = (flows.flags & np.uint8(ENDING)) == 0
        is_live &= flows.age <= self.limits.take(flows.vip)
        is_live &= self.backends.take(flows.backend) == flows.incarnation
        return is_live


def count(counts: npt.NDArray[np.int64], ids: npt.NDArray[np.uint32]) -> None:
    """Add the number of times that each id is there to the counts by id."""
    found = np.bincount(ids)
    counts[: len(found)] += found


def idle_limit(vip: Vip, clock: Clock) -> int:
    """Return the age in ticks above which a VIP's flow is idle; without a timeout none is."""
    seconds = vip.udp_idle_timeout if vip.protocol == "udp" else vip.tcp_idle_timeout
    return min(clock.limit(seconds), TICKS) if seconds else TICKS
