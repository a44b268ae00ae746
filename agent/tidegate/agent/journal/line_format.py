# SPDX-License-Identifier: Apache-2.0
"""The lines of the journal: one JSON object each, append-only; `type` says which.

A file begins with a `base`, which has everything that is in force. Each `generation` after it has
what differs from the one before, in the records of the data plane's ledger: names, ids, documents
and the weights that count, from which tables follow (they are a function of names and weights). So
each generation can be made again exactly; `replay` does it.

The seed of the flow hash is not here, as whoever knows it can aim flows at one backend. Four bytes
of its hash are, so that a reader notices when the seed that it has is another one.
"""

import hashlib
from collections.abc import Container, Iterable, Mapping
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta, Struct

from tidegate.dataplane.publish import ledger
from tidegate.dataplane.publish.ledger import Kind, Place, Record
from tidegate.model.generation import Generation
from tidegate.model.values import Rejection, Stage
from tidegate.planner.diff import Diff

FORMAT: Final = 1
MOST_NAMES: Final = 1000
"""Names and keys that one line lists; how many more there were is counted."""
MOST_REFUSALS: Final = 100
MOST_FINDINGS: Final = 100

Moment: TypeAlias = str
"""RFC 3339 in UTC, to milliseconds."""


class KeyChange(Struct, frozen=True, array_like=True):
    """A key relative to its release, and the revision that wrote it; 0: it was deleted."""

    key: str
    mod_revision: int


class HealthFinding(Struct, frozen=True, omit_defaults=True):
    """What health checks made of a backend, and whose opinion it was.

    Attributes:
        backend: as pool/backend.
        is_out: whether it was taken out by it, or else joins.
        state: what its voters think, `healthy` or `unhealthy`; empty: there is no verdict any more.
        votes: of those whose opinion counts, those who think so.
        voters: all whose opinion counts.
        reason: what this host itself found.
    """

    backend: str
    is_out: bool
    state: str = ""
    votes: int = 0
    voters: int = 0
    reason: str = ""


class Cause(Struct, frozen=True, omit_defaults=True):
    """Why there is a new generation: keys, health, time alone, an order, or the agent's start.

    Attributes:
        what: of time and orders, in words.
        left_out: keys beyond those listed.
        verdicts: that came into force with it, whatever else is the cause.
        verdicts_left_out: those beyond the ones listed.
    """

    kind: Literal["keys", "health", "time", "rollback", "start"]
    what: str = ""
    keys: tuple[KeyChange, ...] = ()
    left_out: int = 0
    verdicts: tuple[HealthFinding, ...] = ()
    verdicts_left_out: int = 0


class Names(Struct, frozen=True, omit_defaults=True):
    """What came, went and changed of one kind; backends as pool/backend."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    left_out: int = 0


class Moved(Struct, frozen=True):
    """Slots of a pool's table that changed their owner, and the least that the change allows."""

    slots: int
    minimum: int


class Summary(Struct, frozen=True, omit_defaults=True):
    """What a generation changed, for people; what it holds is in the records."""

    vips: Names = Names()
    pools: Names = Names()
    backends: Names = Names()
    retired: tuple[str, ...] = ()
    moved: dict[str, Moved] = {}


class Entry(Struct, frozen=True, array_like=True):
    """An element of the ledger."""

    kind: int
    id: int
    record: Record


class BaseLine(Struct, frozen=True, tag="base"):
    """Everything that is in force when a file begins.

    Attributes:
        open_until: by pool, wall-clock second until which slots may be in a window that opened
            before this line.
    """

    at: Moment
    number: int
    revision: int
    digest: str
    release: str
    seed: str
    records: tuple[Entry, ...]
    open_until: dict[str, int]
    format: Annotated[int, Meta(le=FORMAT)] = FORMAT


class GenerationLine(Struct, frozen=True, tag="generation", omit_defaults=True):
    """A generation that came into force.

    Attributes:
        at: when it was published.
        now: the wall-clock second that it was planned for; windows are counted from it.
        stepped: s by which the clock was stepped before that; windows in force moved with it.
        removed: places of the ledger that the generation before had.
    """

    at: Moment
    now: int
    number: int
    revision: int
    digest: str
    release: str
    seed: str
    cause: Cause
    summary: Summary
    changed: tuple[Entry, ...] = ()
    removed: tuple[tuple[int, int], ...] = ()
    stepped: int = 0


class Refusal(Struct, frozen=True, omit_defaults=True):
    """A key that was refused."""

    key: str
    field: str
    reason: str
    stage: Stage
    revision: int


