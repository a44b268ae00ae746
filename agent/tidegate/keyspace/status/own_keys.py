# SPDX-License-Identifier: Apache-2.0
"""A host's own keys, as it reads them: has somebody else written or deleted any of them?

Who writes knows the revision of each of its writes, so it can tell its own from any other, also one
that says the same under no lease or another. What is read comes later than what is written, so only
a reading that is as new as the last write says anything.

Whoever goes on writing over them is answered more and more slowly, so that two who fight leave etcd
alone: after 1 s, 2 s, and so on up to 30 s, until a minute has passed in peace.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from tidegate.event_log import EventLog

log = EventLog(__name__)

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
_PEACE: Final = 60.0
_SHOWN: Final = 3


class OwnKeys(NamedTuple):
    """What is below a host's own prefix at a revision: the revision of each key's last write."""

    revision: int
    keys: Mapping[str, int]


class OwnKeyWatch:
    """Compares what a host wrote with what is read; on the writer's thread.

    Args:
        clock: monotonic, s.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written: dict[str, int] = {}
        self._latest = 0
        self._is_first = True
        self._pause = 0.0
        self._last = float("-inf")
        self.overwritten = 0
        """Keys that somebody else had written or deleted, since the start."""
        self._example = ""

    @property
    def problem(self) -> str:
        """What somebody else did to them lately, as a sentence; empty if nobody did anything."""
        if not self._example or self._clock() - self._last > _PEACE:
            return ""
        return (
            f"somebody else writes or deletes this host's verdicts, {self._example} last: they are "
            "written anew, and not believed; see who may write below its key (deploy/etcd)"
        )

    def forget(self) -> None:
        """Begin anew, as after the loss of a lease."""
        self._written.clear()
        self._latest = 0
        self._is_first = True

    def wrote(self, keys: Mapping[str, bytes | None], revision: int) -> None:
        """Take note of a transaction of the writer's own, and of which of these keys are in it."""
        if not keys:
            return
        self._latest = revision
        for key, value in keys.items():
            if value is None:
                self._written.pop(key, None)
            else:
                self._written[key] = revision

    def due(self) -> float:
        """Return the monotonic second from which what is found may be answered."""
        return self._last + self._pause

    def foreign(self, read: OwnKeys) -> list[str] | None:
        """Return the keys that are not as the writer left them; None if that cannot be said yet."""
        if read.revision < self._latest or self._clock() < self.due():
            return None
        found = [key for key, revision in self._written.items() if read.keys.get(key) != revision]
        return found + [key for key in read.keys if key not in self._written]

    def answer(self, foreign: Sequence[str]) -> None:
        """Take note that these are put right now, and name them.

        Those that are there when it is first looked are left from before: nobody's doing.
        """
        is_first, self._is_first = self._is_first, False
        if is_first or not foreign:
            return
        now = self._clock()
        is_fight = now - self._last <= _PEACE
        self._pause = min(2 * self._pause, _LONGEST_PAUSE) if is_fight else _FIRST_PAUSE
        self._last, self._example = now, foreign[0]
        self.overwritten += len(foreign)
        log.warning("verdicts_overwritten", keys=foreign[:_SHOWN], total=len(foreign))
