# SPDX-License-Identifier: Apache-2.0
"""Collect what is refused of a snapshot: each refusal with the revision that wrote its key."""

from collections.abc import Iterable

from tidegate.keyspace.documents.decode import Fault, key_shown
from tidegate.model.values import Rejection, Snapshot, Stage


class Rejections:
    """The refusals of one pass over a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._found: list[Rejection] = []

    def add(self, key: str, field: str, reason: str, stage: Stage) -> None:
        """Refuse a key; the revision is that of its document, or the snapshot's without one."""
        document = self._snapshot.documents.get(key)
        revision = self._snapshot.revision if document is None else document.mod_revision
        self._found.append(Rejection(key_shown(key), field, reason, stage, revision))

    def add_all(self, key: str, faults: Iterable[Fault]) -> None:
        """Refuse a key for every fault of its document."""
        for field, reason, stage in faults:
            self.add(key, field, reason, stage)

    def ordered(self) -> tuple[Rejection, ...]:
        """Return the refusals in the order of keys, fields and reasons."""
        return tuple(sorted(self._found, key=lambda each: (each.key, each.field, each.reason)))
