# SPDX-License-Identifier: Apache-2.0
"""What documents would do to a running data plane, without doing it: the body of `tidegate plan`.

It takes the steps of an agent (guards, plan, difference) from the generation that is in force, and
counts what would become of the live flows. Nothing is written anywhere.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from tidegate.dataplane.inspect.flow_impact import FlowImpact, flow_impact
from tidegate.dataplane.inspect.pinned import PinnedDataPlane
from tidegate.dataplane.kernel.jiffies import Jiffies, clock
from tidegate.errors import GenerationRefused
from tidegate.model.constants import TABLE_SIZE
from tidegate.model.generation import Generation
from tidegate.model.values import Desired
from tidegate.planner import guards, plan
from tidegate.planner.diff import Diff, difference


@dataclass(frozen=True)
class Forecast:
    """What the documents would do.

    Attributes:
        before: the generation in force.
        after: the one that would follow; None if there can be none.
        diff: between the two.
        changed: by `kind/name` (vips, pools, backends), the fields that differ.
        flows: what becomes of live flows; None without `after`.
        refusals: why an agent would not do it.
    """

    before: Generation
    after: Generation | None
    diff: Diff = field(default_factory=Diff)
    changed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    flows: FlowImpact | None = None
    refusals: tuple[str, ...] = ()


def forecast(desired: Desired, pins: Path, limits: guards.Limits) -> Forecast:
    """Read a pinned data plane and forecast what these documents would do to it.

    Args:
        desired: documents without a fault.
        pins: may be empty or absent, then all would be new.
        limits: of the agent's guards. Overrides are not known here.

    Raises:
        CapabilityError: the pins may not be read.
        DataplaneError: they cannot be read.
    """
    with PinnedDataPlane(pins) as pinned:
        before, now = pinned.generation(), int(time.time())
        refusals = [str(r) for r in guards.refusals(desired, before, limits, (), now)]
        try:
            after = plan(desired, before, now)
        except GenerationRefused as error:
            return Forecast(before, None, refusals=(*refusals, str(error)))
        diff = difference(before, after)
        refusals += [str(r) for r in guards.disruption_refusals(diff, desired.revision, (), now)]
        with Jiffies() as jiffies:
            tick = clock().tick(jiffies.now())
        flows = flow_impact(pinned.flows(tick), before, after, clock())
    return Forecast(before, after, diff, _changed(before, after, diff), flows, tuple(refusals))


def _changed(before: Generation, after: Generation, diff: Diff) -> dict[str, tuple[str, ...]]:
    """Return which fields of each changed document differ."""
    found: dict[str, tuple[str, ...]] = {}
    for name in diff.vips.changed:
        was, would_be = before.vips[name], after.vips[name]
        found[f"vips/{name}"] = _fields(was.vip, would_be.vip)
        if was.unserved != would_be.unserved:
            found[f"vips/{name}"] += ("on_sorry_pool",)
    for name in diff.pools.changed:
        found[f"pools/{name}"] = _fields(before.pools[name].pool, after.pools[name].pool)
    keys = {str(key): key for key in after.backends}
    for name in diff.backends.changed:
        old, new = before.backends[keys[name]], after.backends[keys[name]]
        found[f"backends/{name}"] = _fields(old.backend, new.backend)
    return found


def _fields(old: Any, new: Any) -> tuple[str, ...]:  # noqa: ANN401 - two values of one dataclass
    return tuple(
        each.name for each in fields(old) if getattr(old, each.name) != getattr(new, each.name)
    )


def shares(generation: Generation | None, pool: str) -> dict[str, float]:
    """Return each backend's share of a pool's slots, in percent, by name; none without a table."""
    placed = generation.pools.get(pool) if generation else None
    if generation is None or placed is None:
        return {}
    counts = np.bincount(placed.table.current)
    ids = {p.identity.id: key.name for key, p in generation.backends.items() if key.pool == pool}
    return {
        ids.get(int(id_), str(id_)): 100 * int(counts[id_]) / TABLE_SIZE
        for id_ in np.flatnonzero(counts)
        if id_
    }
