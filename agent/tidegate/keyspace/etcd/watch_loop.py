# SPDX-License-Identifier: Apache-2.0
"""The loop that all watches share: a thread that lists and follows, and does not give up.

Why it does not stop: a frozen peer sends neither data nor an error, so silence is measured: an idle
stream is asked for progress, which a live etcd answers in a millisecond. Every call has a deadline.
A failure has one of four remedies; all but those that need an operator are tried again with growing
random pauses. Those (no permission, wrong password) are reported as `fatal` and tried again slowly,
since whoever repairs it at etcd should not have to visit every host. Even an error of our own is
reported, and starts the loop over from a list.

A stream that was given up for silence is a broken one, and a list follows it, not another stream
from the same revision: etcd spends seconds, or minutes on a busy machine, on cutting a revision
with tens of thousands of events into messages (the work grows with their square). It is silent
meanwhile, and would begin anew with each stream. A list has the result in pages within a second.
Every message counts as a sign of life, a fragment of a revision too, so a long answer is waited for
while it comes.

Subclasses decide what is listed and what a stream's messages mean, and argue why that is right.
"""

import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal

from tidegate.event_log import EventLog
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed, Remedy, from_cancel
from tidegate.keyspace.etcd.retry import REBUILD_EVERY, rebuild, until_done
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.stream import WatchStream
from tidegate.keyspace.paths import KeyRange

if TYPE_CHECKING:
    from tidegate.keyspace.etcd.listing import History

log = EventLog(__name__)

_BREAKS_BEFORE_LIST: Final = 5
_AGAIN: Final = frozenset({Remedy.RETRY, Remedy.RELIST, Remedy.LOGIN})

Phase = Literal["starting", "connected", "reconnecting", "stale", "fatal"]


@dataclass(frozen=True, slots=True)
class WatchState:
    """How a watch is doing.

    Attributes:
        phase: `connected`: snapshots are current. `reconnecting`: contact was lost a moment ago.
            `stale`: there has been none for longer than the settings allow. `fatal`: etcd refuses
            us in a way that a person has to repair; it is tried again slowly.
        reason: why; empty when connected.
        since: monotonic second at which the phase began; for `stale` that of the last contact.
    """

    phase: Phase
    reason: str
    since: float


class Next(Enum):
    """What follows the end of a stream."""

    LIST = "list"
    RESUME = "resume"


class WatchLoop(ABC):
    """Follows ranges of keys on a thread of its own, from `start` to `stop`."""

    def __init__(
        self,
        settings: EtcdSettings,
        ranges: Sequence[KeyRange],
        on_state: Callable[[WatchState], None],
        name: str,
    ) -> None:
        """Prepare it; nothing is sent yet.

        Raises:
            ConfigError: the settings cannot be used.
        """
        self._settings = settings
        self._ranges = tuple(ranges)
        self._on_state = on_state
        self._etcd = Etcd(settings)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._state = WatchState(
            "starting", "nothing has been read from etcd yet", time.monotonic()
        )
        self._stream: WatchStream | None = None
        self._history: History | None = None
        self._next = 0
        self._breaks = 0
        self._list_at = 0.0

    @abstractmethod
    def _list(self) -> None:
        """Read everything, and deliver it if it is new; set `_history`, `_next`, `_list_at`."""

    @abstractmethod
    def _check_history(self) -> bool:
        """Say whether a stream may resume at `_next` without a list."""

    @abstractmethod
    def _take(self, messages: list[Any]) -> None:
        """Process a stream's messages, in order; raise what ends the stream."""

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
                reason = f"an error in the agent stopped the watch: {error!r}"
                if not self._stop.is_set():
                    log.exception("etcd_watch_crashed")
            if not self._stop.is_set():
                self._report("fatal", reason)
                self._stop.wait(self._settings.fatal_retry)

    def _follow(self) -> None:
        """List and watch until stopped; raise what only a person can repair."""
        step = Next.LIST
        while not self._stop.is_set():
            if step is Next.LIST:
                self._list()
            elif not self._retry(self._check_history):
                step = Next.LIST
                continue
            self._report("connected", "")
            try:
                step = self._watch()
            except CallFailed as failure:
                if failure.remedy is Remedy.OPERATOR:
                    raise
                step = self._broken(failure)

    def _broken(self, failure: CallFailed) -> Next:
        """Decide what follows a stream's failure, after a pause."""
        if self._stop.is_set():
            return Next.RESUME
        self._breaks += 1
        self._note(failure)
        if failure.remedy is Remedy.LOGIN:
            self._retry(self._etcd.login)
        if self._breaks % REBUILD_EVERY == 0:
            rebuild(self._etcd, self._note)
        ceiling = min(0.1 * 2**self._breaks, self._settings.backoff_max)
        self._stop.wait(random.uniform(0, ceiling))  # noqa: S311 - jitter, not a secret
        lost = failure.remedy in {Remedy.RELIST, Remedy.LOGIN}
        return Next.LIST if lost or self._breaks % _BREAKS_BEFORE_LIST == 0 else Next.RESUME

    def _watch(self) -> Next:
        """Follow one stream until it is time to list, or it fails."""
        opened = time.monotonic()
        self._stream = stream = WatchStream(
            self._etcd,
            self._ranges,
            self._next,
            idle_probe=self._settings.idle_probe,
            silence_limit=self._settings.silence_limit,
        )
        try:
            while not self._stop.is_set():
                messages = stream.batch(self._list_at)
                if not messages:
                    return Next.LIST  # the time for the periodic list has come
                self._take(messages)
            return Next.RESUME
        finally:
            stream.cancel()
            self._stream = None
            if not stream.silent and time.monotonic() - opened > self._settings.silence_limit:
                self._breaks = 0  # it was a good stream: what broke it is a new failure

    def _check(self, message: Any) -> None:  # noqa: ANN401 - a run-time message class
        """Raise the failure if a message ends its stream."""
        if self._history is None or message.header.cluster_id != self._history.cluster:
            raise CallFailed(Remedy.RELIST, "another etcd cluster answers the watch")
        if message.compact_revision:
            raise CallFailed(
                Remedy.RELIST, f"etcd compacted its history up to {message.compact_revision}"
            )
        if message.canceled:
            raise from_cancel(message.cancel_reason, has_user=self._etcd.has_user)

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
            self._report("stale", failure.reason, self._etcd.last_contact)

    def _report(self, phase: Phase, reason: str, since: float | None = None) -> None:
        old = self._state
        if phase == old.phase:
            since = old.since
        self._state = WatchState(phase, reason, time.monotonic() if since is None else since)
        if (old.phase, old.reason) != (phase, reason):
            level = logging.ERROR if phase == "fatal" else logging.INFO
            log.log(level, "etcd", phase=phase, reason=reason)
            try:
                self._on_state(self._state)
            except Exception:
                log.exception("etcd_state_not_taken")
