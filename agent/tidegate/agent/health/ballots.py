# SPDX-License-Identifier: Apache-2.0
"""The fleet's verdicts as this host received them, each dated by this host's own clock.

What others write has times of their wall clocks, and those decide nothing: a clock that is wrong by
an hour, or a writer who lies, must neither keep a dead backend in nor bring one back. So each vote
gets a second of this host's monotonic clock, once, when it is received:

* It is not later than its receipt. What is claimed to be in the future began now.
* It is as early as it claims, but no more than `_WRITTEN_WITHIN` before its receipt: that long a
  verdict may take to be written and read. Within that the claim is worth having: all hosts count a
  slow start from the same second. Earlier by so little, the limit per minute is one per 50 seconds.
* What is there when this host first reads has no receipt that says anything, so it is as old as it
  claims to be. To be old can only take a backend out at once, as on hosts that read it long ago.
* A vote that is written again, and says the same, keeps its date.

Who is out and found dead stays out whatever the dates (`limits`), and who is in service begins no
slow start for them (`fitness`), so the first reading decides little.

This host's own keys are no votes here: it knows what its probes found. Which are there is kept, for
whoever writes them to see if somebody else did (`keyspace/status/own_keys`). When a host has said
that its verdicts are up to date is kept too; what follows from that is in `gap`.

The work is proportional to what has changed, but for one comparison by identity for each key.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, zip_longest
from types import MappingProxyType
from typing import Final, NamedTuple

from tidegate.health.poll import Poll
from tidegate.keyspace.status import verdicts
from tidegate.keyspace.status.document import MAX_REFUSALS
from tidegate.keyspace.status.own_keys import OwnKeys
from tidegate.keyspace.status.verdicts import Confirmation
from tidegate.model.health import Vote
from tidegate.model.values import BackendKey, Document, Rejection, Snapshot

_NONE: Final[Mapping[str, Document]] = MappingProxyType({})

_WRITTEN_WITHIN: Final = 10.0
"""Seconds from a finding to its receipt, of which its writer is believed."""


class Received(NamedTuple):
    """When a snapshot was received.

    Attributes:
        now: monotonic clock, s.
        ahead: seconds by which the wall clock is ahead of that.
    """

    now: float
    ahead: float


@dataclass(frozen=True, slots=True)
class Confirmed:
    """When a host last said that all its verdicts are up to date.

    Attributes:
        revision: etcd's, of what it wrote then.
        received: monotonic second.
        said: what it wrote.
    """

    revision: int
    received: float
    said: Confirmation


class Ballots:
    """Follows snapshots; its votes go to a poll.

    Args:
        host: this host.
        prefix: of the fleet's verdicts, with its slash.
        poll: gets the votes of all others.
    """

    def __init__(self, host: str, prefix: str, poll: Poll) -> None:
        self._host = host
        self._prefix = prefix
        self._poll = poll
        self._documents = _NONE
        self._is_first = True
        self._refused: defaultdict[str, dict[str, Rejection]] = defaultdict(dict)
        self._own: dict[str, int] = {}
        self._own_changed = self._refused_changed = False
        self.confirmed: dict[str, Confirmed] = {}
        """By host; this host's own is among them."""
        self.own_keys = OwnKeys(0, {})
        """This host's keys as read when any of them was last found changed."""
        self.rejections: tuple[Rejection, ...] = ()
        """Some of what cannot be read; of each writer one before a second of any."""
        self.unreadable = 0
        """Number of all that cannot be read."""

    def take(self, snapshot: Snapshot, received: Received) -> bool:
        """Take what was read; return whether any vote of others is another one."""
        before, now = self._documents, snapshot.documents
        changed = [key for key, found in now.items() if before.get(key) is not found]
        changed = [key for key in changed if before.get(key) != now[key]]
        added = sum(key not in before for key in changed)
        is_new = self._is_first
        if len(now) != len(before) + added:
            for key in before.keys() - now.keys():
                is_new |= self._drop(key)
        for key in changed:
            is_new |= self._read(key, now[key], received)
        self._documents, self._is_first = now, False
        if self._own_changed:
            self.own_keys = OwnKeys(snapshot.revision, dict(self._own))
        if self._refused_changed:
            self.rejections = self._named()
        self._own_changed = self._refused_changed = False
        return is_new

    def _named(self) -> tuple[Rejection, ...]:
        by_turns = zip_longest(*(each.values() for each in self._refused.values()))
        each = (one for turn in by_turns for one in turn if one is not None)
        return tuple(islice(each, MAX_REFUSALS))

    def _drop(self, key: str) -> bool:
        """Forget a key; return whether a vote goes with it."""
        if self._refused:
            self._unrefuse(key)
        signed = verdicts.signed(key)
        if isinstance(signed, str):
            return False
        host, backend = signed
        if host == self._host:
            self._own_changed = True
            self._own.pop(self._prefix + key, None)
        if backend is None:
            self.confirmed.pop(host, None)
            return False
        return host != self._host and self._poll.put(host, backend, None)

    def _read(self, key: str, document: Document, received: Received) -> bool:
        """Take a key's document; return whether it is another vote."""
        if self._refused:
            self._unrefuse(key)
        signed = verdicts.signed(key)
        if isinstance(signed, str):
            self._refuse(key, signed, document)
            return False
        host, backend = signed
        if host == self._host:
            self._own_changed = True
            self._own[self._prefix + key] = document.mod_revision
        if backend is None:
            self._confirm(host, key, document, received)
            return False
        if host == self._host:
            return False
        vote = document.refused or verdicts.vote(document.value)
        if isinstance(vote, str):
            self._refuse(key, vote, document)
            vote = None
        dated = None if vote is None else self._dated(host, backend, vote, received)
        return self._poll.put(host, backend, dated)

    def _confirm(self, host: str, key: str, document: Document, received: Received) -> None:
        said = document.refused or verdicts.confirmation(document.value)
        if isinstance(said, str):
            self._refuse(key, said, document)
        else:
            self.confirmed[host] = Confirmed(document.mod_revision, received.now, said)

    def _dated(self, host: str, backend: BackendKey, vote: Vote, received: Received) -> Vote:
        """Return a vote with the second of this host's clock at which it was cast."""
        since = min(vote.since - received.ahead, received.now)
        if not self._is_first:
            earliest = received.now - _WRITTEN_WITHIN
            last = self._poll.vote(host, backend)
            if last is None or last[::2] != vote[::2]:  # it says something else, or is new
                since = max(since, earliest)
            elif since <= max(last.since, earliest):
                since = last.since
        return Vote(vote.is_healthy, since, vote.has_recovered)

    def _refuse(self, key: str, reason: str, document: Document) -> None:
        refusal = verdicts.refused(key, reason, document.mod_revision)
        self._refused[key.partition("/")[0]][key] = refusal
        self.unreadable += 1
        self._refused_changed = True

    def _unrefuse(self, key: str) -> None:
        writer = key.partition("/")[0]
        if key in self._refused.get(writer, ()):
            del self._refused[writer][key]
            if not self._refused[writer]:
                del self._refused[writer]
            self.unreadable -= 1
            self._refused_changed = True
