# SPDX-License-Identifier: Apache-2.0
"""Make the report of `tidegate health` from documents, statuses and verdicts: values, no I/O.

The fleet's opinion is computed as agents do. What an agent then does with it (panic, velocity) is
not computed again: hosts say so in their statuses. Those are read leniently, since some hosts of a
fleet may have another version.
"""

from collections import Counter
from dataclasses import dataclass, replace

import msgspec
from msgspec import Struct

from tidegate.health.verdict import Effective, opinion
from tidegate.keyspace.documents.decode import decode
from tidegate.keyspace.status import verdicts as verdict_documents
from tidegate.keyspace.status.document import rfc3339
from tidegate.model.steering import VerdictDocument
from tidegate.model.values import Backend, BackendKey, Desired, Pool, Snapshot

_PARTS = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of one host; it does not count if the host is blind."""

    host: str
    state: str
    code: str
    reason: str
    since: str
    counts: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A backend: the state that counts, and each host's finding.

    Attributes:
        since: RFC 3339; empty while no host has a finding.
        votes: hosts that find it in that state.
        voters: all hosts whose vote counts.
    """

    backend: str
    state: str
    code: str
    reason: str
    since: str
    votes: int
    voters: int
    hosts: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class PoolRows:
    """A pool: whose findings count (`none` without checks), and its backends."""

    pool: str
    mode: str
    backends: tuple[Row, ...]


class ChecksSummary(Struct, frozen=True, kw_only=True):
    """The part of a status's health that is shown."""

    blind: bool = False
    broken_checker: bool = False
    panics: tuple[str, ...] = ()
    waiting: int = 0
    late: int = 0
    unconfirmed: tuple[str, ...] = ()
    overwritten: int = 0
    hindrance: str = ""


class HostSummary(Struct, frozen=True, kw_only=True):
    """The part of a host's status that is shown."""

    host: str = ""
    state: str = "unknown"
    reason: str = ""
    ready: bool = False
    ready_reason: str = ""
    generation_release: str = ""
    health: ChecksSummary = ChecksSummary()


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is shown.

    Attributes:
        refused: documents and verdicts that cannot be used.
    """

    release: str
    revision: int
    pools: tuple[PoolRows, ...]
    hosts: tuple[HostSummary, ...]
    blind: tuple[str, ...]
    refused: tuple[str, ...]

    @property
    def is_bad(self) -> bool:
        """Whether somebody has to act."""
        unhealthy = any(row.state == "unhealthy" for pool in self.pools for row in pool.backends)
        return unhealthy or bool(self.blind) or any(map(is_unwell, self.hosts))

    def only(self, pools: tuple[PoolRows, ...]) -> "Report":
        """Return the same with these pools alone."""
        return replace(self, pools=pools)


def is_unwell(host: HostSummary) -> bool:
    """Say whether a host is not ready, or does not make its checks or act on them."""
    health = host.health
    hindered = health.broken_checker or bool(health.panics or health.late or health.hindrance)
    return not host.ready or hindered


def release_of(statuses: Snapshot) -> str:
    """Return the release that most hosts have in force; `live` if there are none."""
    found = Counter(filter(None, (host.generation_release for host in _summaries(statuses))))
    return max(found, key=lambda name: (found[name], name), default="live")


def view(
    release: str,
    desired: Desired,
    statuses: Snapshot,
    verdicts: Snapshot,
    refused: tuple[str, ...] = (),
) -> Report:
    """Return the report on a release's backends."""
    votes, rejections = verdict_documents.votes(verdicts)
    thought = opinion(votes)
    findings = _findings(verdicts, thought.blind)
    rows: dict[str, list[Row]] = {name: [] for name in sorted(desired.pools)}
    for key, backend in sorted(desired.backends.items()):
        effective, found = thought.backends.get(key), findings.get(key, ())
        rows[key.pool].append(_row(backend, desired.pools[key.pool], effective, found))
    pools = [PoolRows(name, _mode(desired.pools[name]), tuple(each)) for name, each in rows.items()]
    return Report(
        release,
        verdicts.revision,
        tuple(pools),
        _summaries(statuses),
        tuple(sorted(thought.blind)),
        (*refused, *map(str, rejections)),
    )


def _summaries(statuses: Snapshot) -> tuple[HostSummary, ...]:
    found = []
    for key, document in sorted(statuses.documents.items()):
        name = key.rpartition("/")[2]
        try:
            host = msgspec.json.decode(document.value, type=HostSummary)
        except msgspec.DecodeError as error:
            host = HostSummary(ready_reason=f"its status cannot be read: {error}")
        found.append(msgspec.structs.replace(host, host=name))
    return tuple(found)


def _findings(verdicts: Snapshot, blind: frozenset[str]) -> dict[BackendKey, tuple[Finding, ...]]:
    found: dict[BackendKey, tuple[Finding, ...]] = {}
    for name, document in sorted(verdicts.documents.items()):
        parts = name.split("/")
        verdict = decode(document.value, VerdictDocument)
        if len(parts) != _PARTS or not isinstance(verdict, VerdictDocument):
            continue  # `votes` has refused it
        host, key = parts[0], BackendKey(parts[1], parts[2])
        finding = Finding(
            host=host,
            state=verdict.state,
            code=verdict.code,
            reason=verdict.reason,
            since=verdict.since,
            counts=host not in blind,
        )
        found[key] = (*found.get(key, ()), finding)
    return found


def _mode(pool: Pool) -> str:
    return "none" if pool.health is None else pool.health.mode


def _row(
    backend: Backend, pool: Pool, effective: Effective | None, findings: tuple[Finding, ...]
) -> Row:
    votes = voters = 0
    since = ""
    state, code, reason = _by_document(backend, pool) or _undecided(findings)
    if effective is not None:
        sides = {"healthy": effective.healthy, "unhealthy": effective.unhealthy}
        votes, voters, since = sides[effective.state], sum(sides.values()), rfc3339(effective.since)
        if _by_document(backend, pool) is None:
            state = effective.state
            last = max(
                (each for each in findings if each.counts and each.state == state),
                key=lambda each: (each.since, each.host),
            )
            code, reason = last.code, last.reason
    return Row(backend.name, state, code, reason, since, votes, voters, findings)


def _by_document(backend: Backend, pool: Pool) -> tuple[str, str, str] | None:
    """Return state, code and reason where documents decide them."""
    if backend.state == "drain":
        return "draining", "draining", "its document says drain"
    if backend.state != "active":
        return "unused", "not-used", f"its document says {backend.state}"
    if pool.health is None:
        return "unused", "no-check", "its pool has no health"
    return None


def _undecided(findings: tuple[Finding, ...]) -> tuple[str, str, str]:
    for state in ("initial", "unused"):
        for each in findings:
            if each.state == state:
                return state, each.code, each.reason
    return "initial", "checking", "no host has a finding that counts"
