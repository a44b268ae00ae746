# SPDX-License-Identifier: Apache-2.0
"""Keeps merged frames away from the program, or says why they come to it (merging.py)."""

from tidegate.dataplane.network import merging
from tidegate.dataplane.network.merging import Stack
from tidegate.errors import DataplaneError
from tidegate.event_log import EventLog

log = EventLog(__name__)


class MergeWatch:
    """What is merged on each interface.

    Args:
        turns_off: whether NICs that have the program are told not to merge.
    """

    def __init__(self, *, turns_off: bool) -> None:
        self._turns_off = turns_off
        self._found: dict[str, str] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each interface to which merged frames may come."""
        return tuple(filter(None, self._found.values()))

    def refuse_generic(self, stack: Stack) -> None:
        """Refuse generic mode where the program would get merged frames.

        Only for a program that is new there: one that forwards is worse taken away than kept.

        Raises:
            DataplaneError: with what to do.
        """
        self._turn_off(stack, "generic")
        found = merging.mergers(stack, "generic")
        if found:
            raise DataplaneError(merging.refusal(stack.device.name, found))

    def look(self, stack: Stack, mode: str) -> None:
        """Turn off what the NIC merges, if that is ours to do; take note of what is left."""
        self._turn_off(stack, mode)
        name, found = stack.device.name, merging.sentence(stack, mode)
        if found and found != self._found.get(name):
            log.warning("merged_frames", interface=name, reason=found)
        self._found[name] = found

    def forget(self, interface: str) -> None:
        """Forget an interface that is away."""
        self._found.pop(interface, None)

    def _turn_off(self, stack: Stack, mode: str) -> None:
        if not self._turns_off:
            return
        for each in merging.turn_off(stack, mode):
            log.info("merging_off", interface=each.device, features=each.features)
