# SPDX-License-Identifier: Apache-2.0
"""Maglev construction as slow and plain as can be: what `build` must equal, for the tests.

Fractions instead of fixed point, one sorted list of all turns instead of a heap, every permutation
written out. It shares nothing with the fast path but the hash of a name. Not for production: about
a second for a full table of a few backends.
"""

from collections.abc import Sequence
from fractions import Fraction

from tidegate.maglev.construction import digests


def naive_build(backends: Sequence[tuple[str, int]], size: int) -> list[int]:
    """Each slot's owner as its place in `backends` sorted by name."""
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
    """Largest remainder: whole shares first, what is left by the size of what was cut off."""
    shares = [Fraction(size * weight, sum(weights)) for weight in weights]
    turns = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda i: (turns[i] - shares[i], i))
    for i in by_remainder[: size - sum(turns)]:
        turns[i] += 1
    return turns


def permutation(name: str, size: int) -> list[int]:
    """The order in which a backend wants the slots (section 3.4: offset + j * skip mod M)."""
    raw = digests(name)
    offset = int.from_bytes(raw[:8], "little") % size
    skip = int.from_bytes(raw[8:], "little") % (size - 1) + 1
    return [(offset + j * skip) % size for j in range(size)]
