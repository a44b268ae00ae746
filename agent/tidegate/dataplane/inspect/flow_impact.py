# SPDX-License-Identifier: Apache-2.0
"""What a change of generation does to the flows that are tracked, counted.

A tracked flow is one whose next packet would follow its entry of the connection table: the entry
is of this use of its VIP's and its backend's ids, the backend is reachable, the VIP is one that
tracks, and (of UDP) it has not been idle for too long. Entries that are no flow in this sense are
`stale`. Flows without an entry are not here: the tables' windows keep them (docs/dataplane.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.inspect.pinned import Flows
from tidegate.model.constants import MAX_BACKENDS, MAX_VIPS
from tidegate.model.generation import Generation

_Incarnations = npt.NDArray[np.uint32]
_Counts = npt.NDArray[np.int64]
_SECOND = 1_000_000_000


@dataclass
class FlowImpact:
    """Tracked flows by what becomes of them, by VIP or backend where that is useful.

    Attributes:
        tracked: all of them.
        stale: entries that no packet would follow already.
        lost_vip: their VIP is removed, or changes its address, port or protocol.
        lost_backend: their backend is removed at once, quarantined or disabled.
        forgotten: their VIP stays but no longer tracks flows; the tables decide.
        leaving: they stay, until their backend's drain has ended.
    """

    tracked: int = 0
    stale: int = 0
    lost_vip: dict[str, int] = field(default_factory=dict)
    lost_backend: dict[str, int] = field(default_factory=dict)
    forgotten: dict[str, int] = field(default_factory=dict)
    leaving: dict[str, int] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Flows that do not stay where they are."""
        return sum(sum(each.values()) for each in (self.lost_vip, self.lost_backend))


class ActiveIncarnations(NamedTuple):
    """A generation by ids: the incarnation of each that packets may follow, 0 for none."""

    vips: _Incarnations
    tracking: _Incarnations
    """As `vips`, of those that track flows."""
    idle: npt.NDArray[np.uint64]
    """ns after which a flow of a VIP is forgotten; 0 is never."""
    backends: _Incarnations
    leaving: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, generation: Generation) -> Self:
        """Build the arrays of a generation."""
        state = cls(
            np.zeros(MAX_VIPS, np.uint32),
            np.zeros(MAX_VIPS, np.uint32),
            np.zeros(MAX_VIPS, np.uint64),
            np.zeros(MAX_BACKENDS, np.uint32),
            np.zeros(MAX_BACKENDS, bool),
        )
        for vip in generation.vips.values():
            id_, incarnation = vip.identity
            state.vips[id_] = incarnation
            state.tracking[id_] = incarnation if vip.vip.tracking != "none" else 0
            idle = vip.vip.udp_idle_timeout if vip.vip.protocol == "udp" else 0
            state.idle[id_] = idle * _SECOND
        for backend in generation.backends.values():
            id_, incarnation = backend.identity
            state.backends[id_] = incarnation if backend.reachable else 0
            state.leaving[id_] = backend.retire_at is not None or bool(
                backend.backend.state == "drain" and backend.backend.drain_deadline
            )
        return state

    def tracked(self, flows: Flows, now: int) -> npt.NDArray[np.bool_]:
        """Return which of these entries are tracked flows at this monotonic time, ns."""
        entry = flows.entry
        vip, backend = vip_ids(flows), entry["backend"]
        is_tracked: npt.NDArray[np.bool_] = self.tracking[vip] == entry["vip_incarnation"]
        is_tracked &= self.backends[backend] == entry["backend_incarnation"]
        idle = self.idle[vip]
        # Clocks: an entry may be younger than `now`, which is not a long time ago.
        age = (np.uint64(now) - entry["seen"]).astype(np.int64)
        is_tracked &= (idle == 0) | (age <= idle.astype(np.int64))
        return is_tracked


def vip_ids(flows: Flows) -> npt.NDArray[np.uint32]:
    """Return the VIP id of each entry; the other bits are a digest of the destination."""
    ids: npt.NDArray[np.uint32] = flows.vip & np.uint32(MAX_VIPS - 1)
    return ids


def flow_impact(
    flows: Iterable[Flows], before: Generation, after: Generation, now: int
) -> FlowImpact:
    """Count flows by what becomes of them.

    Args:
        flows: the connection table.
        before: the generation in force.
        after: the one that would follow.
        now: monotonic clock, ns, as the packet path's.
    """
    old, new = ActiveIncarnations.of(before), ActiveIncarnations.of(after)
    found = FlowImpact()
    by_vip = {kind: np.zeros(MAX_VIPS, np.int64) for kind in ("lost_vip", "forgotten")}
    by_backend = {kind: np.zeros(MAX_BACKENDS, np.int64) for kind in ("lost_backend", "leaving")}
    for part in flows:
        vip, backend = vip_ids(part), part.entry["backend"]
        use, incarnation = part.entry["vip_incarnation"], part.entry["backend_incarnation"]
        is_tracked = old.tracked(part, now)
        has_vip, is_followed = new.vips[vip] == use, new.tracking[vip] == use
        stays = is_tracked & is_followed & (new.backends[backend] == incarnation)
        found.tracked += int(np.count_nonzero(is_tracked))
        found.stale += len(vip) - int(np.count_nonzero(is_tracked))
        _add(by_vip["lost_vip"], vip[is_tracked & ~has_vip])
        _add(by_vip["forgotten"], vip[is_tracked & has_vip & ~is_followed])
        _add(by_backend["lost_backend"], backend[is_tracked & is_followed & ~stays])
        _add(by_backend["leaving"], backend[stays & new.leaving[backend] & ~old.leaving[backend]])
    vips = {placed.identity.id: name for name, placed in before.vips.items()}
    backends = {placed.identity.id: str(key) for key, placed in before.backends.items()}
    for kind, counts in by_vip.items():
        setattr(found, kind, _named(counts, vips))
    for kind, counts in by_backend.items():
        setattr(found, kind, _named(counts, backends))
    return found


def _add(counts: _Counts, ids: npt.NDArray[np.uint32]) -> None:
    if len(ids):
        counts += np.bincount(ids, minlength=len(counts))


def _named(counts: _Counts, names: dict[int, str]) -> dict[str, int]:
    return {names[int(id_)]: int(counts[id_]) for id_ in np.flatnonzero(counts)}
