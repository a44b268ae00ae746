# SPDX-License-Identifier: Apache-2.0
"""The spec as an engine of `tidegate simulate`: one frame in, what became of it out, by name.

The kernel's engine is `dataplane/inspect/simulation.py`. Both give an `Outcome`, and what the maps
hold under the same names, so that the two can be compared. No I/O here, and no packet decisions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import BackendKey
from tidegate.spec.balancer import Verdict, process
from tidegate.spec.state import Link, Settings, State

INTERFACE = 1
"""The index of the loopback, the interface of a test-run's frames."""

LONGEST = 3520
"""Bytes of a frame that a program sees: a page of 4096, less 256 in front for headers to come and
320 behind for the kernel's struct skb_shared_info (measured by test-run). A longer frame of a
capture was put together by segmentation offload; no driver gives such a one to a program."""

Contents: TypeAlias = Mapping[str, Mapping[Any, Any]]
"""What packets can change: map by name, and its entries. A counter at 0 is left out."""


@dataclass(frozen=True)
class Outcome:
    """What became of a frame; None where it does not apply.

    Attributes:
        frame: as it was left: the one to transmit, or the one that came in.
        vip: name of the VIP that it was for.
        generation: number of the generation that was in force, if it was for a VIP.
    """

    verdict: Verdict
    frame: bytes
    reason: Reason = Reason.NONE
    vip: str | None = None
    backend: BackendKey | None = None
    slot: int | None = None
    decision: Decision | None = None
    generation: int | None = None


@dataclass(frozen=True)
class Names:
    """What the ids of a generation stand for."""

    number: int
    vips: Mapping[int, str]
    backends: Mapping[int, BackendKey]


def names(generation: Generation) -> Names:
    """Return the names by id."""
    return Names(
        generation.number,
        {placed.identity.id: name for name, placed in generation.vips.items()},
        {placed.identity.id: key for key, placed in generation.backends.items()},
    )


class Specification:
    """The specification with a state of its own.

    Args:
        settings: as the program is built.
        link: what is known of the interface that the frames come in on.
        now: the kernel's clock, jiffies.
    """

    def __init__(self, settings: Settings, link: Link, now: Callable[[], int]) -> None:
        self._now = now
        self.state = State(settings, {INTERFACE: link})
        self._names = names(NOTHING)

    def install(self, generation: Generation) -> None:
        """Put a generation in force."""
        self.state.install(generation)
        self._names = names(generation)

    def run(self, frame: bytes) -> Outcome:
        """Run one frame through the specification."""
        result = process(self.state, frame[:LONGEST], INTERFACE, self._now())
        self.state.events.clear()  # nobody reads them here, and a capture may be long
        return Outcome(
            result.verdict,
            frame if result.verdict is Verdict.PASS else result.frame,
            result.reason,
            vip=None if result.vip is None else self._names.vips[result.vip],
            backend=None if result.backend is None else self._names.backends[result.backend],
            slot=result.slot,
            decision=result.decision,
            generation=None if result.verdict is Verdict.PASS else self._names.number,
        )


def tables(state: State) -> Contents:
    """Return the tables that packets write, by place."""
    return {
        "flows": state.flows.entries,
        "syns": state.syns.entries,
        "fragments": state.fragments.entries,
    }


def counters(state: State) -> Contents:
    """Return the counters."""
    return {
        "vips": state.vip_counters,
        "addresses": state.address_counters,
        "backends": {
            id_: (packets, state.backend_bytes[id_])
            for id_, packets in state.backend_packets.items()
        },
        "verdicts": state.verdicts,
    }


def differences(kernel: Contents, spec: Contents) -> list[str]:
    """Return every entry in which the two differ, as lines."""
    found = []
    for name in kernel.keys() | spec.keys():
        here, there = kernel.get(name, {}), spec.get(name, {})
        if here == there:
            continue
        found += [
            f"{name}[{key}]: kernel {here.get(key)}, spec {there.get(key)}"
            for key in {**here, **there}
            if here.get(key) != there.get(key)
        ]
    return sorted(found)