class RefusalLine(Struct, frozen=True, tag="refused"):
    """What a change wanted and did not get; `number` stayed in force."""

    at: Moment
    number: int
    revision: int
    refusals: tuple[Refusal, ...]
    left_out: int = 0


class OrderLine(Struct, frozen=True, tag="order"):
    """An operator froze or thawed the host."""

    at: Moment
    order: str
    by: str
    reason: str = ""


Line: TypeAlias = BaseLine | GenerationLine | RefusalLine | OrderLine
Records: TypeAlias = Mapping[Place, Record]

_decoder: Final = msgspec.json.Decoder(Line)


def encode(line: Line) -> bytes:
    """Return the bytes of a line, with its end."""
    return msgspec.json.encode(line) + b"\n"


def decode(text: bytes) -> Line:
    """Return the line of these bytes.

    Raises:
        msgspec.DecodeError: they are not a line.
    """
    line: Line = _decoder.decode(text)
    return line


def fingerprint(seed: str | None) -> str:
    """Return four bytes of a seed's hash, which distinguish seeds; empty without a seed."""
    if seed is None:
        return ""
    return hashlib.blake2b(seed.encode(), digest_size=4, person=b"tidegate-journal").hexdigest()


class Origin(NamedTuple):
    """What a line says of a generation besides the generation itself."""

    at: Moment
    now: int
    cause: Cause
    summary: Summary
    stepped: int = 0


def base_line(generation: Generation, at: Moment) -> BaseLine:
    """Return the line that a file begins with."""
    return BaseLine(
        at=at,
        number=generation.number,
        revision=generation.revision,
        digest=generation.digest,
        release=generation.release,
        seed=fingerprint(generation.hash_seed),
        records=_entries(ledger.records(generation)),
        open_until={
            name: max(window.closes_at for window in placed.table.windows[1:])
            for name, placed in sorted(generation.pools.items())
            if len(placed.table.windows) > 1
        },
    )


def generation_line(
    generation: Generation, records: ledger.Records, origin: Origin
) -> GenerationLine:
    """Return the line of a generation.

    Args:
        generation: the one that came into force.
        records: its records, and how they differ from those of the generation before.
        origin: when and why.
    """
    return GenerationLine(
        at=origin.at,
        now=origin.now,
        number=generation.number,
        revision=generation.revision,
        digest=generation.digest,
        release=generation.release,
        seed=fingerprint(generation.hash_seed),
        cause=origin.cause,
        summary=origin.summary,
        changed=_entries(records.changed),
        removed=tuple((int(place.kind), place.id) for place in records.gone),
        stepped=origin.stepped,
    )


def _entries(records: Records) -> tuple[Entry, ...]:
    return tuple(Entry(int(p.kind), p.id, records[p]) for p in sorted(records))


def places(entries: Iterable[Entry]) -> dict[Place, Record]:
    """Return the records of a line."""
    return {Place(Kind(entry.kind), entry.id): entry.record for entry in entries}


def summary(diff: Diff) -> Summary:
    """Return what a difference says, within a bound."""
    return Summary(
        vips=_names(*diff.vips),
        pools=_names(*diff.pools),
        backends=_names(*diff.backends),
        retired=diff.retired[:MOST_NAMES],
        moved={pool: Moved(move.moved, move.minimum) for pool, move in diff.moves.items()},
    )


def _names(*lists: tuple[str, ...]) -> Names:
    added, removed, changed = (each[:MOST_NAMES] for each in lists)
    listed = len(added) + len(removed) + len(changed)
    return Names(added, removed, changed, sum(map(len, lists)) - listed)


def refusal_line(
    rejections: Iterable[Rejection], at: Moment, number: int, revision: int
) -> RefusalLine:
    """Return the line of what was refused, within a bound."""
    listed = tuple(Refusal(r.key, r.field, r.reason, r.stage, r.revision) for r in rejections)
    left_out = max(0, len(listed) - MOST_REFUSALS)
    return RefusalLine(at, number, revision, listed[:MOST_REFUSALS], left_out)


def keys_cause(
    before: Mapping[str, int], after: Mapping[str, int], without: Container[str] = ()
) -> Cause:
    """Return the keys that differ between two snapshots, given as mod revisions by key.

    Args:
        before: of the generation before.
        after: of this one.
        without: keys that had no part in it, as they are refused.
    """
    changed = [KeyChange(k, after[k]) for k in sorted(after) if before.get(k) != after[k]]
    changed += [KeyChange(k, 0) for k in sorted(before.keys() - after.keys())]
    changed = [change for change in changed if change.key not in without]
    listed = tuple(changed[:MOST_NAMES])
    return Cause("keys", keys=listed, left_out=len(changed) - len(listed))
