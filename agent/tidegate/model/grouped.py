# SPDX-License-Identifier: Apache-2.0
"""Large mappings in groups, of which two versions share all groups that did not change.

Most changes touch one pool of hundreds. Backends and documents are therefore kept by pool: the next
version of such a mapping has the same group objects as the one before it, but for the groups that
were written to. Whoever works on the difference of two versions compares groups by identity, and
looks into those alone that are others. A version never changes, so it may be read by any thread.
"""

from collections.abc import (
    ItemsView,
    Iterator,
    Mapping,
    MutableMapping,
    ValuesView,
)
from typing import Any, Generic, NamedTuple, Self, TypeVar

K = TypeVar("K")
V = TypeVar("V")

Group = Mapping[K, V]


class Grouped(Mapping[K, V], Generic[K, V]):
    """An immutable mapping in groups; a subclass says which group a key belongs to.

    Attributes:
        groups: by name, in the order of names; none is empty. They must not be changed.
    """

    __slots__ = ("_length", "groups")
    groups: Mapping[str, Mapping[K, V]]

    def __init__(
        self,
        entries: Mapping[K, V] | None = None,
        groups: Mapping[str, Mapping[K, V]] | None = None,
    ) -> None:
        """Take over another mapping's entries, or groups.

        Args:
            entries: in any order.
            groups: instead; in the order of names, and each of keys; none is empty.
        """
        if groups is None:
            found: dict[str, dict[K, V]] = {}
            for key, value in (entries or {}).items():
                found.setdefault(self.group_of(key), {})[key] = value
            groups = {name: _sorted(found[name]) for name in sorted(found)}
        self.groups = groups
        self._length = sum(map(len, groups.values()))

    @staticmethod
    def group_of(key: Any) -> str:  # noqa: ANN401 - of the subclass's kind
        """Return the name of a key's group."""
        raise NotImplementedError

    @classmethod
    def of(cls, entries: Mapping[K, V]) -> Self:
        """Return a mapping in groups: itself if it is one."""
        return entries if isinstance(entries, cls) else cls(entries)

    def group(self, name: str) -> Mapping[K, V]:
        """Return a group; one that is not there is empty."""
        return self.groups.get(name, _NOTHING)

    def replaced(self, groups: Mapping[str, Mapping[K, V]]) -> Self:
        """Return the mapping with some groups replaced; an empty one removes its group.

        Args:
            groups: by name. A group that has the same entries as before is left as it is.
        """
        fresh = {n: g for n, g in groups.items() if self.group(n) != g}
        if not fresh:
            return self
        merged = {**self.groups, **{name: _sorted(group) for name, group in fresh.items()}}
        if fresh.keys() - self.groups.keys():
            merged = dict(sorted(merged.items()))
        return type(self)(groups={name: group for name, group in merged.items() if group})

    def differing(self, other: "Grouped[K, V]") -> list[str]:
        """Return the names of groups whose entries are not those of another version, in order."""
        mine, theirs = self.groups, other.groups
        there = [
            name
            for name, group in mine.items()
            if (old := theirs.get(name)) is not group and old != group
        ]
        if mine.keys() >= theirs.keys():
            return there
        return sorted([*there, *(theirs.keys() - mine.keys())])

    def __getitem__(self, key: K) -> V:
        """Return the value of a key."""
        return self.group(self.group_of(key))[key]

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys, in order."""
        for group in self.groups.values():
            yield from group

    def __len__(self) -> int:
        """Return how many keys there are."""
        return self._length

    def items(self) -> ItemsView[K, V]:
        """Return a view of keys and values, in order."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """Return a view of the values, in order of keys."""
        return _Values(self)

    def __or__(self, other: Mapping[K, V]) -> Self:
        """Return the mapping with other entries besides, or instead."""
        fresh: dict[str, dict[K, V]] = {}
        for key, value in other.items():
            name = self.group_of(key)
            fresh.setdefault(name, dict(self.group(name)))[key] = value
        return self.replaced(fresh)

    def __eq__(self, other: object) -> bool:
        """Compare entries; groups that are shared need no look."""
        if isinstance(other, Grouped):
            return self.groups == other.groups
        if isinstance(other, Mapping):
            return dict(self.items()) == dict(other.items())
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it is as large as a fleet

    def __repr__(self) -> str:
        """Show the entries."""
        return f"{type(self).__name__}({dict(self.items())!r})"


class Edits(MutableMapping[K, V], Generic[K, V]):
    """Changes to a grouped mapping; a group is copied when it is first written to."""

    def __init__(self, base: Grouped[K, V]) -> None:
        """Begin with no change."""
        self._base = base
        self._fresh: dict[str, dict[K, V]] = {}

    def group(self, name: str) -> Mapping[K, V]:
        """Return a group as it is now."""
        fresh = self._fresh.get(name)
        return self._base.group(name) if fresh is None else fresh

    def groups(self) -> Iterator[tuple[str, Mapping[K, V]]]:
        """Yield the groups that are not empty now; they must not be changed meanwhile."""
        fresh = self._fresh
        for name in self._base.groups.keys() | fresh.keys():
            group = self.group(name)
            if group:
                yield name, group

    def frozen(self) -> Grouped[K, V]:
        """Return the mapping with these changes."""
        return self._base.replaced(self._fresh)

    def _writable(self, key: K) -> dict[K, V]:
        name = self._base.group_of(key)
        fresh = self._fresh.get(name)
        if fresh is None:
            fresh = self._fresh[name] = dict(self._base.group(name))
        return fresh

    def __getitem__(self, key: K) -> V:
        """Return the value of a key."""
        return self.group(self._base.group_of(key))[key]

    def __setitem__(self, key: K, value: V) -> None:
        """Set the value of a key."""
        self._writable(key)[key] = value

    def __delitem__(self, key: K) -> None:
        """Remove a key."""
        del self._writable(key)[key]

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys."""
        for _, group in self.groups():
            yield from group

    def __len__(self) -> int:
        """Return how many keys there are."""
        was = sum(len(self._base.group(name)) for name in self._fresh)
        return len(self._base) - was + sum(map(len, self._fresh.values()))


