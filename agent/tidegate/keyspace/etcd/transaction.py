# SPDX-License-Identifier: Apache-2.0
"""Changes of several keys that are made together or not at all, as values.

Each write names the revision of its key that it replaces, so that what somebody else wrote in the
meantime is never overwritten unseen. This knows no connection: `Etcd.commit` sends it.
"""

from typing import Final, NamedTuple

from tidegate.model.values import Document

MAX_WRITES: Final = 128
"""Writes in one transaction: etcd's default limit of operations, and of comparisons."""


class Write(NamedTuple):
    """A key's new value.

    Attributes:
        key: the whole key.
        value: None deletes the key.
        expected: mod revision that the key has now; 0 if it must not exist.
    """

    key: str
    value: bytes | None
    expected: int


class Committed(NamedTuple):
    """All writes are in force.

    Attributes:
        revision: of the transaction, or one after it if its first answer was lost on the way.
    """

    revision: int


class Conflict(NamedTuple):
    """No write was made, since keys are not as expected.

    Attributes:
        found: those keys as they are, by key; None for one that does not exist.
    """

    found: dict[str, Document | None]

    def __str__(self) -> str:
        changes = [
            f"{key} was {'deleted' if now is None else f'changed at revision {now.mod_revision}'}"
            for key, now in self.found.items()
        ]
        return f"somebody else wrote in the meantime: {', '.join(changes)}"
