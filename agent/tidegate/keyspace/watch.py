# SPDX-License-Identifier: Apache-2.0
"""Follow a prefix of etcd: list it, watch it, and hand over consistent snapshots, for ever.

Why what is handed over is right
--------------------------------
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
  five streams in a row break at one revision, the loop lists.
* etcd 3.4.23 was seen to lose events after a compaction. So a list every few minutes repairs what
  no check can see, and says so when it finds that an event was lost.

Why it does not stop: a frozen peer sends neither data nor an error, so silence is measured: an idle
stream is asked for progress, which a live etcd answers in a millisecond. Every call has a deadline.
A failure is one of four verdicts; all but "fatal" are tried again with growing random pauses. Fatal
ones (no permission, wrong password) are reported and tried again slowly, since the person who mends
it at etcd should not have to visit every host. Even a fault of our own is reported, and starts
the loop over from a list.

`deliver` is called on this thread, in order, with each snapshot that differs from the last; it
should be quick. Events that have arrived together become one snapshot.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Literal

from tidegate.keyspace.client import Etcd
from tidegate.keyspace.failures import CallFailed, Verdict, from_cancel
from tidegate.keyspace.listing import History, history_holds, read_prefix
from tidegate.keyspace.retry import REBUILD_EVERY, rebuild, until_done
from tidegate.keyspace.settings import EtcdSettings
from tidegate.keyspace.stream import WatchStream
from tidegate.model.values import Document, Snapshot

log = logging.getLogger(__name__)

_BREAKS_BEFORE_LIST: Final = 5
_AGAIN: Final = frozenset({Verdict.TRANSIENT, Verdict.RELIST, Verdict.LOGIN})

Phase = Literal["starting", "connected", "reconnecting", "stale", "fatal"]


@dataclass(frozen=True, slots=True)
class WatchState:
    """How the watch is doing.

    Attributes:
        phase: `connected`: snapshots are current. `reconnecting`: contact was lost a moment ago.
            `stale`: there has been none for longer than the settings allow. `fatal`: etcd refuses
            us in a way that a person has to mend; it is tried again slowly.
        reason: a sentence; empty when connected.
        since: wall-clock second at which the phase began; for `stale` that of the last contact.
    """

    phase: Phase
    reason: str
    since: float


class _Next(Enum):
    LIST = "list"
    RESUME = "resume"


class Watch:
    """Follows one prefix on a thread of its own, from `start` to `stop`."""

    def __init__(
        self,
        settings: EtcdSettings,
        prefix: str,
        deliver: Callable[[Snapshot], None],
        on_state: Callable[[WatchState], None] = lambda _state: None,
    ) -> None:
        """Prepare it; nothing is sent yet.

        Args:
            settings: where etcd is.
            prefix: what to follow, with its last slash; keys of snapshots are relative to it.
            deliver: gets each new snapshot, on the watch's thread.
            on_state: gets each new state, on the watch's thread.

        Raises:
            ConfigError: the settings cannot be used.
        """
        self._settings = settings
        self._prefix = prefix.encode()
        self._deliver = deliver
        self._on_state = on_state
        self._etcd = Etcd(settings)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tidegate-watch", daemon=True)
        self._state = WatchState("starting", "Nothing has been read from etcd yet.", time.time())
        self._stream: WatchStream | None = None
        self._documents: dict[str, Document] = {}
        self._history: History | None = None
        self._next = 0
        self._delivered: Snapshot | None = None
        self._gathered: list[Any] = []
        self._breaks = 0
        self._list_at = 0.0

    @property
    def state(self) -> WatchState:
        """The current state."""
        return self._state

    @property
    def last_contact(self) -> float:
        """Monotonic second of etcd's last answer; at first that of this object's making."""
        return self._etcd.last_contact

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """End the thread; return whether it ended within `timeout` seconds. May be repeated."""
        self._stop.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()
        self._etcd.close()  # ends calls under way
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        reason = ""
        while not self._stop.is_set():
            try:
                self._follow()
            except CallFailed as failure:
                reason = failure.reason
            except Exception as error:
                reason = f"A fault in the agent stopped the watch: {error!r}."
                if not self._stop.is_set():
                    log.exception("the watch failed and starts over")
            if not self._stop.is_set():
                self._report("fatal", reason)
                self._stop.wait(self._settings.fatal_retry)

    def _follow(self) -> None:
        """List and watch until stopped; raises what only a person can mend."""
        step = _Next.LIST
        while not self._stop.is_set():
            if step is _Next.LIST:
                self._list()
            elif not self._retry(self._check_history):
                step = _Next.LIST
                continue
            self._report("connected", "")
            try:
                step = self._watch()
            except CallFailed as failure:
                if failure.verdict is Verdict.FATAL:
                    raise
                step = self._broken(failure)

    def _broken(self, failure: CallFailed) -> _Next:
        """Decide what follows a stream's failure, after a pause."""
        if self._stop.is_set():
            return _Next.RESUME
        self._breaks += 1
        self._note(failure)
        if failure.verdict is Verdict.LOGIN:
            self._retry(self._etcd.login)
        if self._breaks % REBUILD_EVERY == 0:
            rebuild(self._etcd, self._note)
        ceiling = min(0.1 * 2**self._breaks, self._settings.backoff_max)
        self._stop.wait(random.uniform(0, ceiling))  # noqa: S311 - jitter, not a secret
        lost = failure.verdict in {Verdict.RELIST, Verdict.LOGIN}
        return _Next.LIST if lost or self._breaks % _BREAKS_BEFORE_LIST == 0 else _Next.RESUME

    def _list(self) -> None:
        """Read the whole prefix and hand it over if it differs from what was handed over."""
        read = partial(
            read_prefix, self._etcd, self._prefix, self._settings.page_size, self._stop.is_set
        )
        documents, history = self._retry(read)
        if self._history is not None and history.follows(self._history):
            self._report_lost(documents)
        self._documents = documents
        self._history = history
        self._next = history.revision + 1
        self._list_at = time.monotonic() + self._settings.relist_interval
        last = self._delivered
        if last is None or history.revision < last.revision or documents != last.documents:
            self._hand_over()

    def _check_history(self) -> bool:
        if self._history is None:
            return False
        return history_holds(
            self._etcd, self._prefix, self._documents, self._history, self._next - 1
        )

    def _watch(self) -> _Next:
        """Follow one stream until it is time to list, or it fails."""
        self._gathered = []
        opened = time.monotonic()
        self._stream = stream = WatchStream(
            self._etcd,
            self._prefix,
            self._next,
            idle_probe=self._settings.idle_probe,
            silence_limit=self._settings.silence_limit,
        )
        try:
            while not self._stop.is_set():
                messages = stream.batch(self._list_at)
                if not messages:
                    return _Next.LIST  # the time for the periodic list has come
                before = self._next
                try:
                    self._absorb(messages)
                finally:
                    if self._next != before:  # whole revisions, whatever came after them
                        self._breaks = 0
                        self._hand_over()
            return _Next.RESUME
        finally:
            stream.cancel()
            self._stream = None
            if time.monotonic() - opened > self._settings.silence_limit:
                self._breaks = 0  # it was a good stream: what broke it is a new trouble

    def _absorb(self, messages: list[Any]) -> None:
        """Apply messages in order; raise what ends the stream."""
        for message in messages:
            if self._history is None or message.header.cluster_id != self._history.cluster:
                raise CallFailed(Verdict.RELIST, "Another etcd cluster answers a watch.")
            if message.compact_revision:
                raise CallFailed(
                    Verdict.RELIST, f"etcd compacted its history up to {message.compact_revision}."
                )
            if message.canceled:
                raise from_cancel(message.cancel_reason, has_user=self._etcd.has_user)
            self._gathered.extend(message.events)
            if not message.fragment:
                self._apply()

    def _apply(self) -> None:
        """Apply gathered events: whole revisions, each once."""
        events, self._gathered = self._gathered, []
        start = self._next
        cut = len(self._prefix)
        for event in events:
            revision = event.kv.mod_revision
            if revision < start:
                continue
            key = event.kv.key[cut:].decode("utf-8", "backslashreplace")
            if event.type == event.DELETE:
                self._documents.pop(key, None)
            else:
                self._documents[key] = Document(event.kv.value, revision, event.kv.create_revision)
            self._next = revision + 1

    def _hand_over(self) -> None:
        snapshot = Snapshot(self._next - 1, MappingProxyType(dict(self._documents)))
        self._deliver(snapshot)
        self._delivered = snapshot  # only now: if that failed, the next list hands it over again

    def _report_lost(self, listed: dict[str, Document]) -> None:
        """Say so if the list shows a write that the streams should have brought, and did not."""
        lost = [
            key
            for key, document in listed.items()
            if document.mod_revision < self._next and self._documents.get(key) != document
        ]
        if lost:
            log.warning("etcd's watch lost events of %d keys, first %s", len(lost), min(lost))

    def _retry(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - passes the call's result on
        return until_done(
            call, self._etcd, self._stop, self._settings.backoff_max, self._note, again=_AGAIN
        )

    def _note(self, failure: CallFailed) -> None:
        """Report a failure that is being retried, as stale once contact is long gone."""
        silence = time.monotonic() - self._etcd.last_contact
        if silence < self._settings.stale_after:
            self._report("reconnecting", failure.reason)
        else:
            self._report("stale", failure.reason, time.time() - silence)

    def _report(self, phase: Phase, reason: str, since: float | None = None) -> None:
        old = self._state
        if phase == old.phase:
            since = old.since
        self._state = WatchState(phase, reason, time.time() if since is None else since)
        if (old.phase, old.reason) != (phase, reason):
            log.log(
                logging.ERROR if phase == "fatal" else logging.INFO, "etcd: %s %s", phase, reason
            )
            try:
                self._on_state(self._state)
            except Exception:
                log.exception("the receiver of the watch's state failed")
