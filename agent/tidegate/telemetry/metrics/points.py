# SPDX-License-Identifier: Apache-2.0
"""The values of one instrument at one moment, whatever they are then sent as.

A host has tens of thousands of points and their names change with generations alone, so names and
values are kept apart: `Series` are the names, made once, and carry what was made of them (the text
of Prometheus, the attributes of OTLP); values are a plain sequence in their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from tidegate.telemetry.registry import Attribute, Instrument

Word: TypeAlias = str | int


@dataclass(eq=False, slots=True)
class Series:
    """The attributes that points of some instruments differ in.

    Attributes:
        keys: of the attributes.
        rows: their values, one row for each point.
        began: ns since 1970 when each point began to count; one for all, or one for each.
        labels: of each point as Prometheus has them (`exposition`).
        templates: text of Prometheus by metric, with a gap for each value (`exposition`).
        attributes: of each point as OTLP has them (`metrics_data`).
    """

    keys: tuple[Attribute, ...]
    rows: Sequence[tuple[Word, ...]]
    began: int | Sequence[int] = 0
    labels: list[str] = field(default_factory=list)
    templates: dict[str, str] = field(default_factory=dict)
    attributes: list[dict[str, Word]] = field(default_factory=list)


ALONE: Final = ((),)
"""The rows of an instrument that has one point."""


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Numbers, in the order of the series."""

    instrument: Instrument
    series: Series
    values: Sequence[float]


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """Histograms, in the order of the series.

    Attributes:
        bounds: upper bounds of the classes, the same for all.
        counts: of each class alone, one more than bounds.
        sums: of all that was measured.
    """

    instrument: Instrument
    series: Series
    bounds: Sequence[float]
    counts: Sequence[Sequence[int]]
    sums: Sequence[float]


Family: TypeAlias = Points | Spread
