# SPDX-License-Identifier: Apache-2.0
"""What makes a rollout fail: hosts that were moved, judged by their statuses.

A pure function of what is seen, and of since when it has looked wrong: an agent that is restarted
has no status for a moment, and a slow start's step reaches hosts a moment apart, so these two must
last before they count. All else counts at once.

Traffic and health are compared with the hosts that were not moved, since both depend on the hour;
when none is left, with how those did before the last wave. The host that is worst off counts, not
their mean, in which one broken host of many would drown. A few packets prove nothing: a host must
be worse by at least `_FEWEST` packets within the seconds that its figures are of.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from tidegate.model.rollout import BaselineDocument, RolloutDocument
from tidegate.rollout.fleet import Seen, SeenHost, Told

VANISHED_SECONDS: Final = 15.0
DIGEST_SECONDS: Final = 5.0
WINDOW_SECONDS: Final = 5.0
"""What the figures of a status's traffic are of."""
_FEWEST: Final = 5.0


class Judgement(NamedTuple):
    """What was found.

    Attributes:
        failure: why the rollout has failed; empty if it has not.
        since: what looks wrong, and since when; to be handed in the next time.
    """

    failure: str
    since: Mapping[str, float]


class _Figure(NamedTuple):
    """Something that is compared: name, unit, value in percent, and how much it weighs."""

    name: str
    unit: str
    percent: Callable[[Told], float | None]
    weight: Callable[[Told], float]


def _drops(told: Told) -> float | None:
    return told.traffic.drops * 100 if told.traffic else None


def _misses(told: Told) -> float | None:
    return told.traffic.misses * 100 if told.traffic else None


def _unhealthy(told: Told) -> float | None:
    if told.backends is None or told.backends.total == 0:
        return None
    return told.backends.unhealthy / told.backends.total * 100


def _packets(told: Told) -> float:
    return told.traffic.packets_per_second * WINDOW_SECONDS if told.traffic else 0.0


def _backends(told: Told) -> float:
    # One backend too many is reason enough, where five packets are not.
    return told.backends.total * _FEWEST if told.backends else 0.0


_FIGURES: Final = (
    _Figure("drops", "of its packets", _drops, _packets),
    _Figure("misses", "of its packets", _misses, _packets),
    _Figure("unhealthy", "of its backends", _unhealthy, _backends),
)


def moved_hosts(document: RolloutDocument, seen: Seen) -> list[SeenHost]:
    """The hosts that are on the rollout's track, as they are seen."""
    names = [moved.host for moved in document.moved if not moved.restored]
    return [seen.hosts.get(name, SeenHost(name, None, None, None)) for name in names]


def follows(document: RolloutDocument, host: SeenHost) -> bool:
    """Whether a host's status is about the release, and not of before it was moved."""
    told = host.told
    return (
        told is not None
        and host.key is not None
        and told.release == document.release
        and told.revision >= host.key.mod_revision
    )


def acknowledges(document: RolloutDocument, host: SeenHost) -> bool:
    """Whether a host has the release in force (ACK)."""
    told = host.told
    return (
        follows(document, host)
        and told is not None
        and told.state == "synced"
        and told.generation_release in ("", document.release)
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
        if host.told is None:
            if wanted.vanished and lasting(f"vanished {host.name}", VANISHED_SECONDS):
                found.append(f"{host.name} has had no status for {VANISHED_SECONDS:g} s.")
        elif follows(document, host):
            found += _refusals(document, host.name, host.told)
    disagreement = _digests(document, moved) if wanted.digest else ""
    if disagreement and lasting("digest", DIGEST_SECONDS):
        found.append(disagreement)
    found += _comparisons(document, seen, moved)
    return Judgement(found[0] if found else "", suspicions)


def _refusals(document: RolloutDocument, name: str, told: Told) -> list[str]:
    if document.abort_on.nack and told.refusals:
        more = f" (and {len(told.refusals) - 1} more)" if len(told.refusals) > 1 else ""
        return [f"{name} refuses {told.refusals[0]}{more}"]
    if document.abort_on.degraded and told.state in ("degraded", "stale"):
        return [f"{name} is {told.state}: {told.reason}"]
    return []


def _digests(document: RolloutDocument, moved: Iterable[SeenHost]) -> str:
    """Say which hosts that have the release in force have another digest than most."""
    by_digest: dict[str, list[str]] = defaultdict(list)
    for host in moved:
        if host.told is not None and acknowledges(document, host):
            by_digest[host.told.digest].append(host.name)
    if len(by_digest) < 2:  # noqa: PLR2004 - two digests are a disagreement
        return ""
    most = max(by_digest, key=lambda digest: (len(by_digest[digest]), digest))
    others = [name for digest, names in by_digest.items() if digest != most for name in names]
    return (
        f"{', '.join(sorted(others))} built other tables of the same release than "
        f"{', '.join(sorted(by_digest[most]))}."
    )


def baseline(hosts: Iterable[SeenHost], before: BaselineDocument) -> BaselineDocument:
    """How hosts do together; a figure that none of them tells is as it was before."""
    told = [host.told for host in hosts if host.told is not None]
    values: dict[str, float] = {}
    for figure in _FIGURES:
        pairs = [(figure.percent(each), figure.weight(each)) for each in told]
        total = sum(count for percent, count in pairs if percent is not None)
        bad = sum(percent * count for percent, count in pairs if percent is not None)
        values[figure.name] = round(bad / total, 4) if total else getattr(before, figure.name)
    return BaselineDocument(**values)


def others(document: RolloutDocument, seen: Seen) -> list[SeenHost]:
    """The hosts that are there and were not moved."""
    moved = {moved.host for moved in document.moved if not moved.restored}
    return [h for name, h in seen.hosts.items() if name not in moved and h.told is not None]


def _comparisons(document: RolloutDocument, seen: Seen, moved: Iterable[SeenHost]) -> list[str]:
    normal = baseline(others(document, seen), document.baseline)
    found = []
    for figure in _FIGURES:
        limit = getattr(document.abort_on, figure.name)
        if limit is None:
            continue
        usual = getattr(normal, figure.name)
        for host in moved:
            percent = figure.percent(host.told) if host.told else None
            if host.told is None or percent is None or not follows(document, host):
                continue
            excess = percent - usual
            if excess > limit and excess / 100 * figure.weight(host.told) >= _FEWEST:
                found.append(
                    f"{host.name} has {figure.name} of {percent:.3g}% {figure.unit}; hosts that "
                    f"were not moved have {usual:.3g}%, and {limit:g} points more are allowed."
                )
    return found
