# SPDX-License-Identifier: Apache-2.0
"""Which events are worth a Python object: rate limits and reduction, on whole arrays.

A flood of events must cost what its bytes cost to look at, and no more. So a batch is cut down as
an array: what repeats is counted and not kept, and what is above the limits is counted and left
out. Flows are admitted whole, at their first event. Where more begin than the limit allows, those
whose key is smallest are admitted: keys are equal on every host, so hosts that are all too busy
choose much the same flows. What the events that remain amount to is decided in `flows`.
"""

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.model.decision import EventKind

Records = npt.NDArray[np.void]
"""Events as the ring buffer has them: at least the fields of `COLUMNS`, times monotonic."""
Keys = npt.NDArray[np.uint64]

COLUMNS: Final = (
    "time",
    "kind",
    "vip",
    "vip_incarnation",
    "backend",
    "backend_incarnation",
    "generation",
    "slot",
    "decision",
    "reason",
    "protocol",
    "source",
    "source_port",
    "destination",
    "port",
)
"""In the order in which `flows` takes them apart."""
EVENTS_PER_FLOW: Final = 8
"""Events that are looked at per second for each flow that may begin in it."""
_MIX: Final = np.uint64(0xFF51AFD7ED558CCD)  # of MurmurHash3's finaliser, which is public domain
_SHIFT: Final = np.uint64(32)


class Limits(NamedTuple):
    """How much may come of events.

    Attributes:
        flows_per_second: flows that are taken up.
        open_flows: flows that are followed at one time.
        idle: seconds without an event after which a flow is taken to be over.
    """

    flows_per_second: int = 1000
    open_flows: int = 16_384
    idle: float = 300.0


@dataclass
class Allowance:
    """How many there may be per second, and as many at once."""

    rate: float
    left: float
    at: int

    def refill(self, now: int) -> int:
        """Return what is left at a monotonic ns."""
        passed = max(0, now - self.at) / 1e9
        self.left = min(self.rate, self.left + self.rate * passed)
        self.at = max(self.at, now)
        return int(self.left)


class Admitted(NamedTuple):
    """What is left of a batch, oldest first; `times` says how often each row happened."""

    keys: Keys
    records: Records
    times: npt.NDArray[np.int64]


class Gate:
    """Lets events through within limits.

    Args:
        limits: see there.
        now: monotonic ns.

    Attributes:
        dropped: events that were not let through, by reason.
        refused: flows that get no span.
    """

    def __init__(self, limits: Limits, now: int) -> None:
        self._flows = Allowance(limits.flows_per_second, limits.flows_per_second, now)
        rate = limits.flows_per_second * EVENTS_PER_FLOW
        self._events = Allowance(rate, rate, now)
        self.dropped: Counter[str] = Counter()
        self.refused = 0
        self.floods = 0

    def admit(self, records: Records, known: Container[object], room: int, now: int) -> Admitted:
        """Cut a batch down.

        Args:
            records: in any order.
            known: keys of flows that are admitted already.
            room: how many more may be followed.
            now: monotonic ns.
        """
        is_flood = records["kind"] == EventKind.FLOOD  # about its VIP, not a flow
        self.floods += int(np.count_nonzero(is_flood))
        records = records[~is_flood]
        records = records[np.argsort(records["time"], kind="stable")]
        keys = keys_of(records)
        keep, times = _once(records, keys)
        keep = keep[self._of_admitted(keys[keep], times[keep], known, room, now)]
        left = self._events.refill(now)
        if len(keep) > left:
            self.dropped["rate"] += int(times[keep[left:]].sum())
            keep = keep[:left]
        self._events.left -= len(keep)
        return Admitted(keys[keep], records[keep], times[keep])

    def take_up(self, now: int) -> bool:
        """Return whether a flow may begin: one that has the key of a flow that was admitted."""
        if self._flows.refill(now) < 1:
            self.refused += 1
            return False
        self._flows.left -= 1
        return True

    def _of_admitted(
        self,
        keys: Keys,
        times: npt.NDArray[np.int64],
        known: Container[object],
        room: int,
        now: int,
    ) -> npt.NDArray[np.bool_]:
        """Return which rows are of flows that are known, or may begin."""
        unique, of_row = np.unique(keys, return_inverse=True)
        is_known = np.fromiter((k in known for k in unique.tolist()), np.bool_, len(unique))
        strange = np.flatnonzero(~is_known)
        allowed = self._flows.refill(now)
        begun = strange[: min(allowed, room)]
        self._flows.left -= len(begun)
        refused = len(strange) - len(begun)
        is_known[begun] = True
        is_in: npt.NDArray[np.bool_] = is_known[of_row]
        if refused:
            self.refused += refused
            self.dropped["table" if room < allowed else "rate"] += int(times[~is_in].sum())
        return is_in


def keys_of(records: Records) -> Keys:
    """Return 64 bits for each event's flow, equal on every host; flows may share them by chance."""
    ports = records["source_port"].astype(np.uint64) << np.uint64(16)
    words = [ports | records["port"] | records["protocol"].astype(np.uint64) << _SHIFT]
    for name in ("source", "destination"):
        halves = np.ascontiguousarray(records[name]).view("<u8").reshape(-1, 2)
        words += [halves[:, 0], halves[:, 1]]
    return _mixed(words)


def _mixed(words: list[npt.NDArray[Any]]) -> Keys:
    value = np.zeros(len(words[0]), np.uint64)
    for word in words:
        value = (value ^ word) * _MIX
        value ^= value >> _SHIFT
    return value * _MIX


def _once(records: Records, keys: Keys) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Return the rows to keep, and for each row how often it happened.

    Of one flow's drops for one reason, with no other event between them, the first and the last are
    kept. All else is kept, for its order matters.
    """
    times = np.ones(len(records), np.int64)
    dropped = np.flatnonzero(records["kind"] == EventKind.DROPPED)
    if not len(dropped):
        return np.arange(len(records)), times
    drops = records[dropped]
    by_flow = np.argsort(keys, kind="stable")
    others = np.zeros(len(records), np.uint64)
    others[by_flow] = np.cumsum(records["kind"][by_flow] != EventKind.DROPPED)
    same = _mixed(
        [keys[dropped], others[dropped], drops["reason"].astype(np.uint64), drops["backend"]]
    )
    _, first, counts = np.unique(same, return_index=True, return_counts=True)
    last = len(same) - 1 - np.unique(same[::-1], return_index=True)[1]
    is_kept = np.ones(len(records), np.bool_)
    is_kept[dropped] = False
    is_kept[dropped[first]] = is_kept[dropped[last]] = True
    times[dropped[first]] = np.where(first == last, 1, counts - 1)
    return np.flatnonzero(is_kept), times
