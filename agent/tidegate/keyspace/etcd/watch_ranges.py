# SPDX-License-Identifier: Apache-2.0
"""Follow a few keys and prefixes that belong together, and deliver them as of one revision.

Why a snapshot is right
-----------------------
A snapshot is one read of all ranges, in pages, all at the revision of the first one, which is
linearizable. So no snapshot has half of a transaction in it, however many ranges that wrote to.

What others write below one range cannot crowd out another: each is read by itself, within bounds of
its own (`bounds.STEERING`), and a document beyond them is refused by name. Of a range with too many
keys the first ones are read, and those that `needed` names, wherever they are.

The ranges have a watcher each, on one stream. etcd orders the events of one watcher, and not those
of several against each other, so between the events of one transaction there may be those of
others; applied one by one they would show states that never existed. Here an event only says that
there is something to read. That is enough to miss nothing:

* Watchers start at `_next`, the revision after the read. A write before it is in the read; a write
  after it brings an event, and the read that follows is linearizable, so it has that write.
* An event below `_next` is of a write that the last read has already.
* Each stream begins with a new read: what broke streams lost, what was compacted, and whether it is
  the same history do not matter then. If a read during a stream shows another history (a cluster
  that was restored or wiped), the stream is of the old one, and is given up.
* Against events that etcd itself loses there is the periodic read, as in `watch`.

It costs a read per burst of events, and the next waits as long as the last has taken, so it is for
what is small and changes seldom. A release is
neither: `watch` applies the events of its one prefix, which needs no read.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from tidegate.event_log import EventLog
from tidegate.keyspace.bounds import STEERING
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed, Remedy
from tidegate.keyspace.etcd.listing import History, Reading, read_ranges
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.watch_loop import WatchLoop, WatchState
from tidegate.keyspace.paths import key_range
from tidegate.model.values import Document, Snapshot

log = EventLog(__name__)


_LONGEST_PAUSE: Final = 1.0
"""Seconds that a write waits for at the most, however long reads take."""


class RangesWatch(WatchLoop):
    """Follows several ranges below one prefix on a thread of its own, from `start` to `stop`."""

    def __init__(
        self,
        settings: EtcdSettings,
        prefix: str,
        below: Sequence[str],
        deliver: Callable[[Snapshot], None],
        on_state: Callable[[WatchState], None] = lambda _state: None,
        needed: Callable[[Mapping[str, Document]], Sequence[str]] = lambda _documents: (),
        beside: Callable[[Etcd], Mapping[str, Document]] = lambda _etcd: {},
    ) -> None:
        """Prepare it; nothing is sent yet.

        Args:
            settings: where etcd is.
            prefix: keys of snapshots are relative to it.
            below: what to follow, relative to it: with a slash at its end a prefix, else one key.
            deliver: gets each snapshot whose documents differ from the last, on the watch's thread.
            on_state: gets each new state, on the watch's thread.
            needed: names keys, relative to the prefix and below one of the ranges, that are read in
                any case; gets what has been read.
            beside: reads what belongs to each snapshot and is not watched.

        Raises:
            ConfigError: the settings cannot be used.
        """
        ranges = [key_range(prefix + each) for each in below]
        super().__init__(settings, ranges, on_state, "tidegate-steering")
        self._cut = len(prefix.encode())
        self._prefix = prefix
        self._needed = needed
        self._beside = beside
        self._pause = 0.0
        self._deliver = deliver
        self._delivered: Snapshot | None = None

    def _list(self) -> None:
        begun = time.monotonic()
        documents, history = self._retry(self._read)
        self._pause = min(time.monotonic() - begun, _LONGEST_PAUSE)
        if self._history is not None and not history.follows(self._history):
            log.warning(
                "etcd_history_changed",
                revision=history.revision,
                previous=self._history.revision,
                reason="etcd was restored from a backup or replaced; steering keys are read anew",
            )
        self._history = history
        self._next = history.revision + 1
        self._list_at = time.monotonic() + self._settings.relist_interval
        last = self._delivered
        if last is None or history.revision < last.revision or documents != last.documents:
            snapshot = Snapshot(history.revision, MappingProxyType(documents))
            self._deliver(snapshot)
            self._delivered = snapshot  # only now: if that failed, the next read brings it again

    def _read(self) -> tuple[dict[str, Document], History]:
        reading = Reading(self._etcd, self._settings.page_size, self._stop.is_set)
        documents = read_ranges(reading, self._ranges, self._cut, STEERING)
        missing = [key for key in self._needed(documents) if key not in documents]
        if missing:
            keys = [key_range(self._prefix + key) for key in missing]
            documents |= read_ranges(reading, keys, self._cut, STEERING)
        if reading.history is None:
            raise CallFailed(Remedy.RETRY, "nothing was read")
        documents |= self._beside(self._etcd)
        return documents, reading.history

    def _check_history(self) -> bool:
        return False  # a new read costs what asking for the history would

    def _take(self, messages: list[Any]) -> None:
        for message in messages:
            self._check(message)
        if all(event.kv.mod_revision < self._next for m in messages for event in m.events):
            return
        before = self._history
        self._stop.wait(self._pause)
        self._list()
        self._report("connected", "")  # the read may have been tried again, and have said so
        self._breaks = 0
        if before is None or self._history is None or not self._history.follows(before):
            raise CallFailed(Remedy.RELIST, "etcd's history has changed under a watch")
