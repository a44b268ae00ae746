# SPDX-License-Identifier: Apache-2.0
"""Writes received from etcd: which keys, when, and the trace contexts that they carry.

For traces and logs alone: what is wanted follows from documents, so nothing here decides anything.
All of it is bounded: a few keys, and the latest traces. A write that was coalesced with others is
still counted, and its trace is kept.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

MOST_KEYS: Final = 8
MOST_TRACES: Final = 32


class TracedWrites(NamedTuple):
    """Writes that carry one trace context.

    Attributes:
        traceparent: as it was written; valid, unless its document is not.
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


class ReceivedWrites(NamedTuple):
    """Writes and deletions in the order of their revisions.

    Attributes:
        total: number of them; a key that was written twice counts twice.
        keys: the first few, as a `Rejection` has them.
        began: when the first was received, ns since 1970; 0 if there is none.
        received: when the last was.
        traced: those that carry a trace context, by the latest write, the last one last.
    """

    total: int = 0
    keys: tuple[str, ...] = ()
    began: int = 0
    received: int = 0
    traced: tuple[TracedWrites, ...] = ()


NO_WRITES: Final = ReceivedWrites()


class KeyWrite(NamedTuple):
    """A write or deletion; `traceparent` is empty if it carries none."""

    key: str
    revision: int
    traceparent: str = ""


def collect(writes: Iterable[KeyWrite], received: int) -> ReceivedWrites:
    """Return the writes that were received at one moment; they come in the order of revisions."""
    count = 0
    keys: tuple[str, ...] = ()
    origins: dict[str, TracedWrites] = {}
    for key, revision, traceparent in writes:
        count += 1
        if len(keys) < MOST_KEYS:
            keys = _some(keys, (key,))
        if traceparent:
            origin = TracedWrites(traceparent, revision, received, (key,), 1)
            before = origins.pop(traceparent, None)
            origins[traceparent] = origin if before is None else _together(before, origin)
    if not count:
        return NO_WRITES
    return ReceivedWrites(count, keys, received, received, tuple(origins.values())[-MOST_TRACES:])


def merge(first: ReceivedWrites, second: ReceivedWrites) -> ReceivedWrites:
    """Return both together, within the bounds; of the traces the latest are kept."""
    if not first.total or not second.total:
        return first if first.total else second
    origins = {origin.traceparent: origin for origin in first.traced}
    for origin in second.traced:
        before = origins.pop(origin.traceparent, None)
        origins[origin.traceparent] = origin if before is None else _together(before, origin)
    latest = sorted(origins.values(), key=lambda origin: origin.revision)[-MOST_TRACES:]
    return ReceivedWrites(
        first.total + second.total,
        _some(first.keys, second.keys),
        min(first.began, second.began),
        max(first.received, second.received),
        tuple(latest),
    )


def _together(first: TracedWrites, second: TracedWrites) -> TracedWrites:
    return TracedWrites(
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
