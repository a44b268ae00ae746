# SPDX-License-Identifier: Apache-2.0
"""Records when each stage of the change under way ended. On the loop's thread alone.

It appends a moment to a list and no more, so a change pays nothing for being traced. What the
moments are made into is decided when the change is over (`traces.changes`).
"""

import time
from collections.abc import Callable
from typing import Final

from tidegate.dataplane.publish.steps import Step
from tidegate.telemetry.changes import Mark

AGAIN: Final = "again"
"""Mark at which the work on what is wanted ends, and that on what stays in force begins."""

STAGES: Final = {
    Step.NUMBER_TAKEN: "entries",
    Step.LEDGER_WRITTEN: "entries",
    Step.ENTRIES_STAGED: "entries",
    Step.ENTRIES_SELECTED: "entries",
    Step.STAND_INS_WRITTEN: "entries",
    Step.QUIC_WRITTEN: "entries",
    Step.TABLE_WRITTEN: "fill",
    Step.TABLE_FILLED: "read_back",
    Step.TABLE_PINNED: "fill",
    Step.TABLES_SWAPPED: "swap",
    Step.VIPS_RECORDED: "vips",
    Step.ROUTES_WRITTEN: "vips",
    Step.ADDRESSES_ADDED: "vips",
    Step.VIPS_WRITTEN: "vips",
    Step.VIPS_SELECTED: "vips",
    Step.PREFIXES_WRITTEN: "vips",
    Step.PREFIXES_DELETED: "vips",
    Step.ADDRESSES_REMOVED: "vips",
    Step.ROUTES_DELETED: "vips",
    Step.EMPTIED_TAKEN_OUT: "entries",
    Step.EMPTIED_SWAPPED: "swap",
    Step.VIPS_FREED: "record",
    Step.IDS_FREED: "record",
    Step.QUIC_DELETED: "record",
    Step.STAND_INS_COMPLETE: "record",
    Step.ENTRIES_CLEARED: "record",
    Step.SLOT_CLEARED: "record",
    Step.POOL_UNPINNED: "record",
    Step.NUMBER_RECORDED: "record",
    Step.PROGRAM_LOADED: "program",
    Step.PROGRAM_PINNED: "program",
    Step.PROGRAM_ATTACHED: "program",
    Step.PROGRAM_KEPT: "program",
}
"""Stage that each step belongs to. Tables that were replaced are freed long after the change."""


class StageRecorder:
    """The marks of the change under way.

    Args:
        clock: nanoseconds since 1970.
        beat: told of each stage that ends, as progress of the loop, and of what will take long.
    """

    def __init__(
        self,
        clock: Callable[[], int] = time.time_ns,
        beat: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._clock = clock
        self._beat = beat
        self._marks: list[Mark] = []
        self._is_recording = False

    def begin(self) -> None:
        """Start on a change."""
        self._marks, self._is_recording = [], True

    def mark(self, stage: str) -> None:
        """Record that a stage has ended; outside a change nothing is recorded."""
        self._beat(0.0)
        if self._is_recording:
            self._marks.append(Mark(stage, self._clock()))

    def expect(self, seconds: float) -> None:
        """Announce a stage that may take so long, and has no steps in between."""
        self._beat(seconds)

    def reached(self, step: Step) -> None:
        """Record that the publisher has reached a step."""
        stage = STAGES.get(step)
        if stage is not None:
            self.mark(stage)

    def end(self) -> tuple[Mark, ...]:
        """End the change and return its marks, in their order."""
        self._is_recording = False
        return tuple(self._marks)
