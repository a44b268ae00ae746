# SPDX-License-Identifier: Apache-2.0
"""Format `tidegate health` for people and as JSON."""

from collections.abc import Iterator

import msgspec

from tidegate.cli.health_view import HostSummary, PoolRows, Report, Row, is_unwell
from tidegate.keyspace.documents.timestamps import parse_timestamp

_UNITS = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def as_json(report: Report) -> str:
    """Return everything as one JSON object."""
    return msgspec.json.encode(report).decode()


def lines(report: Report, now: int, *, only_bad: bool) -> list[str]:
    """Return lines for people; ages are counted to `now`, a wall-clock second."""
    hosts = "1 host" if len(report.hosts) == 1 else f"{len(report.hosts)} hosts"
    found = [f"release {report.release}, revision {report.revision}, {hosts}"]
    for pool in report.pools:
        found += _pool(pool, now, only_bad=only_bad)
    for host in report.hosts:
        found += _host(host, is_blind=host.host in report.blind, only_bad=only_bad)
    return [*found, *(f"refused: {each}" for each in report.refused)]


def _pool(pool: PoolRows, now: int, *, only_bad: bool) -> Iterator[str]:
    healthy = sum(row.state == "healthy" for row in pool.backends)
    yield f"pool {pool.pool} ({pool.mode}): {healthy} of {len(pool.backends)} healthy"
    for row in pool.backends:
        if only_bad and row.state in ("healthy", "unused") and _agree(row):
            continue
        votes = f"{row.votes} of {row.voters} votes" if row.voters else "no votes"
        words = (row.backend, row.state, row.code, age(row.since, now), votes)
        widths = (16, 9, 11, 7, 12)
        line = " ".join(f"{word:{width}}" for word, width in zip(words, widths, strict=True))
        yield f"  {line} {row.reason}".rstrip()
        if row.state == "unhealthy" or not _agree(row):
            for each in row.hosts:
                what = f"{each.state}, {each.code}, {age(each.since, now)}"
                but = "" if each.counts else " (blind: does not count)"
                yield f"      {each.host}: {what}{but}: {each.reason}".rstrip(": ")


def _agree(row: Row) -> bool:
    return len({each.state for each in row.hosts}) <= 1


def _host(host: HostSummary, *, is_blind: bool, only_bad: bool) -> Iterator[str]:
    if only_bad and not is_blind and not is_unwell(host):
        return
    notes = [f"{host.state}"]
    notes.append("ready" if host.ready else f"NOT ready: {host.ready_reason}")
    if is_blind:
        notes.append("blind: its verdicts do not count")
    if host.health.broken_checker:
        notes.append("broken checker: nothing is taken out")
    if host.health.panics:
        notes.append(f"panic, keeps all of {', '.join(host.health.panics)}")
    if host.health.hindrance:
        notes.append(host.health.hindrance)
    if host.health.waiting:
        notes.append(f"{host.health.waiting} unhealthy wait for the limit per minute")
    notes += _doubts(host)
    yield f"host {host.host}: {'; '.join(notes)}"


def _doubts(host: HostSummary) -> Iterator[str]:
    """Say whose verdicts are in doubt."""
    if host.health.late:
        yield f"its checks of {host.health.late} are late, and it has no finding on them"
    if host.health.unconfirmed:
        yield f"misses the word of {', '.join(host.health.unconfirmed)} that their verdicts hold"
    if host.health.overwritten:
        yield f"{host.health.overwritten} of its verdicts were overwritten by others, and put right"


def age(since: str, now: int) -> str:
    """Say how long ago: the two largest units, `-` if it is not known."""
    moment = parse_timestamp(since)
    if isinstance(moment, str):
        return "-"
    left = max(0, now - moment)
    parts: list[str] = []
    for seconds, unit in _UNITS:
        count, left = divmod(left, seconds)
        if count or parts:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2]) or "0s"
