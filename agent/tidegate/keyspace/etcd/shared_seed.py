# SPDX-License-Identifier: Apache-2.0
"""Agree with a fleet's other hosts on a secret key of the flow hash, where nobody has set one.

All hosts must hash alike, and nobody else may know how: who does can aim flows at one backend. So
the first agent that finds no key writes one, by compare-and-swap, and all others read it. It lies
outside the fleet's prefix, which operators and viewers read; only agents' roles have it.

What is written must not move flows. Hosts that have VIPs in force go on with the key that they
hash with, and so does a fleet: a host without anything in force finds others' verdicts on backends,
and no key, where agents of an older version run, whose key was the fleet's name. A host
knows the key before it gets its first view, so it never hashes with another one in between.
"""

import secrets
from collections.abc import Sequence
from typing import Any, Final

from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed, Remedy
from tidegate.keyspace.etcd.transaction import Write
from tidegate.keyspace.paths import prefix_end, seed_key, verdict_prefix
from tidegate.model.values import Document

_BYTES: Final = 16
"""As many as the key of the program's hash has."""


class SharedSeed:
    """A fleet's seed, as one host reads it; used by one thread."""

    def __init__(self, root: str, fleet: str, in_force: str) -> None:
        """Prepare it; nothing is sent yet.

        Args:
            root: of all fleets.
            fleet: the fleet, whose name was the seed once.
            in_force: what this host hashes with; empty if it has no VIPs in force.
        """
        self._key = seed_key(root, fleet)
        self._verdicts = verdict_prefix(root, fleet).encode()
        self._fleet = fleet
        self._known = in_force

    def read(self, etcd: Etcd) -> Document:
        """Return the seed's document, which is made if it is missing; refused if etcd forbids it.

        Raises:
            CallFailed: another failure.
        """
        try:
            found = etcd.range(self._key.encode()).kvs or self._make(etcd)
        except CallFailed as failure:
            if failure.remedy is not Remedy.OPERATOR:
                raise
            return Document(b"", 0, 0, f"{self._key}: {failure.reason}")
        (kv,) = found
        self._known = kv.value.decode("utf-8", "backslashreplace")
        return Document(kv.value, kv.mod_revision, kv.create_revision)

    def _make(self, etcd: Etcd) -> Sequence[Any]:
        """Write the seed unless somebody was quicker; return what is there then."""
        seed = self._known
        if not seed:
            others = etcd.range(self._verdicts, prefix_end(self._verdicts), limit=1).kvs
            seed = self._fleet if others else secrets.token_hex(_BYTES)
        etcd.commit([Write(self._key, seed.encode(), 0)])
        made: Sequence[Any] = etcd.range(self._key.encode()).kvs
        if not made:
            raise CallFailed(Remedy.RETRY, f"{self._key} was deleted as soon as it was written")
        return made
