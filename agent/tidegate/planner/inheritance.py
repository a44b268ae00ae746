# SPDX-License-Identifier: Apache-2.0
"""Decide who takes over which identity, since names are not identities.

A flow's entry leads to a server, so the identity of a backend goes with its address within its
pool, whatever it is called: a rename, two names that change places, and numbered servers that close
a gap leave every flow where it is, in one change or while the old name drains. A name takes its
identity to another address only where that address is new to the pool and nobody else has the old
one: then the server has moved, and its flows follow it. A server whose name went to another one of
the pool has left, and drains like one whose key was deleted; it is called by its address then.

What clients connect to (address, port, protocol) is a VIP's identity in the same way, and gets it
back while the id rests, as its flows' entries are still there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from tidegate.errors import GenerationRefused
from tidegate.model.constants import ID_COOLDOWN_SECONDS
from tidegate.model.generation import Freed, Generation, Identity, PlacedBackend, PlacedVip
from tidegate.model.values import Address, Backend, BackendKey, Endpoint, Vip
from tidegate.planner.ids import Allocator


class Inheritance(NamedTuple):
    """What becomes of the backends that were there.

    Attributes:
        former: what each wanted backend was before; those that are new are not in it.
        leaving: the others, by the names under which they leave.
    """

    former: Mapping[BackendKey, PlacedBackend]
    leaving: Mapping[BackendKey, PlacedBackend]


def inherit(
    wanted: Mapping[BackendKey, Backend], before: Mapping[BackendKey, PlacedBackend]
) -> Inheritance:
    """Return who takes over from whom; of two that want one address the first name does."""
    unsettled = sorted(key for key, one in wanted.items() if not _is_same(before.get(key), one))
    taken = _taken(unsettled, wanted, before) if unsettled else {}
    apart, given = set(unsettled), set(taken.values())
    former = {key: before[key] for key in wanted if key not in apart}
    former |= {key: before[old] for key, old in taken.items()}
    leaving = {key: before[key] for key in sorted(before.keys() - wanted.keys() - given)}
    for key in sorted((apart & before.keys()) - given):
        nameless = BackendKey(key.pool, f"@{before[key].backend.address}")
        leaving[nameless] = before[key]
    return Inheritance(former, leaving)


def _taken(
    unsettled: Sequence[BackendKey],
    wanted: Mapping[BackendKey, Backend],
    before: Mapping[BackendKey, PlacedBackend],
) -> dict[BackendKey, BackendKey]:
    """Return from whom each of these names takes over, itself among others, if from anybody."""
    free = _free_addresses(wanted, before, {key.pool for key in unsettled})
    taken: dict[BackendKey, BackendKey] = {}
    for key in unsettled:
        found = free.pop((key.pool, wanted[key].address), None)
        if found is not None:
            taken[key] = found
    left = before.keys() - set(taken.values())
    return taken | {key: key for key in unsettled if key not in taken and key in left}


def _is_same(old: PlacedBackend | None, wanted: Backend) -> bool:
    return old is not None and (old.backend is wanted or old.backend.address == wanted.address)


def _free_addresses(
    wanted: Mapping[BackendKey, Backend],
    before: Mapping[BackendKey, PlacedBackend],
    pools: set[str],
) -> dict[tuple[str, Address], BackendKey]:
    """Return whose address may have another name now; one that drained already yields."""
    free: dict[tuple[str, Address], BackendKey] = {}
    there = [key for key in before if key.pool in pools]
    for key in sorted(there, key=lambda key: (before[key].retire_at is not None, key)):
        placed, still = before[key], wanted.get(key)
        if still is None or not _is_same(placed, still):
            free.setdefault((key.pool, placed.backend.address), key)
    return free


class VipIdentities:
    """Gives VIPs their identities, one after another.

    Args:
        wanted: all of them.
        previous: the generation in force.
        allocator: of ids of VIPs.
        now: wall clock, s.
    """

    def __init__(
        self, wanted: Mapping[str, Vip], previous: Generation, allocator: Allocator, now: int
    ) -> None:
        self._allocator = allocator
        self._before = previous.vips
        self._in_force = {placed.vip.endpoint: placed for placed in previous.vips.values()}
        self._resting = _resting(previous.freed.vips, now)
        returning = (self._resting.get(vip.endpoint) for vip in wanted.values())
        allocator.reserve(identity.id for identity in returning if identity is not None)
        lasting = (self._in_force.get(vip.endpoint) for vip in wanted.values())
        self._lasting = {placed.identity.id for placed in lasting if placed is not None}

    def former(self, vip: Vip) -> PlacedVip | None:
        """Return what was at a VIP's endpoint."""
        return self._in_force.get(vip.endpoint)

    def returning(self, vip: Vip) -> Identity | None:
        """Return the identity that an endpoint had before it went, if that still rests."""
        return self._resting.get(vip.endpoint)

    def fresh(self, name: str) -> Identity:
        """Return an identity that no packet has met.

        While there is a free id the old one rests, so that its endpoint may come back to it.
        Without one, a VIP of that name has its own id once more.

        Raises:
            GenerationRefused: no id is left for it.
        """
        try:
            return self._allocator.allocate()
        except GenerationRefused:
            old = self._before.get(name)
            if old is None or old.identity.id in self._lasting:
                raise
            return old.identity._replace(incarnation=old.identity.incarnation + 1)


def _resting(freed: Mapping[int, Freed], now: int) -> dict[Endpoint, Identity]:
    """Return the identities that may come back, by endpoint; the one that went last counts."""
    found: dict[Endpoint, Identity] = {}
    for id_, last in sorted(freed.items(), key=lambda item: item[1].at):
        if last.endpoint is not None and now < last.at + ID_COOLDOWN_SECONDS:
            found[last.endpoint] = Identity(id_, last.incarnation)
    return found


def renamed(placed: PlacedBackend, key: BackendKey) -> Backend:
    """Return a backend's document under the name that it has now."""
    backend = placed.backend
    return backend if backend.key == key else replace(backend, name=key.name)
