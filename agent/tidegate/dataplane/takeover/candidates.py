# SPDX-License-Identifier: Apache-2.0
"""Where an entry of a table of lines may belong in a table of another size.

An entry keeps 40 bits of its key, and its pair follows from the upper 32. The old pair bounds these
to a range, and so the new pair to a range: of one or two pairs in a table that is not larger, of n
or n + 1 in one that is n times as large. Which of them it is shows when the flow speaks again.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_HALF = np.uint64(32)


class Range(NamedTuple):
    """Pairs of the new table, the last one included."""

    first: npt.NDArray[np.uint64]
    last: npt.NDArray[np.uint64]


def candidates(old: npt.NDArray[np.uint64], old_pairs: int, pairs: int) -> Range:
    """Return the pairs in which the keys of an old pair may be.

    Args:
        old: numbers of pairs.
        old_pairs: of the table that they are of.
        pairs: of the new table.
    """
    count, one = np.uint64(old_pairs), np.uint64(1)
    # The upper half h of a key is in the pair h * old_pairs >> 32.
    lowest = ((old << _HALF) + count - one) // count
    highest = (((old + one) << _HALF) - one) // count
    scale = np.uint64(pairs)
    return Range(lowest * scale >> _HALF, highest * scale >> _HALF)
