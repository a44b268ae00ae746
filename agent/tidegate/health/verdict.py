# SPDX-License-Identifier: Apache-2.0
"""What a fleet thinks of a backend: the majority of its hosts, computed equally on each of them.

Pure functions of the verdicts that hosts have written to etcd, so hosts that have read the same
come to the same health and thereby to the same tables. (A host knows its own a moment before it is
read, and the dates of votes are its own: see the agent's `ballots`.) Verdicts live under their
host's lease: those of a dead host are gone, and so it does not vote.

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
from itertools import islice
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
        since: second at which the majority was reached, of the clock of the votes.
        healthy, unhealthy: votes that count.
        has_recovered: whether most of those who find it healthy have seen it unhealthy before.
    """

    state: Literal["healthy", "unhealthy"]
    since: float
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
    blind = frozenset(host for host, mine in votes.items() if is_blind(mine, _dead(mine), cast))
    if blind:
        cast = _by_backend({host: mine for host, mine in votes.items() if host not in blind})
    return Opinion({key: effective(tuple(each.values())) for key, each in cast.items()}, blind)


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


def _by_backend(votes: Votes) -> dict[BackendKey, dict[str, Vote]]:
    found: defaultdict[BackendKey, dict[str, Vote]] = defaultdict(dict)
    for host, cast in votes.items():
        for key, vote in cast.items():
            found[key][host] = vote
    return found


def _dead(mine: Mapping[BackendKey, Vote]) -> list[BackendKey]:
    return [key for key, vote in mine.items() if not vote.is_healthy]


@lru_cache(_REMEMBERED)
def effective(cast: tuple[Vote, ...]) -> Effective:
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


def _reached(times: Iterable[float], needed: int) -> float:
    """Return the second at which there were enough of these votes."""
    return sorted(times)[needed - 1]


def is_blind(
    mine: Mapping[BackendKey, Vote],
    dead: Collection[BackendKey],
    cast: Mapping[BackendKey, Mapping[str, Vote]],
) -> bool:
    """Return whether a host finds many backends dead that the others find alive.

    Args:
        mine: its votes.
        dead: the backends that it finds dead.
        cast: all votes on each backend by host; its own among them.
    """
    differing = sum(_others_find_alive(cast[key], mine[key]) for key in dead)
    if not differing:
        return False
    if differing < _BLIND_LEAST:
        known = (key for key, each in cast.items() if len(each) > (key in mine))
        if differing < len([*islice(known, _BLIND_LEAST)]):
            return False
    shared = (key for key, vote in mine.items() if _others_find_alive(cast[key], vote))
    return len([*islice(shared, 2 * differing + 1)]) <= 2 * differing


def _others_find_alive(cast: Mapping[str, Vote], mine: Vote) -> bool:
    alive, others = _alive(tuple(cast.values()))
    others -= 1
    return others > 0 and 2 * (alive - mine.is_healthy) >= others


@lru_cache(_REMEMBERED)
def _alive(cast: tuple[Vote, ...]) -> tuple[int, int]:
    """Return the number of votes for healthy, and of all votes."""
    return sum(vote.is_healthy for vote in cast), len(cast)
