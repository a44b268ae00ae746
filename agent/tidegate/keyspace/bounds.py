# SPDX-License-Identifier: Apache-2.0
"""How much of what others write below a prefix an agent keeps in memory.

Whoever may write one key can write megabytes, and thousands of them. What is too much is refused by
its own name and its value is not kept, so that everything beside it counts as before. Nothing here
knows etcd; whoever reads documents asks a `Budget` what to keep.
"""

from collections import defaultdict
from hashlib import blake2b
from typing import Final, NamedTuple

from tidegate.model.values import Document

MAX_BYTES: Final = 64 * 1024
"""Longest document. etcd itself takes 1.5 MiB; a document of ours has a few hundred bytes."""

_LONGEST_KEY: Final = 1024
"""Bytes of a key that are kept; the longest of ours has 200."""

_SHOWN: Final = 150


class Bounds(NamedTuple):
    """What is kept of one prefix.

    Attributes:
        each: bytes of one document.
        together: bytes of its keys and documents in sum.
        keys: that are read; what comes after them, in etcd's order, is not.
        page: keys in one answer at the most: etcd makes an answer up before anybody can see that it
            is too long, so few of them where each may be long.
        writer: bytes of all that has one first part of its key, where each writer has a part of its
            own: none takes the room of the others. 0 is no limit.
    """

    each: int
    together: int
    keys: int
    page: int
    writer: int = 0


RELEASE: Final = Bounds(MAX_BYTES, together=128 << 20, keys=1 << 20, page=1000)
"""65,535 backends, 1,023 pools and their VIPs have about 20 MiB."""

STEERING: Final = Bounds(MAX_BYTES, together=4 << 20, keys=10_000, page=128)
"""Of each of the ranges that steer a host."""

VERDICTS: Final = Bounds(4 << 10, together=512 << 20, keys=1 << 20, page=1000, writer=64 << 20)
"""Of all hosts on all backends: 200 bytes each, 65,535 of 40 hosts. A reason has 500 characters, so
65,535 of one host have 60 MiB at the most."""

COMMAND: Final = Bounds(512 << 10, together=256 << 20, keys=1 << 20, page=256)
"""Of each range that a person's command reads; a status with all of its refusals has 150 KiB."""


class Budget:
    """What is kept of one prefix, as its documents come and go.

    Attributes:
        is_exceeded: whether a document was refused for the sum since this was made.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._each = bounds.each
        self._together = bounds.together
        self._writer = bounds.writer
        self._used = 0
        self._used_by: defaultdict[str, int] = defaultdict(int)
        self.is_exceeded = False

    def take(self, key: str, value: bytes, mod: int, create: int) -> Document:
        """Return the document to keep of a key: with its value, or with why it is refused."""
        if len(value) > self._each:
            reason = f"the document has {len(value)} bytes; the limit is {self._each}"
            return Document(b"", mod, create, reason)
        writer = key.partition("/")[0] if self._writer else ""
        if self._writer and self._used_by[writer] + len(key) + len(value) > self._writer:
            self.is_exceeded = True
            reason = (
                f"{writer} has {self._used_by[writer]} bytes in sum already and the limit is "
                f"{self._writer}, so it is not read; delete what is not needed"
            )
            return Document(b"", mod, create, reason)
        if self._used + len(key) + len(value) > self._together:
            self.is_exceeded = True
            reason = (
                f"the documents beside it have {self._used} bytes in sum already and the limit is "
                f"{self._together}, so it is not read; delete what is not needed"
            )
            return Document(b"", mod, create, reason)
        self._used += len(key) + len(value)
        self._used_by[writer] += len(key) + len(value)
        return Document(value, mod, create)

    def give_back(self, key: str, document: Document | None) -> None:
        """Count a document no more that was taken; None is none."""
        if document is not None and not document.refused:
            size = len(key) + len(document.value)
            self._used -= size
            self._used_by[key.partition("/")[0] if self._writer else ""] -= size


def kept_key(key: bytes) -> str:
    r"""Return a key as text: a byte that is not UTF-8 is \xNN, and a long key has a short name."""
    if len(key) <= _LONGEST_KEY:
        return key.decode("utf-8", "backslashreplace")
    digest = blake2b(key, digest_size=8).hexdigest()
    return f"{key[:_SHOWN].decode('utf-8', 'backslashreplace')}\\…{digest}"


def is_whole(key: str) -> bool:
    """Say whether etcd can be asked for a key by this text."""
    return "\\" not in key
