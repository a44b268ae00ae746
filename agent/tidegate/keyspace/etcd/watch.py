# SPDX-License-Identifier: Apache-2.0
"""Follow a prefix of etcd: list it, watch it, and deliver consistent snapshots, for ever.

Why a snapshot is right
-----------------------
`_documents` is the prefix at revision `_next - 1`, exactly. Each step keeps that true:

* A list is read in pages, all at the revision of the first page, so it is one moment of the store.
  It sets `_documents` and `_next` together.
* A stream starts at `_next`, and etcd sends every event from there on, in order, all events of one
  revision in one message. A message too large for that comes in fragments, which are gathered until
  the last one: half a transaction is never applied. Revisions below `_next` are dropped (a stream
  may repeat them). `_next` becomes the last event's revision plus one, and never the revision of a
  header or of a progress message: etcd 3.4 sends progress out of step with events.
* When a stream breaks, nothing is lost: events are history, and the next stream asks for it from
  `_next`. That holds only while it is the same history, so before each stream but the first the
  store is asked, linearizably: same cluster, a raft term that did not go back, a revision that
  reaches ours, and our newest document unchanged at our revision. A cluster that was wiped or
  restored from a backup can keep its cluster id and can even have overtaken our revision; it does
  not have the same newest document there. If any of it fails, or the history was compacted, or
  five streams in a row break at one revision, or one was given up for silence, the loop lists.
* etcd 3.4.23 was seen to lose events after a compaction. So a list every few minutes repairs what
  no check can see, and says so when it finds that an event was lost.

Why it does not stop is argued in `watch_loop`.

`deliver` is called on this thread, in order, with each snapshot that differs from the last; it
should be quick. Events that have arrived together become one snapshot.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from tidegate.event_log import EventLog
from tidegate.keyspace import changed_keys
from tidegate.keyspace.bounds import RELEASE, Bounds, Budget, kept_key
from tidegate.keyspace.etcd.listing import history_holds, read_prefix
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.watch_loop import Next, WatchLoop, WatchState
from tidegate.keyspace.paths import key_range
from tidegate.model.grouped import Edits, sharing
from tidegate.model.received_writes import NO_WRITES, KeyWrite, collect, merge
from tidegate.model.values import Document, Documents, Snapshot

log = EventLog(__name__)


_UNTIL_LIST: Final = 10.0
"""Seconds from a write to a release that is too large until it is listed, for all hosts to agree
which of its documents they refuse."""


class Watch(WatchLoop):
    """Follows one prefix on a thread of its own, from `start` to `stop`."""

    def __init__(
        self,
        settings: EtcdSettings,
        prefix: str,
        deliver: Callable[[Snapshot], None],
        on_state: Callable[[WatchState], None] = lambda _state: None,
        bounds: Bounds = RELEASE,
    ) -> None:
        """Prepare it; nothing is sent yet.

        Args:
            settings: where etcd is.
            prefix: what to follow, with its last slash; keys of snapshots are relative to it.
            deliver: gets each new snapshot, on the watch's thread.
            on_state: gets each new state, on the watch's thread.
            bounds: of what is kept.

        Raises:
            ConfigError: the settings cannot be used.
        """
        super().__init__(settings, (key_range(prefix),), on_state, "tidegate-watch")
        self._prefix = prefix.encode()
        self._deliver = deliver
        self._documents: Edits[str, Document] = Edits(Documents())
        self._bounds = bounds
        self._budget = Budget(bounds)
        self._delivered: Snapshot | None = None
        self._gathered: list[Any] = []
        self._arrived = NO_WRITES

    def _list(self) -> None:
        """Read the whole prefix, and deliver it if it differs from what was delivered."""
        read = partial(
            read_prefix,
            self._etcd,
            self._prefix,
            self._settings.page_size,
            self._stop.is_set,
            self._bounds,
        )
        documents, history, budget = self._retry(read)
        if self._history is not None:
            if history.follows(self._history) and history.revision >= self._next - 1:
                self._report_lost(documents)
            else:
                log.warning(
                    "etcd_history_changed",
                    revision=history.revision,
                    previous=self._next - 1,
                    reason="etcd was restored from a backup or replaced; documents are read anew",
                )
        last = self._delivered
        listed = Documents(documents)
        if last is not None:
            listed = sharing(listed, Documents.of(last.documents))
        self._documents, self._budget = Edits(listed), budget
        self._history = history
        self._next = history.revision + 1
        self._list_at = time.monotonic() + self._settings.relist_interval
        if last is None or history.revision < last.revision or listed != last.documents:
            if last is not None:
                self._arrived = changed_keys.between(
                    last.documents, listed, history.revision, time.time_ns()
                )
            self._deliver_snapshot()

    def _check_history(self) -> bool:
        if self._history is None:
            return False
        return history_holds(
            self._etcd, self._prefix, self._documents, self._history, self._next - 1
        )

    def _watch(self) -> Next:
        self._gathered = []  # what a broken stream has left unfinished
        return super()._watch()

    def _take(self, messages: list[Any]) -> None:
        before = self._next
        try:
            self._absorb(messages)
        finally:
            if self._next != before:  # whole revisions, whatever came after them
                self._breaks = 0
                self._deliver_snapshot()

    def _absorb(self, messages: list[Any]) -> None:
        """Apply messages in order; raise what ends the stream."""
        for message in messages:
            self._check(message)
            self._gathered.extend(message.events)
            if not message.fragment:
                self._apply()

    def _apply(self) -> None:
        """Apply gathered events: whole revisions, each once."""
        events, self._gathered = self._gathered, []
        start = self._next
        cut = len(self._prefix)
        found: list[KeyWrite] = []
        for event in events:
            revision = event.kv.mod_revision
            if revision < start:
                continue
            key = kept_key(event.kv.key[cut:])
            self._budget.give_back(key, self._documents.pop(key, None))
            if event.type == event.DELETE:
                found.append(KeyWrite(key, revision))
            else:
                kept = self._budget.take(key, event.kv.value, revision, event.kv.create_revision)
                self._documents[key] = kept
                found.append(KeyWrite(key, revision, changed_keys.traceparent_of(kept.value)))
            self._next = revision + 1
        self._arrived = merge(self._arrived, collect(found, time.time_ns()))
        if self._budget.is_exceeded:  # which documents are refused must not depend on their order
            self._list_at = min(self._list_at, time.monotonic() + _UNTIL_LIST)

    def _deliver_snapshot(self) -> None:
        documents = Documents.of(self._documents.frozen())
        self._documents = Edits(documents)
        snapshot = Snapshot(self._next - 1, documents, self._arrived)
        self._deliver(snapshot)
        self._arrived = NO_WRITES
        self._delivered = snapshot  # only now: if that failed, the next list delivers it again

    def _report_lost(self, listed: Mapping[str, Document]) -> None:
        """Log writes that the list shows and the streams should have brought."""
        lost = [
            key
            for key, document in listed.items()
            if document.mod_revision < self._next and self._documents.get(key) != document
        ]
        if lost:
            log.warning("etcd_events_lost", keys=len(lost), first=min(lost))
