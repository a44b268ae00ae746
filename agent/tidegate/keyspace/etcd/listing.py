# SPDX-License-Identifier: Apache-2.0
"""Read a prefix or ranges at one revision, and check that the history is still the one we know.

Nothing here retries or keeps state.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed, Remedy
from tidegate.keyspace.paths import KeyRange, prefix_end
from tidegate.model.values import Document


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


def read_prefix(
    etcd: Etcd, prefix: bytes, page_size: int, stopped: Callable[[], bool]
) -> tuple[dict[str, Document], History]:
    r"""Read all keys below a prefix, in pages, all at the first page's revision.

    Returns:
        Documents by key relative to the prefix (a byte that is not UTF-8 appears as \xNN), and the
        history that they are of.

    Raises:
        CallFailed: RELIST if the revision was compacted while reading.
    """
    documents: dict[str, Document] = {}
    end = prefix_end(prefix)
    start, history = prefix, None
    while not stopped():
        try:
            page = etcd.range(
                start, end, revision=history.revision if history else 0, limit=page_size
            )
        except CallFailed as failure:
            if not failure.too_large or page_size == 1:
                raise
            page_size = max(1, page_size // 8)
            continue
        header = page.header
        if history is None:
            history = History(header.cluster_id, header.raft_term, header.revision)
        elif header.cluster_id != history.cluster:
            raise CallFailed(Remedy.RELIST, "the etcd cluster was replaced during a list")
        documents |= _documents(page.kvs, len(prefix))
        if not page.more:
            return documents, history
        start = page.kvs[-1].key + b"\0"
    raise CallFailed(Remedy.RETRY, "the list was stopped")


def read_ranges(
    etcd: Etcd, ranges: Sequence[KeyRange], cut: int
) -> tuple[dict[str, Document], History]:
    """Read several ranges at one revision; for few keys, since it is one answer.

    Args:
        etcd: the connection.
        ranges: what to read.
        cut: bytes at the beginning of keys that are left out.
    """
    answer = etcd.read_together(ranges)
    documents: dict[str, Document] = {}
    for response in answer.responses:
        documents |= _documents(response.response_range.kvs, cut)
    header = answer.header
    return documents, History(header.cluster_id, header.raft_term, header.revision)


def _documents(kvs: Iterable[Any], cut: int) -> dict[str, Document]:
    return {
        kv.key[cut:].decode("utf-8", "backslashreplace"): Document(
            kv.value, kv.mod_revision, kv.create_revision
        )
        for kv in kvs
    }


def history_holds(
    etcd: Etcd, prefix: bytes, documents: dict[str, Document], known: History, revision: int
) -> bool:
    """Say whether the store still has the history of which `documents` is the state at `revision`.

    One linearizable read of one key, at that revision: the newest document, or, when there are
    none, the first key below the prefix. A compacted or future revision is a no.
    """
    # A key with a backslash may stand for bytes that are not UTF-8; it cannot be asked for.
    newest = max(
        (item for item in documents.items() if "\\" not in item[0]),
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
    found = [Document(kv.value, kv.mod_revision, kv.create_revision) for kv in answer.kvs]
    if newest is None:
        return not found or bool(documents)
    return found == [newest[1]]
