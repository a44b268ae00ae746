# SPDX-License-Identifier: Apache-2.0
"""When the connection table is tidied."""

from typing import cast

from tidegate.agent.sweeps import SECONDS, Sweeps
from tidegate.dataplane.sweep import Sweeper, Swept


class Table:
    """A table of so many parts; it notes at which part each call was."""

    def __init__(self, parts: int) -> None:
        self.parts, self.at = parts, 0
        self.calls: list[int] = []
        self.looks = 0

    @property
    def is_under_way(self) -> bool:
        """Whether a part is left."""
        return self.at > 0

    def follow(self) -> None:
        """Look at the generation in force."""
        self.looks += 1

    def sweep(self) -> Swept:
        """Tidy the next part."""
        self.calls.append(self.at)
        self.at = (self.at + 1) % self.parts
        return Swept(1, 2)


def test_a_sweep_is_a_minute_after_the_last() -> None:
    """Not at the start, when flows have just come back; between sweeps generations are noted."""
    table = Table(1)
    sweeps = Sweeps(cast("Sweeper", table), 10.0)
    for now in (10.0, 10.0 + SECONDS - 1):
        sweeps.sweep(now)
        assert sweeps.next_due() == 10.0 + SECONDS
    assert (table.calls, table.looks) == ([], 2)
    sweeps.sweep(75.0)
    assert table.calls == [0]
    assert sweeps.next_due() == 75.0 + SECONDS


def test_a_large_table_takes_several_turns() -> None:
    """The loop comes back at once for the next part, and so can do other things in between."""
    table = Table(3)
    sweeps = Sweeps(cast("Sweeper", table), 0.0)
    for turn in range(3):
        assert sweeps.next_due() <= 60.0
        sweeps.sweep(60.0 + turn)
    assert table.calls == [0, 1, 2]
    assert sweeps.next_due() == 62.0 + SECONDS
