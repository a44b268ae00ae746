# SPDX-License-Identifier: Apache-2.0
"""Construction of a Maglev table (Eisenbud et al., NSDI 2016, section 3.4), with exact weights.

Every backend has a permutation of the slots, made from two hashes of its name. Backends take turns;
in a turn a backend gets the first free slot of its permutation. This module decides how many turns
each backend has and what its permutation is; `_maglev.c` plays the turns.

* How many: the largest-remainder method. A backend of weight w of a total W gets floor(M w / W)
  turns or one more, and there are exactly M turns.
* In which order: the k-th turn of a backend (k from 0) is at time (2k + 1) / w. A time depends on
  nothing but the backend's own weight, so a change elsewhere does not reorder the turns of others.
  Turns at one time go in the order of names. With equal weights this is the paper's round robin.

`naive.py` does the same slowly and plainly. Nothing here is floating point, so all hosts build the
same bytes.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from math import isqrt
from operator import itemgetter

import numpy as np

from tidegate.maglev._maglev import fill
from tidegate.model.constants import TABLE_SIZE
from tidegate.model.generation import Slots

MAX_WEIGHT = 65535
"""Largest weight; `_maglev.c` compares times of turns exactly up to it."""

_MAX_SIZE = 1 << 22


def build(backends: Sequence[tuple[str, int]], size: int = TABLE_SIZE) -> Slots:
    """Build the table of a pool.

    Args:
        backends: names and weights in any order. A backend of weight 0 owns no slot. One whose
            share is less than a slot may own none.
        size: number of slots, a prime below 2**22.

    Returns:
        uint32[size]: each slot's owner as its place in `backends` sorted by name, counting those of
        weight 0 too. It does not depend on the order of `backends`.

    Raises:
        ValueError: no backend has a weight, two have the same name, a weight is outside 0 to
            MAX_WEIGHT, or `size` is not a prime below 2**22.
    """
    _check_size(size)
    ordered = sorted(backends, key=itemgetter(0))
    names = [name for name, _ in ordered]
    if len(set(names)) != len(names):
        raise ValueError("two backends have the same name")
    weight = _weights([weight for _, weight in ordered])
    offset, skip = permutations(names, size)
    table = np.empty(size, np.uint32)
    fill(table, weight, _turns(weight, size), offset, skip)
    return table


@lru_cache(maxsize=1 << 17)
def digests(name: str) -> bytes:
    """Return the two 64-bit hashes of a name, little-endian: for the offset, and for the skip."""
    return blake2b(name.encode(), digest_size=16, person=b"tidegate-maglev").digest()


def permutations(names: Sequence[str], size: int) -> tuple[Slots, Slots]:
    """Return offset and skip of each name: its j-th choice is (offset + j * skip) mod size."""
    hashes = np.frombuffer(b"".join(map(digests, names)), "<u8").reshape(-1, 2)
    offset = (hashes[:, 0] % np.uint64(size)).astype(np.uint32)
    skip = (hashes[:, 1] % np.uint64(size - 1) + np.uint64(1)).astype(np.uint32)
    return offset, skip


def _weights(given: Sequence[int]) -> Slots:
    if not any(given):
        raise ValueError("a table needs at least one backend with a weight")
    if min(given) < 0 or max(given) > MAX_WEIGHT:
        raise ValueError(f"a weight is outside 0 to {MAX_WEIGHT}")
    return np.array(given, np.uint32)


def _turns(weight: Slots, size: int) -> Slots:
    """Return the turns of each backend by largest remainder, of equal ones by name."""
    quota = weight.astype(np.int64) * size
    turns, remainder = np.divmod(quota, weight.sum(dtype=np.int64))
    left = size - int(turns.sum())
    turns[np.argsort(-remainder, kind="stable")[:left]] += 1
    return turns.astype(np.uint32)


@lru_cache(maxsize=16)
def _check_size(size: int) -> None:
    # A step that is coprime to the size visits every slot; a prime makes every step so.
    composite = size <= 1 or any(size % d == 0 for d in range(2, isqrt(size) + 1))
    if composite or size >= _MAX_SIZE:
        raise ValueError(f"a table's size is a prime below {_MAX_SIZE}, not {size}")
