# SPDX-License-Identifier: Apache-2.0
"""What has been written since the last look: which keys, when it was received, in whose traces.

Only for telling of it. What is wanted follows from documents alone, so nothing here decides
anything, and all of it is bounded: a few names, and the latest traces. A write that was coalesced
with others is still counted, and its trace is still there.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

MOST_KEYS: Final = 8
MOST_ORIGINS: Final = 32


class Origin(NamedTuple):
    """Writes that carry one trace context.

    Attributes:
        traceparent: as it was written; it is of the right form, or as broken as its document.
        revision: latest of the writes.
        received: when the first of them was, ns since 1970.
        keys: the first few, as a `Rejection` has them.
        total: number of the writes.
    """

    traceparent: str
    revision: int
    received: int
    keys: tuple[str, ...]
    total: int


class Arrivals(NamedTuple):
    """Writes and deletions in the order of their revisions.

    Attributes:
        total: number of them; a key that was written twice counts twice.
        keys: the first few, as a `Rejection` has them.
        began: when the first was received, ns since 1970; 0 if there is none.
        received: when the last was.
        origins: of those that carry a trace context, by the latest write, the last one last.
    """

    total: int = 0
    keys: tuple[str, ...] = ()
    began: int = 0
    received: int = 0
    origins: tuple[Origin, ...] = ()


NO_ARRIVALS: Final = Arrivals()


class Written(NamedTuple):
    """A write or deletion; `traceparent` is empty if it carries none."""

    key: str
    revision: int
    traceparent: str = ""


def gathered(writes: Iterable[Written], received: int) -> Arrivals:
    """What was received at one moment, in the order of revisions; one pass over it."""
    count = 0
    keys: tuple[str, ...] = ()
    origins: dict[str, Origin] = {}
    for key, revision, traceparent in writes:
        count += 1
        if len(keys) < MOST_KEYS:
            keys = _some(keys, (key,))
        if traceparent:
            origin = Origin(traceparent, revision, received, (key,), 1)
            before = origins.pop(traceparent, None)
            origins[traceparent] = origin if before is None else _together(before, origin)
    if not count:
        return NO_ARRIVALS
    return Arrivals(count, keys, received, received, tuple(origins.values())[-MOST_ORIGINS:])


def joined(first: Arrivals, second: Arrivals) -> Arrivals:
    """Both, within the bounds; the oldest traces go first."""
    if not first.total or not second.total:
        return first if first.total else second
    origins = {origin.traceparent: origin for origin in first.origins}
    for origin in second.origins:
        before = origins.pop(origin.traceparent, None)
        origins[origin.traceparent] = origin if before is None else _together(before, origin)
    latest = sorted(origins.values(), key=lambda origin: origin.revision)[-MOST_ORIGINS:]
    return Arrivals(
        first.total + second.total,
        _some(first.keys, second.keys),
        min(first.began, second.began),
        max(first.received, second.received),
        tuple(latest),
    )


def _together(first: Origin, second: Origin) -> Origin:
    return Origin(
        first.traceparent,
        max(first.revision, second.revision),
        min(first.received, second.received),
        _some(first.keys, second.keys),
        first.total + second.total,
    )


def _some(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    if len(first) == MOST_KEYS:
        return first
    return (*first, *(key for key in second if key not in first))[:MOST_KEYS]