class _Items(ItemsView[K, V]):
    _mapping: Grouped[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        for group in self._mapping.groups.values():
            yield from group.items()


class _Values(ValuesView[V]):
    _mapping: Grouped[Any, V]

    def __iter__(self) -> Iterator[V]:
        for group in self._mapping.groups.values():
            yield from group.values()


_NOTHING: Mapping[Any, Any] = {}


G = TypeVar("G", bound=Grouped[Any, Any])


def sharing(grouped: G, former: G) -> G:
    """Return a mapping with the groups of a former version where the two are equal."""
    groups = {
        name: old if (old := former.group(name)) == group else group
        for name, group in grouped.groups.items()
    }
    return type(grouped)(groups=groups)


class ChangedItems(NamedTuple, Generic[K, V]):
    """The items of two mappings that are not the same objects under the same key."""

    before: dict[K, V]
    after: dict[K, V]


def changed_items(before: Mapping[K, V], after: Mapping[K, V]) -> ChangedItems[K, V]:
    """Return the items by which two mappings differ."""
    return ChangedItems(
        {key: value for key, value in before.items() if after.get(key) is not value},
        {key: value for key, value in after.items() if before.get(key) is not value},
    )


class ChangedValues(NamedTuple, Generic[V]):
    """The values of such items."""

    before: list[V]
    after: list[V]


def changed_values(before: Mapping[K, V], after: Mapping[K, V]) -> ChangedValues[V]:
    """Return the values by which two mappings differ."""
    found = changed_items(before, after)
    return ChangedValues(list(found.before.values()), list(found.after.values()))


def _sorted(group: Mapping[K, V]) -> dict[K, V]:
    return {key: group[key] for key in sorted(group)}  # type: ignore[type-var]
