# SPDX-License-Identifier: Apache-2.0
"""Decide whether a rollout has failed, by the statuses of the hosts that were moved.

A pure function of what is seen, and of how long it has looked wrong: an agent that is restarted has
no status for a moment, and a slow start's step reaches hosts a moment apart, so these two must last
before they count. All else counts at once.

Traffic and health are compared with the hosts that were not moved, since both depend on the hour;
when none is left, with their figures before the last wave. The worst host counts, not their mean,
which would hide one bad host among many. A few packets prove nothing: a host must be worse by at
least `_FEWEST` packets within the seconds that its figures cover.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from tidegate.model.rollout import BaselineDocument, RolloutDocument
from tidegate.rollout.fleet import HostStatus, Seen, SeenHost

VANISHED_SECONDS: Final = 15.0
DIGEST_SECONDS: Final = 5.0
WINDOW_SECONDS: Final = 5.0
"""Seconds that the traffic figures of a status cover."""
_FEWEST: Final = 5.0


class Judgement(NamedTuple):
    """What was found.

    Attributes:
        failure: why the rollout has failed; empty if it has not.
        since: what looks wrong, and since when; to be passed in the next time.
    """

    failure: str
    since: Mapping[str, float]


class _Figure(NamedTuple):
    """Something that is compared: name, unit, value in percent, and how much it weighs."""

    name: str
    unit: str
    percent: Callable[[HostStatus], float | None]
    weight: Callable[[HostStatus], float]


def _drops(status: HostStatus) -> float | None:
    return status.traffic.drops * 100 if status.traffic else None


def _misses(status: HostStatus) -> float | None:
    return status.traffic.misses * 100 if status.traffic else None


def _unhealthy(status: HostStatus) -> float | None:
    if status.backends is None or status.backends.total == 0:
        return None
    return status.backends.unhealthy / status.backends.total * 100


def _packets(status: HostStatus) -> float:
    return status.traffic.packets_per_second * WINDOW_SECONDS if status.traffic else 0.0


def _backends(status: HostStatus) -> float:
    # One backend too many is enough, five packets are not.
    return status.backends.total * _FEWEST if status.backends else 0.0


_FIGURES: Final = (
    _Figure("drops", "of its packets", _drops, _packets),
    _Figure("misses", "of its packets", _misses, _packets),
    _Figure("unhealthy", "of its backends", _unhealthy, _backends),
)


def moved_hosts(document: RolloutDocument, seen: Seen) -> list[SeenHost]:
    """Return the hosts that are on the rollout's track, as they are seen."""
    names = [moved.host for moved in document.moved if not moved.restored]
    return [seen.hosts.get(name, SeenHost(name, None, None, None)) for name in names]


def follows(document: RolloutDocument, host: SeenHost) -> bool:
    """Say whether a host's status is about the release, and was written after the move."""
    status = host.status
    return (
        status is not None
        and host.key is not None
        and status.release == document.release
        and status.revision >= host.key.mod_revision
    )


def acknowledges(document: RolloutDocument, host: SeenHost) -> bool:
    """Say whether a host has the release in force (ACK)."""
    status = host.status
    return (
        follows(document, host)
        and status is not None
        and status.state == "synced"
        and status.generation_release in ("", document.release)
    )


def judge(
    document: RolloutDocument, seen: Seen, since: Mapping[str, float], now: float
) -> Judgement:
    """Say whether the rollout has failed.

    Args:
        document: the rollout.
        seen: the fleet.
        since: what looked wrong the last time.
        now: seconds of any clock that only goes forward.
    """
    moved = moved_hosts(document, seen)
    wanted, found = document.abort_on, []
    suspicions: dict[str, float] = {}

    def lasting(what: str, seconds: float) -> bool:
        suspicions[what] = since.get(what, now)
        return now - suspicions[what] >= seconds

    for host in moved:
        if host.status is None:
            if wanted.vanished and lasting(f"vanished {host.name}", VANISHED_SECONDS):
                found.append(f"{host.name} has had no status for {VANISHED_SECONDS:g} s")
        elif follows(document, host):
            found += _refusals(document, host.name, host.status)
    disagreement = _digests(document, moved) if wanted.digest else ""
    if disagreement and lasting("digest", DIGEST_SECONDS):
        found.append(disagreement)
    found += _comparisons(document, seen, moved)
    return Judgement(found[0] if found else "", suspicions)


def _refusals(document: RolloutDocument, name: str, status: HostStatus) -> list[str]:
    if document.abort_on.nack and status.refusals:
        more = f" (and {len(status.refusals) - 1} more)" if len(status.refusals) > 1 else ""
        return [f"{name} refuses {status.refusals[0]}{more}"]
    if document.abort_on.degraded and status.state in ("degraded", "stale"):
        return [f"{name} is {status.state}: {status.reason}"]
    return []


def _digests(document: RolloutDocument, moved: Iterable[SeenHost]) -> str:
    """Say which hosts that have the release in force have another digest than most."""
    by_digest: dict[str, list[str]] = defaultdict(list)
    for host in moved:
        if host.status is not None and acknowledges(document, host):
            by_digest[host.status.digest].append(host.name)
    if len(by_digest) < 2:  # noqa: PLR2004 - two digests are a disagreement
        return ""
    most = max(by_digest, key=lambda digest: (len(by_digest[digest]), digest))
    others = [name for digest, names in by_digest.items() if digest != most for name in names]
    return (
        f"{', '.join(sorted(others))} built tables of the same release that differ from those of "
        f"{', '.join(sorted(by_digest[most]))}"
    )


def baseline(hosts: Iterable[SeenHost], before: BaselineDocument) -> BaselineDocument:
    """Return the figures of hosts together; one that none of them has is as it was before."""
    status = [host.status for host in hosts if host.status is not None]
    values: dict[str, float] = {}
    for figure in _FIGURES:
        pairs = [(figure.percent(each), figure.weight(each)) for each in status]
        total = sum(count for percent, count in pairs if percent is not None)
        bad = sum(percent * count for percent, count in pairs if percent is not None)
        values[figure.name] = round(bad / total, 4) if total else getattr(before, figure.name)
    return BaselineDocument(**values)


def others(document: RolloutDocument, seen: Seen) -> list[SeenHost]:
    """Return the hosts that have a status and were not moved."""
    moved = {moved.host for moved in document.moved if not moved.restored}
    return [h for name, h in seen.hosts.items() if name not in moved and h.status is not None]


def _comparisons(document: RolloutDocument, seen: Seen, moved: Iterable[SeenHost]) -> list[str]:
    normal = baseline(others(document, seen), document.baseline)
    found = []
    for figure in _FIGURES:
        limit = getattr(document.abort_on, figure.name)
        if limit is None:
            continue
        usual = getattr(normal, figure.name)
        for host in moved:
            percent = figure.percent(host.status) if host.status else None
            if host.status is None or percent is None or not follows(document, host):
                continue
            excess = percent - usual
            if excess > limit and excess / 100 * figure.weight(host.status) >= _FEWEST:
                found.append(
                    f"{host.name} has {figure.name} of {percent:.3g}% {figure.unit}; hosts that "
                    f"were not moved have {usual:.3g}%, and {limit:g} points more are allowed"
                )
    return found
