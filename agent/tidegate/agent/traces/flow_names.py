# SPDX-License-Identifier: Apache-2.0
"""The names of the ids in events, over the generations of this agent's life.

An event may be of a generation that is not in force any more, and its flow may have begun in one
long before. Ids come with their incarnations, so the names of several generations do not conflict:
they are kept together, and those that are gone are forgotten when they are many.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from tidegate.model.generation import Generation, Identity, PlacedBackend, PlacedVip
from tidegate.model.grouped import changed_items
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
        self._vips = _vips(generation.vips)
        self._backends = _backends(generation.backends)
        self._left: dict[Identity, int] = {}
        self._change_of = change_of
        self.naming = self._named()

    def follow(self, previous: Generation, generation: Generation) -> None:
        """Add the names of a generation that came into force."""
        vips = changed_items(previous.vips, generation.vips)
        if vips.before or vips.after:
            self._vips = _joined(self._vips, vips.after, len(generation.vips))
        before: dict[BackendKey, PlacedBackend] = {}
        after: dict[BackendKey, PlacedBackend] = {}
        for name in generation.by_pool.differing(previous.by_pool):
            before |= previous.by_pool.group(name)
            after |= generation.by_pool.group(name)
        self._backends = _joined(self._backends, after, len(generation.backends))
        there = {placed.identity for placed in after.values() if placed.reachable}
        for placed in before.values():
            if placed.reachable and placed.identity not in there:
                self._left.pop(placed.identity, None)
                self._left[placed.identity] = generation.number
        while len(self._left) > _MOST_GONE:
            del self._left[next(iter(self._left))]
        self.naming = self._named()

    def _named(self) -> Naming:
        return Naming(self._vips, self._backends, self._change_of, self._left)


def _vips(placed: Mapping[str, PlacedVip]) -> dict[Identity, str]:
    return {each.identity: name for name, each in placed.items()}


def _backends(placed: Mapping[BackendKey, PlacedBackend]) -> dict[Identity, BackendKey]:
    return {each.identity: key for key, each in placed.items()}


def _joined(
    known: dict[Identity, _Name],
    fresh: Mapping[_Name, PlacedVip] | Mapping[_Name, PlacedBackend],
    living: int,
) -> dict[Identity, _Name]:
    """Return both, the fresh ones last; of those that are gone only the latest, about.

    Args:
        known: names before.
        fresh: what came or changed.
        living: how many are not gone.
    """
    joined = dict(known)
    for name, placed in fresh.items():
        joined.pop(placed.identity, None)
        joined[placed.identity] = name
    for identity in list(joined)[: max(0, len(joined) - living - _MOST_GONE)]:
        del joined[identity]
    return joined
