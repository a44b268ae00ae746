# SPDX-License-Identifier: Apache-2.0
"""What one generation changes against the one before, in numbers that a person can check."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tidegate import maglev
from tidegate.model.constants import TABLE_SIZE
from tidegate.model.generation import Generation


@dataclass(frozen=True)
class Diff:
    """Names that came, went or changed, and how far each pool's table moved.

    Attributes:
        moved: slots whose owner changed, by pool.
        minimum: the fewest slots that any table with the new shares could have moved, by pool.
    """

    vips: int
    backends_added: int
    backends_removed: int
    backends_changed: int
    moved: Mapping[str, int] = field(default_factory=dict)
    minimum: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        moved = ",".join(
            f"{pool}:{slots}/{TABLE_SIZE}(min {self.minimum[pool]})"
            for pool, slots in sorted(self.moved.items())
        )
        return (
            f"vips={self.vips} added={self.backends_added} removed={self.backends_removed} "
            f"changed={self.backends_changed} moved={moved or 'none'}"
        )


def difference(before: Generation, after: Generation) -> Diff:
    """Compares two generations."""
    old, new = before.backends, after.backends
    moved: dict[str, int] = {}
    minimum: dict[str, int] = {}
    for name, placed in after.pools.items():
        was = before.pools.get(name)
        if was is not None and was.table.current is not placed.table.current:
            measured = maglev.disruption(was.table.current, placed.table.current)
            if measured.moved:
                moved[name], minimum[name] = measured.moved, measured.minimum
    return Diff(
        vips=len(after.vips),
        backends_added=len(new.keys() - old.keys()),
        backends_removed=len(old.keys() - new.keys()),
        backends_changed=sum(old[key] != new[key] for key in old.keys() & new.keys()),
        moved=moved,
        minimum=minimum,
    )
