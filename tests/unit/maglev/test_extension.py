# SPDX-License-Identifier: Apache-2.0
"""The C extension refuses what would make it read outside an array or search for ever."""

import numpy as np
import pytest

from tidegate.maglev._maglev import fill


def arrays(**changes: object) -> list[object]:
    """Return arguments of `fill` for two backends and seven slots, some of them replaced."""
    good: dict[str, object] = {
        "table": np.zeros(7, np.uint32),
        "weight": np.array([1, 1], np.uint32),
        "turns": np.array([4, 3], np.uint32),
        "offset": np.array([0, 6], np.uint32),
        "skip": np.array([1, 6], np.uint32),
    }
    return list((good | changes).values())


def test_fills_the_table() -> None:
    """Two backends that walk towards each other meet in the middle."""
    given = arrays()
    fill(*given)
    assert given[0].tolist() == [0, 0, 0, 0, 1, 1, 1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"turns": np.array([4, 4], np.uint32)}, "one turn for each slot"),
        ({"weight": np.array([0, 1], np.uint32)}, "weight is out of range"),
        ({"weight": np.array([65536, 1], np.uint32)}, "weight is out of range"),
        ({"offset": np.array([7, 0], np.uint32)}, "offset or a skip"),
        ({"skip": np.array([0, 1], np.uint32)}, "offset or a skip"),
        ({"skip": np.array([1, 7], np.uint32)}, "offset or a skip"),
        ({"skip": np.array([1], np.uint32)}, "matching lengths"),
        ({"skip": np.array([1, 2], np.uint64)}, "matching lengths"),
        ({"table": np.zeros(0, np.uint32)}, "size is out of range"),
    ],
)
def test_refuses_arguments_that_do_not_fit(changes: dict[str, object], what: str) -> None:
    """Each of them raises ValueError and leaves the process alive."""
    with pytest.raises(ValueError, match=what):
        fill(*arrays(**changes))


def test_refuses_a_table_that_it_may_not_write() -> None:
    """A read-only table is not written to."""
    table = np.zeros(7, np.uint32)
    table.flags.writeable = False
    with pytest.raises(ValueError, match=r"not writable|read-only"):
        fill(*arrays(table=table))


def test_refuses_what_is_not_a_buffer() -> None:
    """A list is not a buffer."""
    with pytest.raises(TypeError):
        fill(*arrays(weight=[1, 1]))
