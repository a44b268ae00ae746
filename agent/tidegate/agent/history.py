# SPDX-License-Identifier: Apache-2.0
"""The history of a host's generations: in memory to roll back to, on disk to look up.

It finds out why a generation came about, writes a refusal once for each change and not for each
attempt, and works without a disk if there is none.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from tidegate.agent.config import AgentConfig
from tidegate.agent.health.fitness import Evidence
from tidegate.agent.journal import files, line_format, replay
from tidegate.agent.journal.limits import Limits
from tidegate.agent.journal.writer import Published, Writer
from tidegate.agent.operator.orders import Signature
from tidegate.agent.outcome import Applied
from tidegate.agent.rollback_states import RollbackStates, State, in_force_as_desired
from tidegate.errors import AgentError
from tidegate.event_log import EventLog
from tidegate.keyspace.paths import backend_key, pool_key, vip_key
from tidegate.keyspace.status.document import rfc3339
from tidegate.model.generation import Generation
from tidegate.model.values import FIT, BackendKey, Document, Documents, Rejection
from tidegate.planner.diff import Diff

log = EventLog(__name__)

_PAUSE: Final = 10.0
"""s"""
EvidenceOf: TypeAlias = Callable[[Sequence[BackendKey]], Sequence[Evidence]]


class History:
    """The history of one agent's data plane.

    Args:
        config: the agent's file.
        in_force: as it was adopted.
        changed: called when `problem` changes.
        evidence: returns for each backend why health judges it as it does.

    Attributes:
        states: what can be rolled back to.
        cause: of the latest generation.
    """

    def __init__(
        self,
        config: AgentConfig,
        in_force: Generation,
        changed: Callable[[], None],
        evidence: EvidenceOf = lambda keys: [Evidence() for _ in keys],
    ) -> None:
        self._evidence = evidence
        self.states = RollbackStates(config.rollback_depth)
        self.cause = line_format.Cause("start")
        self._documents: Documents | None = None
        self._refused: set[tuple[str, str, str, int]] = set()
        self._noted_at = float("-inf")
        self._last = in_force.number, in_force.digest
        self._writer: Writer | None = None
        self._fault = ""
        folder = files.folder_of(Path(config.state_dir))
        limits = Limits(config.journal.generations, config.journal.bytes)
        try:
            self._writer = Writer(folder, limits, in_force, changed)
            there = files.read_usable(folder, config.journal.bytes)
        except AgentError as error:
            self._fault = str(error)
            log.warning("journal_unwritten", reason=error)
            there = []
        try:
            self._recall(there, config.rollback_depth, in_force)
        except Exception:  # whatever the past is like, the agent starts
            log.exception("journal_unusable", reason="nothing can be rolled back to")
            there = []
            self._recall(there, config.rollback_depth, in_force)
        if self._writer is not None:
            self._writer.start(there)

    @property
    def problem(self) -> str:
        """Why the journal is not written; empty if it is."""
        return self._fault or (self._writer.problem if self._writer else "")

    def applied(self, applied: Applied) -> None:
        """Record a generation that came into force."""
        generation = applied.generation
        self.states.remember(generation.number, generation.digest, applied.desired)
        self.cause = cause = self._cause(applied)
        if applied.order:
            self._documents = None  # known by the revision of what is in force now
        elif applied.snapshot is not None:
            self._documents = Documents.of(applied.snapshot.documents)
        origin = line_format.Origin(
            rfc3339(time.time()),
            applied.now,
            cause,
            line_format.summary(applied.diff),
            stepped=applied.stepped,
        )
        # After a failure that left a mixture in force, what came before is not in the journal.
        gap = (applied.previous.number, applied.previous.digest) != self._last
        self._last = generation.number, generation.digest
        self._write(Published(generation, origin, gap))

    def refused(self, rejections: Iterable[Rejection], in_force: Generation, revision: int) -> None:
        """Record what is refused now; only what is new goes into the journal.

        A fault that is written again and again is noted every few seconds, or its noise would take
        the place of what came into force.
        """
        current = {_identity(r): r for r in rejections}
        fresh = [r for identity, r in current.items() if identity not in self._refused]
        same = {identity[:3] for identity in self._refused}
        now = time.monotonic()
        if now < self._noted_at + _PAUSE:
            fresh = [r for r in fresh if _identity(r)[:3] not in same]
        self._refused = set(current)
        if fresh:
            self._noted_at = now
            self._write(
                line_format.refusal_line(fresh, rfc3339(time.time()), in_force.number, revision)
            )

    def ordered(self, order: str, by: Signature) -> None:
        """Record that an operator froze or thawed the host."""
        self._write(line_format.OrderLine(rfc3339(by.at), order, by.user, by.reason))

    def close(self) -> None:
        """Write what is left to write."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, item: Published | line_format.RefusalLine | line_format.OrderLine) -> None:
        if self._writer is not None:
            self._writer.write(item)

    def _recall(self, there: list[files.File], depth: int, in_force: Generation) -> None:
        """Read the states to roll back to; a generation of another seed is left out."""
        seed = line_format.fingerprint(in_force.hash_seed)
        found: list[State] = []
        for file in reversed(there):  # a file begins with all that it needs
            states = [
                _state(standing, in_force.hash_seed)
                for standing in replay.standings(file.lines)
                if standing.line.seed == seed and standing.line.number <= in_force.number
            ]
            found = [*states, *found]
            if len(RollbackStates(depth, found).states) > depth:
                break
        self.states = RollbackStates(depth, found)
        if in_force.number:
            self.states.remember(in_force.number, in_force.digest, in_force_as_desired(in_force))
        noted = [
            line
            for file in there
            for line in file.lines
            if isinstance(line, line_format.RefusalLine)
        ]
        if noted:
            self._refused = {(r.key, r.field, r.stage, r.revision) for r in noted[-1].refusals}

    def _cause(self, applied: Applied) -> line_format.Cause:
        cause = self._cause_without_health(applied)
        changed = changed_fitness(applied.previous, applied.generation)
        if not changed:
            return cause
        listed = changed[: line_format.MOST_FINDINGS]
        backends = applied.generation.backends
        findings = tuple(
            line_format.HealthFinding(str(key), backends[key].fitness.is_out, *evidence)
            for key, evidence in zip(listed, self._evidence(listed), strict=True)
        )
        more = len(changed) - len(listed)
        if cause.kind == "time":
            return line_format.Cause("health", verdicts=findings, verdicts_left_out=more)
        return msgspec.structs.replace(cause, verdicts=findings, verdicts_left_out=more)

    def _revisions(
        self, applied: Applied, documents: Documents
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Return the revisions of keys before and after a change, of those that may differ."""
        known = self._documents
        if known is None:
            return _keys_of(applied, documents), _mod_revisions(documents)
        before: dict[str, int] = {}
        after: dict[str, int] = {}
        for name in documents.differing(known):
            before |= _mod_revisions(known.group(name))
            after |= _mod_revisions(documents.group(name))
        return before, after

    def _cause_without_health(self, applied: Applied) -> line_format.Cause:
        if applied.order:
            return line_format.Cause("rollback", what=applied.order)
        if applied.snapshot is not None:
            before, after = self._revisions(applied, Documents.of(applied.snapshot.documents))
            cause = line_format.keys_cause(before, after, applied.refused)
            if cause.keys:
                return cause
        return line_format.Cause("time", what=by_time(applied.diff))


def _mod_revisions(documents: Mapping[str, Document]) -> dict[str, int]:
    """Return the revision that last wrote each key."""
    return {key: document.mod_revision for key, document in documents.items()}


def changed_fitness(before: Generation, after: Generation) -> list[BackendKey]:
    """Return the backends that health has taken out, or put back, between two generations."""
    return [
        key
        for name in after.by_pool.differing(before.by_pool)
        for key, placed in after.by_pool.group(name).items()
        if placed.fitness != (old.fitness if (old := before.backends.get(key)) else FIT)
    ]


def by_time(diff: Diff) -> str:
    """Return what happened without a key that changed, in words."""
    parts = []
    if diff.retired:
        parts.append(f"drained for long enough: {', '.join(diff.retired[:20])}")
    if diff.backends.changed:
        parts.append(f"weights by time or deadlines: {', '.join(diff.backends.changed[:20])}")
    if diff.vips.changed:  # by time or health alone: documents would be among the keys
        parts.append(f"to or from their sorry pool: {', '.join(diff.vips.changed[:20])}")
    return "; ".join(parts) or "windows closed"


def _keys_of(applied: Applied, documents: Documents) -> dict[str, int]:
    """Return the keys before, as far as what was in force shows, where no snapshot is known.

    A key that was written later is taken for new; one that is in force and gone, for deleted.
    """
    before = applied.previous
    names = [vip_key(name) for name in before.vips] + [pool_key(name) for name in before.pools]
    names += [backend_key(*k) for k, placed in before.backends.items() if placed.retire_at is None]
    known = dict.fromkeys(names, 0)
    for key, document in documents.items():
        if document.mod_revision <= before.revision:
            known[key] = document.mod_revision
    return known


def _state(standing: replay.Standing, hash_seed: str | None) -> State:
    line = standing.line
    return State(line.number, line.number, line.digest, replay.desired(standing, hash_seed))


def _identity(rejection: Rejection) -> tuple[str, str, str, int]:
    """Return what identifies a refusal; the reason of a failed attempt names its number."""
    return rejection.key, rejection.field, rejection.stage, rejection.revision
