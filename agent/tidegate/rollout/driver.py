# SPDX-License-Identifier: Apache-2.0
"""Drive a rollout: read the fleet, ask the machine for the next step, make it in one transaction.

This decides nothing and keeps almost no state: that is in etcd, so another process can take over at
any moment. A driver ends when the rollout has, when somebody paused it, and when its document
names another driver.
"""

import getpass
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from tidegate.errors import KeyspaceError
from tidegate.keyspace.etcd.store import Store
from tidegate.keyspace.etcd.transaction import Conflict, Write
from tidegate.keyspace.paths import DRIVER_KEY, ROLLOUT_KEY
from tidegate.model.rollout import ENDED, RolloutDocument
from tidegate.rollout.checks import judge
from tidegate.rollout.fleet import KEYS, Seen, observe
from tidegate.rollout.machine import advance, unacknowledged
from tidegate.rollout.orders import Step, names, pause

Order = Callable[[Seen], Step]
"""An operator's order: a step made from what is seen; raises ConfigError if it is impossible."""

_POLL: Final = 1.0
_TRIES: Final = 20
"""Tries of an order whose transaction finds the rollout's document changed meanwhile."""


class End(NamedTuple):
    """How a driver ended, and the rollout's document then."""

    why: Literal["ended", "paused", "taken over"]
    document: RolloutDocument


def who() -> str:
    """Return user and host of this process, to show to others."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:150]


def driver_name() -> str:
    """Return a unique name for this process."""
    return f"{who()} pid {os.getpid()} {secrets.token_hex(4)}"


class Driver:
    """Drives a fleet's rollout in this process."""

    def __init__(
        self,
        store: Store,
        name: str,
        report: Callable[[str], None],
        poll: float = _POLL,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare it; nothing is read yet.

        Args:
            store: the fleet's keys.
            name: of this driver, as `driver_name` makes it.
            report: gets a line for people about each step, after it was made.
            poll: seconds between two reads of the fleet while there is nothing to do.
            clock: wall clock, s.
        """
        self._store = store
        self._name = name
        self._report = report
        self._poll = poll
        self._clock = clock
        self._since: Mapping[str, float] = {}
        self._last_line = ""
        self._pause = threading.Event()
        self._liveness = store.liveness_key(DRIVER_KEY, name)

    def order(self, order: Order) -> RolloutDocument:
        """Make the step that an operator ordered.

        Raises:
            ConfigError: what the order raises.
            KeyspaceError: etcd did not answer, or others kept writing.
        """
        for _ in range(_TRIES):
            seen = self._observe()
            step = order(seen)
            conflict = self._make(step, seen)
            if conflict is None:
                return step.document
        raise KeyspaceError(f"{conflict} (tried {_TRIES} times)")

    def run(self) -> End:
        """Make steps until there is an end.

        Raises:
            KeyspaceError: etcd did not answer, or the rollout's document is gone.
        """
        try:
            return self._steps()
        finally:
            self._liveness.delete()

    def _steps(self) -> End:
        while True:
            self._liveness.renew()
            seen = self._observe()
            document = current(seen)
            end = self._end(document)
            if end is not None:
                return end
            judgement = judge(document, seen, self._since, time.monotonic())
            self._since = judgement.since
            step = advance(document, seen, judgement.failure, self._clock())
            if step is None:
                self._report_once(_progress(document, seen))
                self._pause.wait(self._poll)
            else:
                conflict = self._make(step, seen)
                if conflict is not None and ROLLOUT_KEY not in conflict.found:
                    self._handle_conflict(conflict, document, seen)

    def _handle_conflict(self, conflict: Conflict, document: RolloutDocument, seen: Seen) -> None:
        """Pause after a conflict with somebody else's write, unless hosts are being put back."""
        if document.state in ("moving", "flipping"):
            reason = f"{conflict}; `resume` continues with that"
            self._make(pause(document, reason, self._clock()), seen)

    def _observe(self) -> Seen:
        return observe(self._store.read(*KEYS))

    def _end(self, document: RolloutDocument) -> End | None:
        if document.driver != self._name:
            return End("taken over", document)
        if document.state in ENDED:
            return End("ended", document)
        return End("paused", document) if document.paused else None

    def _make(self, step: Step, seen: Seen) -> Conflict | None:
        """Make a step as one transaction; None if it was made."""
        value = msgspec.json.encode(step.document)
        own = Write(ROLLOUT_KEY, value, seen.rollout_revision)
        done = self._store.commit([own, *step.writes])
        if isinstance(done, Conflict):
            return done
        for line in step.lines:
            self._report(line)
        self._last_line = ""
        return None

    def _report_once(self, line: str) -> None:
        if line and line != self._last_line:
            self._last_line = line
            self._report(line)


def current(seen: Seen) -> RolloutDocument:
    """Return the rollout's document.

    Raises:
        KeyspaceError: there is none.
    """
    if seen.rollout is None:
        raise KeyspaceError(
            f"there is no rollout in this fleet: the key {ROLLOUT_KEY} does not exist"
        )
    return seen.rollout


def _progress(document: RolloutDocument, seen: Seen) -> str:
    if document.state != "waiting":
        return ""
    return f"waiting for {names(host.name for host in unacknowledged(document, seen))}"
