# SPDX-License-Identifier: Apache-2.0
"""The documents of the last generations, to roll back to.

Values in memory; the journal gives them back after a restart. Generations that differ by time alone
(a window that closed, a ramp's next step) share their documents, so they are one state here: going
back means going back to other documents.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tidegate.model.generation import Generation
from tidegate.model.values import Desired


@dataclass(frozen=True)
class State:
    """Documents that were in force from one generation to another.

    Attributes:
        first: number of the first generation with these documents.
        last: number of the last one.
        digest: that of the last one.
    """

    first: int
    last: int
    digest: str
    desired: Desired

    def __str__(self) -> str:
        span = str(self.first) if self.first == self.last else f"{self.first} to {self.last}"
        return f"{span} (revision {self.desired.revision}, digest {self.digest[:8]})"


class RollbackStates:
    """The states of the last generations, oldest first; the last one is in force.

    Args:
        depth: how many are kept besides the one in force.
    """

    def __init__(self, depth: int, states: Iterable[State] = ()) -> None:
        self._depth = depth
        self.states: tuple[State, ...] = ()
        for state in states:
            self._append(state)

    def remember(self, number: int, digest: str, desired: Desired) -> None:
        """Add a generation that came into force."""
        self._append(State(number, number, digest, desired))

    def before(self) -> State | None:
        """Return the state before the one in force."""
        return self.states[-2] if len(self.states) > 1 else None

    def find(self, number: int) -> State | None:
        """Return the state that a generation had; the latest if numbers began anew."""
        for state in reversed(self.states):
            if state.first <= number <= state.last:
                return state
        return None

    def listed(self) -> str:
        """Return what can be rolled back to, for people, the latest first."""
        others = [str(state) for state in reversed(self.states[:-1])]
        return "; ".join(others) or "none yet"

    def _append(self, state: State) -> None:
        last = self.states[-1] if self.states else None
        if last is not None and _same(last.desired, state.desired):
            merged = replace(last, last=state.last, digest=state.digest, desired=state.desired)
            self.states = (*self.states[:-1], merged)
        else:
            self.states = (*self.states, state)[-self._depth - 1 :]


def _same(a: Desired, b: Desired) -> bool:
    return (a.vips, a.pools, a.backends, a.hash_seed) == (b.vips, b.pools, b.backends, b.hash_seed)


def in_force_as_desired(generation: Generation) -> Desired:
    """Return the documents that a generation was made of: last good values after a restart."""
    return Desired(
        revision=generation.revision,
        vips={name: placed.vip for name, placed in generation.vips.items()},
        pools={name: placed.pool for name, placed in generation.pools.items()},
        backends={
            key: placed.backend
            for key, placed in generation.backends.items()
            if placed.retire_at is None
        },
        hash_seed=generation.hash_seed,
        release=generation.release,
        pointer=generation.pointer,
    )
