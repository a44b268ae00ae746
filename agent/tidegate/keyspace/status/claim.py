# SPDX-License-Identifier: Apache-2.0
"""A host's name, claimed by its status key: two hosts with one name must not share it silently.

The status has the `instance` of its data plane. That lives and dies with the host's pinned maps: it
is the same after a restart of the agent, which thus takes its key over at once, though the lease of
the agent that died has not run out. Two hosts never have the same, not even clones of one disk.

Whoever finds another instance in the key writes nothing, neither status nor verdicts, until the key
is gone. A host that was rebooted finds its own one from before, which goes with its lease. What is
there for longer than a lease is written by somebody who lives, and that is worth a person's notice.
Each write is conditional on the key being as this agent left it, so nobody writes over another.
"""

import time
from typing import Final

import msgspec

from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed, Remedy

_LEASES: Final = 1.5
"""Times a lease after which what is still there is not left over: etcd may prolong one a little."""


class _Owner(msgspec.Struct):
    """The part of a status that says whose it is."""

    instance: str = ""
    started_at: str = ""


class Claim:
    """One host's claim on its status key.

    Args:
        etcd: the writer's.
        key: the status key.
        ttl: seconds of a lease.
    """

    def __init__(self, etcd: Etcd, key: str, ttl: float) -> None:
        self._etcd = etcd
        self._key = key
        self._ttl = ttl
        self._seen: tuple[str, float] = ("", 0.0)
        self.revision = 0
        """Modification revision of the key as it was left or found; 0 if there was none."""
        self.duplicate = ""
        """Who else has this name, as a sentence; empty if nobody has for all that is known."""

    def look(self, instance: str) -> None:
        """Find out whether the key may be written, and what it is like.

        Args:
            instance: of this host; empty takes the key whoever has it.

        Raises:
            CallFailed: another host's status is there, or etcd does not answer.
        """
        found = self._etcd.range(self._key.encode()).kvs
        owner = _owner(found[0].value) if found else _Owner()
        if instance and owner.instance not in ("", instance):
            raise self._taken(owner)
        self._seen = "", 0.0
        self.duplicate = ""
        self.revision = found[0].mod_revision if found else 0

    def verify(self) -> None:
        """Make sure that the key is as it was left, and may be read.

        A lease is renewed whoever asks, also when etcd takes nothing else from this host any more.

        Raises:
            CallFailed: it is not (the remedy is RELIST), or etcd does not answer, or refuses.
        """
        found = self._etcd.range(self._key.encode()).kvs
        if (found[0].mod_revision if found else 0) != self.revision:
            raise self._lost()

    def write(self, values: dict[str, bytes | None], lease: int) -> int:
        """Write keys under a lease, if the status key is as it was left; return the revision.

        Raises:
            CallFailed: it is not (the remedy is RELIST), or etcd does not answer.
        """
        revision = self._etcd.replace(values, lease, self._key, self.revision)
        if revision is None:
            raise self._lost()
        if self._key in values:
            self.revision = revision
        return revision

    def _lost(self) -> CallFailed:
        return CallFailed(Remedy.RELIST, f"somebody else has written or deleted {self._key}")

    def _taken(self, owner: _Owner) -> CallFailed:
        name = self._key.rpartition("/")[2]
        now = time.monotonic()
        if self._seen[0] != owner.instance:
            self._seen = owner.instance, now
        if now - self._seen[1] > _LEASES * self._ttl:
            self.duplicate = (
                f"another host has the name {name} (instance {owner.instance}, running since "
                f"{owner.started_at}): give each a name of its own (host in its file)"
            )
        waits = f"the status of {name} is another host's (instance {owner.instance}), or is left"
        return CallFailed(Remedy.RETRY, self.duplicate or f"{waits} from before a reboot")


def _owner(value: bytes) -> _Owner:
    try:
        return msgspec.json.decode(value, type=_Owner)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Owner()  # not a status: whoever wrote it did not hold the name
