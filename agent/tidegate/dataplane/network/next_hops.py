# SPDX-License-Identifier: Apache-2.0
"""Which next hop an interface's packets of one family take. Pure.

The program has one next hop for each family and interface, and the kernel is asked for that of
each backend. Usually all have one. Where they differ, most backends decide, the lowest address
among equals; so hosts that see the same routes choose alike. A router whose MAC is known goes
before one that does not answer.

A backend on the link is its own next hop. A single one can be that of all; with more of them the
packets go to a router, which forwards to the link: that of other backends' routes, or of the
default route. Without a router only one of them can be reached, which the host must not hide.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from tidegate.model.generation import Generation
from tidegate.model.values import Address

_NAMED: Final = 3
"""Backends that a sentence names; the rest are counted."""


@dataclass(frozen=True)
class Backends:
    """The addresses that encapsulated packets go to.

    Attributes:
        names: one `pool/backend` for each address; those that health has taken out too, so that a
            failure changes no next hop.
        needed: families of those that take packets.
    """

    names: Mapping[Address, str]
    needed: frozenset[int] = frozenset()

    def of(self, family: int) -> tuple[Address, ...]:
        """Return the addresses of a family, the lowest first."""
        return tuple(sorted(each for each in self.names if each.version == family))

    def listed(self, addresses: Collection[Address]) -> str:
        """Return a few by name, and how many there are besides."""
        few = [f"{self.names[each]} ({each})" for each in sorted(addresses, key=_order)[:_NAMED]]
        more = len(addresses) - len(few)
        return ", ".join(few) + (f" and {more} more" if more else "")


NO_BACKENDS: Final = Backends({})


def backends_of(*generations: Generation) -> Backends:
    """Return the addresses of these generations' backends whose pools serve a VIP."""
    names: dict[Address, str] = {}
    needed: set[int] = set()
    for generation in generations:
        used = {pool for placed in generation.vips.values() for pool in placed.vip.pools}
        for key, placed in generation.backends.items():
            is_flowing = placed.retire_at is not None and placed.reachable
            if key.pool in used or is_flowing:
                names.setdefault(placed.backend.address, str(key))
                if placed.reachable:
                    needed.add(placed.backend.address.version)
    return Backends(names, frozenset(needed))


@dataclass(frozen=True)
class Choice:
    """The next hop of a family on an interface.

    Attributes:
        hop: None where there is none.
        unreached: backends on the link that it cannot forward to.
        differing: backends whose own route has another next hop, or none at all.
    """

    hop: Address | None
    unreached: tuple[Address, ...] = ()
    differing: tuple[Address, ...] = ()


def choose(
    hops: Mapping[Address, Address | None],
    default: Callable[[], Address | None],
    is_resolved: Callable[[Address], bool],
) -> Choice:
    """Return the next hop of all.

    Args:
        hops: of each backend, as the kernel has it.
        default: asks for the default route's next hop.
        is_resolved: whether a next hop's MAC is known.
    """
    routers = Counter(hop for backend, hop in hops.items() if hop is not None and hop != backend)
    on_link = sorted((backend for backend, hop in hops.items() if hop == backend), key=_order)
    if routers:
        return _with(min(routers, key=lambda r: (not is_resolved(r), -routers[r], _order(r))), hops)
    if len(on_link) == 1:
        return _with(on_link[0], hops)
    router = default()
    if router is not None or not on_link:
        return _with(router, hops)
    return Choice(on_link[0], unreached=tuple(on_link[1:]))


def _with(hop: Address | None, hops: Mapping[Address, Address | None]) -> Choice:
    return Choice(hop, differing=tuple(each for each, own in hops.items() if own != hop))


def _order(address: Address) -> tuple[int, int]:
    return address.version, int(address)
