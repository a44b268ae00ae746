# SPDX-License-Identifier: Apache-2.0
"""Spans as plain values, made after the fact with explicit times, and W3C trace contexts.

Nothing here calls an SDK, so making a span costs what making a tuple costs. A Sink takes them from
there: it never blocks and never raises, so it may be called from any thread.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, Protocol

Value = str | bool | int | float | Sequence[str] | Sequence[int]
Attributes = Mapping[str, Value]

NONE: Final[Attributes] = MappingProxyType({})
_TRACEPARENT: Final = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL
)
_SAMPLED: Final = 1
"""The one flag of a traceparent that is read and written."""


class Context(NamedTuple):
    """Where a span belongs: W3C Trace Context's trace id (128 bits) and span id (64), not 0."""

    trace_id: int
    span_id: int
    is_sampled: bool = True


class Moment(NamedTuple):
    """An event of a span; `at` is in nanoseconds since 1970."""

    name: str
    at: int
    attributes: Attributes = NONE


class Link(NamedTuple):
    """Another span, perhaps of another trace, that has to do with this one."""

    context: Context
    attributes: Attributes = NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that took time; it is over when this value is made.

    Attributes:
        began, ended: nanoseconds since 1970.
        error: a sentence for a person; empty unless what the span describes failed.
    """

    name: str
    context: Context
    parent: Context | None = None
    began: int
    ended: int
    attributes: Attributes = field(default_factory=lambda: NONE)
    events: tuple[Moment, ...] = ()
    links: tuple[Link, ...] = ()
    error: str = ""
    kind: Literal["internal", "server", "consumer"] = "internal"


class Sink(Protocol):
    """Takes spans; a full queue drops and counts."""

    def emit(self, span: Span) -> None:
        """Take a span; never block and never raise."""


def new_trace_id() -> int:
    """Return a random trace id that is not 0."""
    return secrets.randbits(128) or 1


def new_span_id() -> int:
    """Return a random span id that is not 0."""
    return secrets.randbits(64) or 1


def parse_traceparent(text: str) -> Context:
    """Read a traceparent by W3C Trace Context, section 3.2.

    Raises:
        ValueError: with a sentence that says what is wrong with it.
    """
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        raise ValueError(
            f"not a traceparent: {text[:64]!r}; it has the form 00-<32 hex digits>-<16 hex "
            "digits>-<2 hex digits>, all of them in lower case"
        )
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff":
        raise ValueError("a traceparent's version is never ff")
    if version == "00" and rest is not None:
        raise ValueError("a traceparent of version 00 ends after its flags")
    context = Context(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED))
    if not context.trace_id or not context.span_id:
        raise ValueError("a traceparent's trace id and parent id are never all zeros")
    return context


def format_traceparent(context: Context) -> str:
    """Write a traceparent of version 00."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.is_sampled):02x}"
