# SPDX-License-Identifier: Apache-2.0
"""What the demo claims, what it saw, and the tables that it prints. No I/O."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement, what was expected and what was observed."""

    name: str
    expected: str
    observed: str
    holds: bool


class Measured(NamedTuple):
    """A figure that is reported and not judged."""

    name: str
    value: str


def exactly(name: str, expected: int, observed: int) -> Claim:
    """Claim that a number is what it must be."""
    return Claim(name, f"{expected:,}", f"{observed:,}", observed == expected)


def at_least(name: str, expected: int, observed: int) -> Claim:
    """Claim that a number is not too small; it keeps other claims from being empty."""
    return Claim(name, f"≥ {expected:,}", f"{observed:,}", observed >= expected)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows in columns as wide as their widest cell."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join((lines[0], "  ".join("-" * width for width in widths), *lines[1:]))


def claims_table(claims: Sequence[Claim]) -> str:
    """Return all claims, with what does not hold marked."""
    return table(
        ("claim", "expected", "observed", ""),
        [
            (claim.name, claim.expected, claim.observed, "ok" if claim.holds else "FAILED")
            for claim in claims
        ],
    )
