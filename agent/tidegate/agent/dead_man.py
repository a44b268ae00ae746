# SPDX-License-Identifier: Apache-2.0
"""The last resort: a change of VIPs after which etcd is out of reach is taken back.

Like `commit confirmed` of routers. A VIP may take packets that the host needs itself, in ways that
no check of documents foresees; then nobody can tell the host to let go of it. So documents that
change VIPs are confirmed only when etcd has answered `seconds` after they came into force. If etcd
goes away before that, and stays away for PATIENCE, the host goes back to the last confirmed ones.

An outage of etcd that has nothing to do with the change looks the same to a host. It does no harm:
the host serves what it served some seconds before. To keep it so

* only a change of VIPs counts. One of backends or pools alone, such as a quarantine, stays;
* there is no way back to having no VIPs at all: a host that has just begun to serve goes on.

Once it has gone back the host holds. When etcd has been back for RETURN seconds the change is tried
once more, in case it was not to blame. If it is taken back a second time the host holds until there
are other documents, or an operator ends the hold. Nothing of this outlives the agent's process: a
new one begins with what is in force, and with one more try.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from tidegate.agent.outcome import Applied
from tidegate.agent.rollback_states import RollbackStates, State
from tidegate.model.generation import Generation

DEAD_MAN: Final = "dead man"
"""Whose freeze it is, among those that the reconciler keeps apart."""
PATIENCE: Final = 5.0
"""Seconds without an answer of etcd, longer than a member's restart or an election takes."""
RETURN: Final = 60.0
LOOK: Final = 1.0
"""Seconds between two looks while there is something to wait for."""


@dataclass(frozen=True)
class Contact:
    """How etcd is reached.

    Attributes:
        is_lost: calls and watches fail.
        last: monotonic second of its last answer.
        revision: of the documents that were last read.
    """

    is_lost: bool
    last: float
    revision: int


@dataclass(frozen=True)
class _Trial:
    """VIPs that came into force and are not confirmed yet."""

    number: int
    at: float


@dataclass(frozen=True)
class _TakenBack:
    """A change that was taken back.

    Attributes:
        revision: of its documents.
        tries: how often these were taken back.
        is_held: the host holds because of it.
        since: monotonic second since which etcd is back; None while it is away.
    """

    revision: int
    tries: int
    is_held: bool = True
    since: float | None = None


class DeadMan:
    """Judges at each turn of the loop; the loop does what it says.

    Args:
        seconds: after which an answer of etcd confirms a change; 0 turns all of this off.
        in_force: as it was adopted: confirmed.
        states: documents of the last generations.
        clock: monotonic, s.
    """

    def __init__(
        self,
        seconds: float,
        in_force: Generation,
        states: RollbackStates,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._states = states
        self._clock = clock
        self._confirmed = in_force.number
        self._vips = {name: placed.vip for name, placed in in_force.vips.items()}
        self._trials: tuple[_Trial, ...] = ()
        self._taken_back: _TakenBack | None = None

    def next_due(self) -> float | None:
        """Return the monotonic second at which it has to look again, or None."""
        is_held = self._taken_back is not None and self._taken_back.is_held
        return self._clock() + LOOK if self._trials or is_held else None

    def note(self, applied: Applied) -> None:
        """Take note of a generation that came into force."""
        vips = dict(applied.desired.vips)
        is_new, self._vips = vips != self._vips, vips
        number = applied.generation.number
        if self._seconds and is_new and applied.snapshot is not None:
            self._trials = (*self._trials, _Trial(number, self._clock()))
        elif not self._trials:
            self._confirmed = number

    def judge(self, contact: Contact) -> State | None:
        """Confirm what etcd has outlived; return what to go back to, if it is time for that."""
        outlived = [t for t in self._trials if contact.last >= t.at + self._seconds]
        if outlived:
            self._confirmed = outlived[-1].number
            self._trials = self._trials[len(outlived) :]
        is_gone = contact.is_lost and self._clock() >= contact.last + PATIENCE
        if not self._trials or not is_gone:
            return None
        target = self._states.find(self._confirmed)
        if target is not None and target.desired.vips not in ({}, self._vips):
            return target
        self._trials = ()  # nothing to go back to, or it is in force already
        return None

    def took_back(self, contact: Contact) -> str:
        """Hold from now on; return why, in words."""
        before, revision = self._taken_back, contact.revision
        tries = before.tries + 1 if before is not None and before.revision == revision else 1
        self._taken_back = _TakenBack(revision, tries)
        self._trials = ()
        ends = f"when etcd has been back for {RETURN:g} s" if tries == 1 else "for other documents"
        return (
            f"revision {revision} was taken back, as etcd was out of reach within "
            f"{self._seconds:g} s of its VIPs; held until `tidegate thaw`, or {ends}"
        )

    def ends_hold(self, contact: Contact, *, is_held: bool) -> bool:
        """Return whether a hold is to end now.

        Args:
            contact: with etcd.
            is_held: the host still holds; an operator may have ended it.
        """
        taken, now = self._taken_back, self._clock()
        if taken is None or not taken.is_held:
            return False
        since = None if contact.is_lost else now if taken.since is None else taken.since
        has_waited = since is not None and now >= since + RETURN
        ends = has_waited and (taken.tries == 1 or contact.revision != taken.revision)
        self._taken_back = replace(taken, is_held=is_held and not ends, since=since)
        return is_held and ends
