# SPDX-License-Identifier: Apache-2.0
"""What a fleet thinks of a backend: the majority of its hosts, computed equally on each of them.

Pure functions of the verdicts that hosts have written to etcd, so hosts that read the same revision
come to the same health and thereby to the same tables. Verdicts live under their host's lease:
those of a dead host are gone, and so it does not vote.

A backend is unhealthy if more than half of its voters vote for that; with half of them it stays
healthy, since taking out a backend that works does more harm than leaving one that does not to its
clients' retries. A host that has not made up its mind does not vote.

A host whose own way is broken finds many backends dead that the others reach. Such a host is
*blind*: it finds at least half of the backends unhealthy that the other hosts find healthy, and at
least three of them (or all). Its votes do not count, and its status says that it is blind.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from tidegate.model.health import Vote, Votes
from tidegate.model.values import BackendKey

_BLIND_LEAST: Final = 3
"""Backends that a host must see differently to be blind, unless there are fewer."""
_REMEMBERED: Final = 1 << 14
"""Sets of votes on one backend whose outcome need not be found again."""


@dataclass(frozen=True, slots=True)
class Effective:
    """What the fleet thinks of a backend.

    Attributes:
        since: wall-clock second at which the majority was reached.
        healthy, unhealthy: votes that count.
        has_recovered: whether most of those who find it healthy have seen it unhealthy before.
    """

    state: Literal["healthy", "unhealthy"]
    since: int
    healthy: int
    unhealthy: int
    has_recovered: bool = False


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a fleet thinks.

    Attributes:
        backends: those that anybody voted on whose votes count.
        blind: hosts whose votes do not count.
    """

    backends: Mapping[BackendKey, Effective]
    blind: frozenset[str]


def opinion(votes: Votes) -> Opinion:
    """Return the fleet's opinion, the same on every host that has the same votes."""
    cast = _by_backend(votes)
    blind = frozenset(host for host, mine in votes.items() if _is_blind(mine, cast))
    if blind:
        cast = _by_backend({host: mine for host, mine in votes.items() if host not in blind})
    return Opinion({key: _effective(tuple(each)) for key, each in cast.items()}, blind)


def can_be_spared(host: str, votes: Votes, blind: Collection[str]) -> bool:
    """Return whether most hosts see what a blind host does not, so that it may withdraw.

    Those who count are the host itself and all who judge any backend that it judges, and more than
    half of them must see. Blind hosts alone are spared, and they are not among those who see, so
    one that is gone makes no other go; and if blindness spreads to half of them, all come back.

    Args:
        host: the one that asks.
        votes: of all hosts.
        blind: the hosts that are blind by these votes.
    """
    if host not in blind:
        return False
    mine = votes[host].keys()
    peers = [name for name, cast in votes.items() if not mine.isdisjoint(cast.keys())]
    return 2 * sum(name not in blind for name in peers) > len(peers)


def _by_backend(votes: Votes) -> dict[BackendKey, list[Vote]]:
    found: defaultdict[BackendKey, list[Vote]] = defaultdict(list)
    for cast in votes.values():
        for key, vote in cast.items():
            found[key].append(vote)
    return found


@lru_cache(_REMEMBERED)
def _effective(cast: tuple[Vote, ...]) -> Effective:
    """Return the outcome of votes; cached, as most of thousands of backends have the same votes."""
    dead = [vote.since for vote in cast if not vote.is_healthy]
    alive = [vote.since for vote in cast if vote.is_healthy]
    if 2 * len(dead) > len(cast):
        return Effective("unhealthy", _reached(dead, len(cast) // 2 + 1), len(alive), len(dead))
    recovered = sum(vote.has_recovered for vote in cast if vote.is_healthy)
    # Half of the votes are enough to be healthy.
    since = _reached(alive, (len(cast) + 1) // 2)
    has_recovered = 2 * recovered > len(alive)
    return Effective("healthy", since, len(alive), len(dead), has_recovered)


def _reached(times: Iterable[int], needed: int) -> int:
    """Return the second at which there were enough of these votes."""
    return sorted(times)[needed - 1]


def _is_blind(mine: Mapping[BackendKey, Vote], cast: Mapping[BackendKey, list[Vote]]) -> bool:
    """Return whether a host finds many backends dead that the others find alive.

    Args:
        mine: its votes.
        cast: all votes on each backend; its own among them.
    """
    if all(vote.is_healthy for vote in mine.values()):
        return False
    shared = differing = 0
    for key, vote in mine.items():
        alive, others = _alive(tuple(cast[key]))
        others -= 1
        alive -= vote.is_healthy
        if others and 2 * alive >= others:
            shared += 1
            differing += not vote.is_healthy
    if not 0 < shared <= 2 * differing:
        return False
    known = sum(len(each) > (key in mine) for key, each in cast.items())
    return differing >= min(_BLIND_LEAST, known)


@lru_cache(_REMEMBERED)
def _alive(cast: tuple[Vote, ...]) -> tuple[int, int]:
    """Return the number of votes for healthy, and of all votes."""
    return sum(vote.is_healthy for vote in cast), len(cast)
