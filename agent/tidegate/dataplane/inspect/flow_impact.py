# SPDX-License-Identifier: Apache-2.0
"""What a change of generation does to the live flows of the connection table, counted.

Which entries are live flows says `live_flows`; all others are `stale`: their client has ended
them, they are idle, or no packet would follow them. An entry has its VIP's id and not which use of
that id it is, but a VIP that becomes another one loses its flows: their keys are of the use before.
Flows without an entry are not here: the tables' windows keep them (docs/dataplane.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.inspect.live_flows import Flows, Rules, count
from tidegate.model.constants import MAX_BACKENDS, MAX_VIPS
from tidegate.model.generation import Generation
from tidegate.model.ticks import Clock

_Counts = npt.NDArray[np.int64]


@dataclass
class FlowImpact:
    """Live flows by what becomes of them, by VIP or backend where that is useful.

    Attributes:
        tracked: all of them.
        stale: entries that are none.
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


def flow_impact(
    flows: Iterable[Flows], before: Generation, after: Generation, clock: Clock
) -> FlowImpact:
    """Count live flows by what becomes of them.

    Args:
        flows: the connection table.
        before: the generation in force.
        after: the one that would follow.
        clock: what ticks are worth.
    """
    old, new = Rules.of(before, clock), Rules.of(after, clock)
    has_use = (old.vips == new.vips) & (new.vips != 0)
    is_followed, leaves = has_use & (new.limits >= 0), new.leaving & ~old.leaving
    found = FlowImpact()
    by_vip = {kind: np.zeros(MAX_VIPS, np.int64) for kind in ("lost_vip", "forgotten")}
    by_backend = {kind: np.zeros(MAX_BACKENDS, np.int64) for kind in ("lost_backend", "leaving")}
    for part in flows:
        is_live = old.live(part)
        vip, backend, incarnation = (
            each[is_live] for each in (part.vip, part.backend, part.incarnation)
        )
        has_vip, follows = has_use[vip], is_followed[vip]
        stays = follows & (new.backends[backend] == incarnation)
        found.tracked += len(vip)
        found.stale += len(part.vip) - len(vip)
        count(by_vip["lost_vip"], vip[~has_vip])
        count(by_vip["forgotten"], vip[has_vip & ~follows])
        count(by_backend["lost_backend"], backend[follows & ~stays])
        count(by_backend["leaving"], backend[stays & leaves[backend]])
    vips = {placed.identity.id: name for name, placed in before.vips.items()}
    backends = {placed.identity.id: str(key) for key, placed in before.backends.items()}
    for kind, counts in by_vip.items():
        setattr(found, kind, _named(counts, vips))
    for kind, counts in by_backend.items():
        setattr(found, kind, _named(counts, backends))
    return found


def _named(counts: _Counts, names: dict[int, str]) -> dict[str, int]:
    return {names[int(id_)]: int(counts[id_]) for id_ in np.flatnonzero(counts)}
