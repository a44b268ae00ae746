# SPDX-License-Identifier: Apache-2.0
"""The price list: what one step costs on this machine, so that rows compare across machines."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from bench.dataplane.method import run
from bench.dataplane.programs import LARGE_LINES, SMALL_LINES, Knobs, Part, Wrapper
from bench.dataplane.rows import ACK

TURNS: Final = 50_000


class Price(NamedTuple):
    """A step, and the part that has all but the step; without one, all of it is the price."""

    part: Part
    without: Part | None = Part.EMPTY
    lines: int = 1


PRICES: Final[Mapping[str, Price]] = {
    "empty loop": Price(Part.EMPTY, None),
    "array look-up": Price(Part.ARRAY, Part.CHAIN),
    "per-CPU array look-up, increment": Price(Part.PERCPU, Part.CHAIN),
    "hash, 12-byte key": Price(Part.HASH12, Part.CHAIN),
    "hash, 40-byte key": Price(Part.HASH40, Part.CHAIN),
    "LRU, 12-byte key": Price(Part.LRU12, Part.CHAIN),
    "LRU, 40-byte key": Price(Part.LRU40, Part.CHAIN),
    "ktime": Price(Part.KTIME),
    "coarse clock": Price(Part.COARSE),
    "jiffies64": Price(Part.JIFFIES),
    "adjust_head": Price(Part.ADJUST_HEAD),
    "csum_diff, 20 bytes": Price(Part.CSUM_DIFF, Part.CHAIN),
    "random line, 8 MB": Price(Part.LINE, Part.RANDOM, SMALL_LINES),
    "random line, 64 MB": Price(Part.LINE, Part.RANDOM, LARGE_LINES),
}
FLOOR: Final = "floor: push 20 bytes, transmit"


class PriceCase:
    """A step inside a wrapper, against the same without the step."""

    yields = False

    def __init__(self, name: str, wrapper: Wrapper, program: int, without: int | None) -> None:
        self.name = name
        self._wrapper, self._program, self._without = wrapper, program, without

    def prepare(self) -> None:
        """Do nothing: each run is warm after its first turns."""

    def difference(self) -> float:
        """Return ns of the step."""
        if self._without is None:
            return run(self._program, ACK, TURNS).each
        return self._inside(self._program) - self._inside(self._without)

    def confirm(self) -> None:
        """Do nothing: these programs have only one way."""

    def _inside(self, program: int) -> float:
        """Return ns of a turn with a program in the wrapper, once it is warm."""
        self._wrapper.call(program, Knobs().of(ACK, 0))
        run(self._wrapper.fd, ACK, TURNS // 50)
        return run(self._wrapper.fd, ACK, TURNS).each
