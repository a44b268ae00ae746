# SPDX-License-Identifier: Apache-2.0
"""Read a prefix or ranges at one revision, and check that the history is still the one we know.

Nothing here retries or keeps state.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from tidegate.keyspace.bounds import RELEASE, Bounds, Budget, is_whole, kept_key
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed, Remedy
from tidegate.keyspace.paths import KeyRange, prefix_end
from tidegate.model.values import Document

_FIRST_PAGE: Final = 64
_SHORT_PAGE: Final = 256 * 1024
_LONG_PAGE: Final = 4 * 1024 * 1024
"""Bytes below which the next page has more keys, and above which it has fewer."""


@dataclass(frozen=True, slots=True)
class History:
    """Which history a list was read from.

    Attributes:
        cluster: etcd's cluster id.
        term: raft term; it never goes back within a history.
        revision: revision of the store at which the list was read.
    """

    cluster: int
    term: int
    revision: int

    def follows(self, older: "History") -> bool:
        """Say whether this can be a later moment of the same history."""
        same = self.cluster == older.cluster
        return same and self.term >= older.term and self.revision >= older.revision


class Reading:
    """A read of keys in pages, all at the revision of the first: one moment, whatever is there.

    How many keys a page has follows from what was found: an answer is held in memory whole, here
    and at etcd, before anybody can see how long it is. It begins with few keys, and asks for more
    while answers are short. A page that is too large for a message, or takes too long, is asked for
    again with fewer keys; so a slow link brings small pages and is no outage.

    Attributes:
        history: that the keys are of; None before the first page.
    """

    def __init__(self, etcd: Etcd, page_size: int, stopped: Callable[[], bool]) -> None:
        """Prepare it; pages have `page_size` keys at the most."""
        self.history: History | None = None
        self._etcd = etcd
        self._most = page_size
        self._size = min(page_size, _FIRST_PAGE)
        self._stopped = stopped

    def pages(self, keys: KeyRange) -> Iterator[Sequence[Any]]:
        """Yield the key-value messages of a range, page by page.

        Raises:
            CallFailed: RELIST if the revision was compacted while reading.
        """
        start = keys.key
        while not self._stopped():
            page = self._page(start, keys.end)
            yield page.kvs
            if not page.more:
                return
            start = page.kvs[-1].key + b"\0"
            length = page.ByteSize()
            if length < _SHORT_PAGE:
                self._size = min(self._most, self._size * 4)
            elif length > _LONG_PAGE:
                self._size = max(1, self._size // 4)
        raise CallFailed(Remedy.RETRY, "the list was stopped")

    def _page(self, start: bytes, end: bytes) -> Any:  # noqa: ANN401 - a run-time message class
        revision = self.history.revision if self.history else 0
        while True:
            try:
                page = self._etcd.range(start, end, revision=revision, limit=self._size)
            except CallFailed as failure:
                if not (failure.too_large or failure.too_slow) or self._size == 1:
                    raise
                self._size = 1 if failure.too_slow else max(1, self._size // 8)
                if self._stopped():
                    raise
                continue
            header = page.header
            if self.history is None:
                self.history = History(header.cluster_id, header.raft_term, header.revision)
            elif header.cluster_id != self.history.cluster:
                raise CallFailed(Remedy.RELIST, "the etcd cluster was replaced during a list")
            return page


class Listed(NamedTuple):
    """What a list found.

    Attributes:
        documents: by key, as `kept_key` shows it, relative to what was read.
        budget: what of them is kept.
    """

    documents: dict[str, Document]
    history: History
    budget: Budget


def read_prefix(
    etcd: Etcd,
    prefix: bytes,
    page_size: int,
    stopped: Callable[[], bool],
    bounds: Bounds = RELEASE,
) -> Listed:
    """Read all keys below a prefix, in pages, all at the first page's revision.

    Raises:
        CallFailed: RELIST if the revision was compacted while reading.
    """
    reading = Reading(etcd, min(page_size, bounds.page), stopped)
    budget = Budget(bounds)
    documents: dict[str, Document] = {}
    for kvs in reading.pages(KeyRange(prefix, prefix_end(prefix))):
        documents |= _documents(kvs, len(prefix), budget)
    return Listed(documents, _known(reading), budget)


def read_ranges(
    reading: Reading, ranges: Iterable[KeyRange], cut: int, bounds: Bounds
) -> dict[str, Document]:
    """Read several ranges at one revision; each has bounds of its own, so none crowds out another.

    Args:
        reading: that this belongs to.
        ranges: what to read.
        cut: bytes at the beginning of keys that are left out.
        bounds: of each range. One with more keys than they allow is in the answer by its prefix
            too, as a document that is refused.
    """
    documents: dict[str, Document] = {}
    for each in ranges:
        budget = Budget(bounds)
        found: dict[str, Document] = {}
        for kvs in reading.pages(each):
            found |= _documents(kvs, cut, budget)
            if len(found) > bounds.keys:
                reason = (
                    f"there are more than {bounds.keys} keys below it; those after {max(found)} "
                    "are not read; delete what is not needed"
                )
                name = each.key[cut:].decode()
                found[name] = Document(b"", _known(reading).revision, 0, reason)
                break
        documents |= found
    return documents


def _known(reading: Reading) -> History:
    if reading.history is None:
        raise CallFailed(Remedy.RETRY, "nothing was read")
    return reading.history


def _documents(kvs: Iterable[Any], cut: int, budget: Budget) -> dict[str, Document]:
    found: dict[str, Document] = {}
    for kv in kvs:
        key = kept_key(kv.key[cut:])
        found[key] = budget.take(key, kv.value, kv.mod_revision, kv.create_revision)
    return found


def history_holds(
    etcd: Etcd, prefix: bytes, documents: Mapping[str, Document], known: History, revision: int
) -> bool:
    """Say whether the store still has the history of which `documents` is the state at `revision`.

    One linearizable read of one key, at that revision: the newest document, or, when there are
    none, the first key below the prefix. A compacted or future revision is a no.
    """
    newest = max(
        (item for item in documents.items() if is_whole(item[0])),
        key=lambda item: (item[1].mod_revision, item[0]),
        default=None,
    )
    try:
        if newest is None:
            answer = etcd.range(prefix, prefix_end(prefix), revision=revision, limit=1)
        else:
            answer = etcd.range(prefix + newest[0].encode(), revision=revision)
    except CallFailed as failure:
        if failure.remedy is Remedy.RELIST:
            return False
        raise
    header = answer.header
    now = History(header.cluster_id, header.raft_term, header.revision)
    if not now.follows(known) or header.revision < revision:
        return False
    if newest is None:
        return not answer.kvs or bool(documents)
    known_as = newest[1]
    return [
        (b"" if known_as.refused else kv.value, kv.mod_revision, kv.create_revision)
        for kv in answer.kvs
    ] == [known_as[:3]]
