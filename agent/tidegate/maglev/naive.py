# SPDX-License-Identifier: Apache-2.0
"""Build a Maglev table as slowly and plainly as possible: what `build` must equal, for tests.

Fractions instead of fixed point, one sorted list of all turns instead of a heap, every permutation
written out. It shares nothing with the fast construction but the hash of a name. Not for
production: a full table of a few backends takes about a second.
"""

from collections.abc import Sequence
from fractions import Fraction

from tidegate.maglev.construction import digests


def naive_build(backends: Sequence[tuple[str, int]], size: int) -> list[int]:
    """Return each slot's owner as its place in `backends` sorted by name."""
    ordered = sorted(backends)
    weights = [weight for _, weight in ordered]
    order = sorted(
        (Fraction(2 * k + 1, weight), owner)
        for owner, (weight, turns) in enumerate(zip(weights, apportion(weights, size), strict=True))
        for k in range(turns)
    )
    preferences = [iter(permutation(name, size)) for name, _ in ordered]
    table: dict[int, int] = {}
    for _, owner in order:
        slot = next(slot for slot in preferences[owner] if slot not in table)
        table[slot] = owner
    return [table[slot] for slot in range(size)]


def apportion(weights: Sequence[int], size: int) -> list[int]:
    """Return turns by largest remainder: whole shares first, the rest by what was cut off."""
    shares = [Fraction(size * weight, sum(weights)) for weight in weights]
    turns = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda i: (turns[i] - shares[i], i))
    for i in by_remainder[: size - sum(turns)]:
        turns[i] += 1
    return turns


def permutation(name: str, size: int) -> list[int]:
    """Return a backend's preference of slots (section 3.4: offset + j * skip mod M)."""
    raw = digests(name)
    offset = int.from_bytes(raw[:8], "little") % size
    skip = int.from_bytes(raw[8:], "little") % (size - 1) + 1
    return [(offset + j * skip) % size for j in range(size)]
