# SPDX-License-Identifier: Apache-2.0
"""What one attribute, instrument, span or log record is called and means.

The definitions themselves are in names/; a name that is sent is one that is defined there. Where
OpenTelemetry's semantic conventions have a name it is used; all others begin with `tidegate.`.
"""

from dataclasses import dataclass
from typing import Final, Literal

OWN: Final = "tidegate."

Type = Literal["string", "int", "double", "boolean", "string[]", "int[]"]
Kind = Literal["counter", "updowncounter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Attribute:
    """One key of spans, points, log records or the resource.

    Attributes:
        example: as text, as it looks in the documentation.
        is_standard: whether OpenTelemetry's semantic conventions define it.
    """

    key: str
    type: Type
    description: str
    example: str
    is_standard: bool = False

    def __post_init__(self) -> None:
        _check(self.key, self.description, is_standard=self.is_standard)


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric; its unit is UCUM's (`s`, `By`, `{packet}`, `1`)."""

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[Attribute, ...] = ()

    def __post_init__(self) -> None:
        _check(self.name, self.description, is_standard=False)


@dataclass(frozen=True, slots=True)
class EventType:
    """Something that happens at one moment within a span."""

    name: str
    description: str
    attributes: tuple[Attribute, ...] = ()

    def __post_init__(self) -> None:
        _check(self.name, self.description, is_standard=False)


@dataclass(frozen=True, slots=True)
class SpanType:
    """One kind of span; `links` says in words what it links to, empty for nothing."""

    name: str
    description: str
    attributes: tuple[Attribute, ...] = ()
    events: tuple[EventType, ...] = ()
    links: str = ""

    def __post_init__(self) -> None:
        _check(self.name, self.description, is_standard=False)


def _check(name: str, description: str, *, is_standard: bool) -> None:
    if is_standard == name.startswith(OWN):
        raise ValueError(f"{name}: names of our own, and no others, begin with {OWN}")
    if not description.endswith("."):
        raise ValueError(f"{name}: the description has to be a sentence")
