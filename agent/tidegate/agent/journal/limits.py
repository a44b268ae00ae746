# SPDX-License-Identifier: Apache-2.0
"""When a file of the journal ends, and which ones go: decisions on numbers, without a disk.

A file is an eighth of what may be kept, in generations or in bytes, so that whole files can be
dropped and an eighth more than asked for is the most that stays.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

PARTS: Final = 8


class Limits(NamedTuple):
    """What may be kept: generations, and bytes of all files."""

    generations: int
    bytes: int


class Size(NamedTuple):
    """What a file has: generations, not counting its base, and bytes."""

    generations: int = 0
    bytes: int = 0

    def plus(self, more: "Size") -> "Size":
        """Return both together."""
        return Size(self.generations + more.generations, self.bytes + more.bytes)


EMPTY: Final = Size()


def is_full(size: Size, limits: Limits) -> bool:
    """Return whether the next generation goes into a new file."""
    return (
        size.generations * PARTS >= limits.generations or size.bytes * PARTS >= limits.bytes
    ) and size.generations > 0


def surplus(files: Sequence[Size], coming: int, limits: Limits) -> int:
    """Return how many files, from the oldest on, are to go before more is written.

    Args:
        files: sizes, the oldest first. The last one is written to, and stays.
        coming: bytes that are about to be written.
        limits: what may be kept.
    """
    gone = 0
    for at in range(len(files) - 1):
        rest = files[at + 1 :]
        enough = sum(size.generations for size in rest) >= limits.generations
        too_big = sum(size.bytes for size in files[at:]) + coming > limits.bytes
        if not enough and not too_big:
            break
        gone = at + 1
    return gone
