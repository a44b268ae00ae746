# SPDX-License-Identifier: Apache-2.0
"""The names of the ids in events, over the generations of this agent's life.

An event may be of a generation that is not in force any more, and its flow may have begun in one
long before. Ids come with their incarnations, so the names of several generations do not conflict:
they are kept together, and those that are gone are forgotten when they are many.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from tidegate.model.generation import Generation, Identity
from tidegate.model.values import BackendKey
from tidegate.telemetry.flows.spans import Naming
from tidegate.telemetry.span import Context

_MOST_GONE: Final = 10_000

_Name = TypeVar("_Name", str, BackendKey)


class FlowNames:
    """Follows generations; belongs to one thread.

    Args:
        generation: in force.
        change_of: context of the change trace of a generation, if it has one.
    """

    def __init__(self, generation: Generation, change_of: Callable[[int], Context | None]) -> None:
        self._vips = _vips(generation)
        self._backends = _backends(generation)
        self._left: dict[Identity, int] = {}
        self._change_of = change_of
        self.naming = self._named()

    def follow(self, previous: Generation, generation: Generation) -> None:
        """Add the names of a generation that came into force."""
        self._vips = _joined(self._vips, _vips(generation))
        self._backends = _joined(self._backends, _backends(generation))
        there = {p.identity for p in generation.backends.values() if p.reachable}
        for placed in previous.backends.values():
            if placed.reachable and placed.identity not in there:
                self._left.pop(placed.identity, None)
                self._left[placed.identity] = generation.number
        while len(self._left) > _MOST_GONE:
            del self._left[next(iter(self._left))]
        self.naming = self._named()

    def _named(self) -> Naming:
        return Naming(self._vips, self._backends, self._change_of, self._left)


def _vips(generation: Generation) -> dict[Identity, str]:
    return {placed.identity: name for name, placed in generation.vips.items()}


def _backends(generation: Generation) -> dict[Identity, BackendKey]:
    return {placed.identity: key for key, placed in generation.backends.items()}


def _joined(known: dict[Identity, _Name], fresh: dict[Identity, _Name]) -> dict[Identity, _Name]:
    """Return both, the fresh ones last; of those that are gone only the latest."""
    joined = {identity: name for identity, name in known.items() if identity not in fresh} | fresh
    for identity in list(joined)[: max(0, len(joined) - len(fresh) - _MOST_GONE)]:
        del joined[identity]
    return joined
