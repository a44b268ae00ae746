# SPDX-License-Identifier: Apache-2.0
"""Which replaced tables stay loaded, and for how long."""

import os
from pathlib import Path

from tidegate.dataplane.publish.mirror import Loaded
from tidegate.dataplane.publish.replaced_tables import ReplacedTables
from tidegate.dataplane.publish.steps import unwatched


def table(folder: Path, name: str) -> Loaded:
    """Return something that has a descriptor and a pin."""
    pin = folder / name
    pin.touch()
    return Loaded(os.open(pin, os.O_RDONLY), pin)


def test_one_replaced_table_of_a_pool_is_kept(tmp_path: Path) -> None:
    """The last one, for its grace delay; those before it go with the next look, others' stay."""
    kept = ReplacedTables()
    kept.keep(1, table(tmp_path, "1-1"), 100.0)
    kept.keep(2, table(tmp_path, "2-1"), 100.0)
    for generation in range(2, 9):
        kept.keep(1, table(tmp_path, f"1-{generation}"), 100.0)
    assert kept.next_due() == float("-inf")
    kept.free(1.0, unwatched)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-8", "2-1"]
    assert kept.next_due() == 100.0
    kept.free(100.0, unwatched)
    assert kept.next_due() is None
    assert not list(tmp_path.iterdir())
