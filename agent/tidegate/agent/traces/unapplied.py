# SPDX-License-Identifier: Apache-2.0
"""Writes that the agent has seen and that are not in force yet.

A write that a guard or the kernel refused, or that a frozen host leaves out, may come into force
later, for whatever reason. Its trace then gets a second span that says so.
"""

from tidegate.agent.traces import change_facts as facts
from tidegate.model.received_writes import NO_WRITES, ReceivedWrites, merge

_LATER = ("guard", "build", "publish", "frozen")
"""Types of errors after which a write may still come into force."""


class UnappliedWrites:
    """What has arrived and what of it waits, for one change after another."""

    def __init__(self) -> None:
        self._arrived = NO_WRITES
        self._waiting = NO_WRITES

    def received(self, writes: ReceivedWrites) -> None:
        """Add writes that the next change works on."""
        self._arrived = merge(self._arrived, writes)

    @property
    def all(self) -> ReceivedWrites:
        """Everything that is not in force: what waits, then what has arrived."""
        return merge(self._waiting, self._arrived)

    def take(self) -> ReceivedWrites:
        """Return what has arrived for the change that is over, and begin anew."""
        arrived, self._arrived = self._arrived, NO_WRITES
        return arrived

    def with_waiting(self, arrived: ReceivedWrites) -> ReceivedWrites:
        """Return what waits together with what has arrived."""
        return merge(self._waiting, arrived)

    def settle(self, arrived: ReceivedWrites, result: facts.Result, *, is_frozen: bool) -> None:
        """Take note of how a change ended: its writes are in force, or wait."""
        if result.outcome in facts.IN_FORCE and not is_frozen:
            self._waiting = NO_WRITES
        elif result.error_type in _LATER:
            self._waiting = merge(self._waiting, arrived)
