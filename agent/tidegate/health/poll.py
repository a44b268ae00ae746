# SPDX-License-Identifier: Apache-2.0
"""A fleet's votes, counted as they come: `verdict.opinion`, at the cost of what has changed.

When one of 100,000 votes changes, the outcome on its backend is computed anew, and that of no other
unless it makes a host blind or seeing. Who is blind is asked of those alone who find anything dead.
"""

from collections import defaultdict
from types import MappingProxyType

from tidegate.health.verdict import Effective, Opinion, effective, is_blind
from tidegate.model.health import Vote, Votes
from tidegate.model.values import BackendKey


class Poll:
    """Votes by host and backend, and what follows from them."""

    def __init__(self) -> None:
        self._by_host: dict[str, dict[BackendKey, Vote]] = {}
        self._by_backend: defaultdict[BackendKey, dict[str, Vote]] = defaultdict(dict)
        self._dead: defaultdict[str, set[BackendKey]] = defaultdict(set)
        self._changed: set[BackendKey] = set()
        self._backends: dict[BackendKey, Effective] = {}
        self._opinion = Opinion(MappingProxyType(self._backends), frozenset())

    @property
    def votes(self) -> Votes:
        """All of them, as they are now; not to be kept."""
        return self._by_host

    def put(self, host: str, key: BackendKey, vote: Vote | None) -> bool:
        """Take a host's vote on a backend in place of its last one; None takes that away.

        Returns:
            Whether it is another one.
        """
        if vote == self.vote(host, key):
            return False
        mine = self._by_host.setdefault(host, {})
        self._changed.add(key)
        dead = self._dead[host]
        if vote is not None:
            mine[key] = self._by_backend[key][host] = vote
            if not vote.is_healthy:
                dead.add(key)
            elif dead:
                dead.discard(key)
            return True
        del mine[key], self._by_backend[key][host]
        dead.discard(key)
        if not mine:
            del self._by_host[host], self._dead[host]
        if not self._by_backend[key]:
            del self._by_backend[key]
        return True

    def vote(self, host: str, key: BackendKey) -> Vote | None:
        """Return a host's vote on a backend, if it has cast one."""
        return self._by_host.get(host, {}).get(key)

    def opinion(self) -> Opinion:
        """Return what the fleet thinks; its mapping follows later calls."""
        if not self._changed:
            return self._opinion
        changed, self._changed = self._changed, set()
        blind = self._blind()
        if blind != self._opinion.blind:
            changed = changed | self._backends.keys() | self._by_backend.keys()
        for key in changed:
            cast = self._by_backend.get(key, {})
            counted = tuple(vote for host, vote in cast.items() if host not in blind)
            if counted:
                self._backends[key] = effective(counted)
            else:
                self._backends.pop(key, None)
        self._opinion = Opinion(MappingProxyType(self._backends), blind)
        return self._opinion

    def _blind(self) -> frozenset[str]:
        votes, cast = self._by_host, self._by_backend
        return frozenset(
            host for host, dead in self._dead.items() if dead and is_blind(votes[host], dead, cast)
        )
