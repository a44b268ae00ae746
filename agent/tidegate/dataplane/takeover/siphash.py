# SPDX-License-Identifier: Apache-2.0
"""The flow hash of the specification (spec/hash.py) over arrays of flows."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]

_Lanes = tuple[Words, Words, Words, Words]


def siphash13(keys: tuple[int, int], words: Sequence[Words]) -> Words:
    """Return the 64-bit hash of each flow; `words` has an array for each of its 64-bit words."""
    key0, key1 = keys
    shape = words[0].shape
    lanes: _Lanes = (
        np.full(shape, key0 ^ 0x736F6D6570736575, np.uint64),
        np.full(shape, key1 ^ 0x646F72616E646F6D ^ len(words), np.uint64),
        np.full(shape, key0 ^ 0x6C7967656E657261, np.uint64),
        np.full(shape, key1 ^ 0x7465646279746573, np.uint64),
    )
    v0, v1, v2, v3 = lanes
    for word in words:
        v3 ^= word
        _round(lanes)
        v0 ^= word
    v2 ^= np.uint64(0xFF)
    for _ in range(3):
        _round(lanes)
    return v0 ^ v1 ^ v2 ^ v3


def _rotate(lane: Words, bits: int) -> None:
    """Rotate to the left, in place."""
    carried = lane >> np.uint64(64 - bits)
    lane <<= np.uint64(bits)
    lane |= carried


def _round(lanes: _Lanes) -> None:
    v0, v1, v2, v3 = lanes
    v0 += v1
    _rotate(v1, 13)
    v1 ^= v0
    _rotate(v0, 32)
    v2 += v3
    _rotate(v3, 16)
    v3 ^= v2
    v0 += v3
    _rotate(v3, 21)
    v3 ^= v0
    v2 += v1
    _rotate(v1, 17)
    v1 ^= v2
    _rotate(v2, 32)
