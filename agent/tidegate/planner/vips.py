# SPDX-License-Identifier: Apache-2.0
"""Place VIPs: each with the identity of its endpoint, and with the pools that serve it now."""

from collections.abc import Container, Mapping
from dataclasses import replace

from tidegate.model.generation import Generation, Identity, PlacedVip
from tidegate.model.values import Vip
from tidegate.planner.digest import vip_line
from tidegate.planner.ids import Allocator
from tidegate.planner.inheritance import VipIdentities


def place_vips(
    wanted: Mapping[str, Vip],
    serving: Container[str],
    previous: Generation,
    allocator: Allocator,
    now: int,
) -> dict[str, PlacedVip]:
    """Return the VIPs of the next generation, in the order of names.

    Args:
        wanted: their documents.
        serving: pools of which a backend takes new flows.
        previous: the generation in force.
        allocator: of ids of VIPs.
        now: wall clock, s.

    Raises:
        GenerationRefused: ids have run out.
    """
    placed: dict[str, PlacedVip] = {}
    identities: VipIdentities | None = None
    for name in sorted(wanted):
        vip = wanted[name]
        old, unserved = previous.vips.get(name), _unserved(vip, serving)
        if old is not None and old.vip is vip and old.unserved == unserved:
            placed[name] = old if old.line else replace(old, line=vip_line(vip, unserved))
            continue
        # It looks at all VIPs, and nearly no change concerns one.
        identities = identities or VipIdentities(wanted, previous, allocator, now)
        identity, moved = _identity(name, vip, unserved, identities)
        placed[name] = PlacedVip(identity, vip, unserved, moved, vip_line(vip, unserved))
    return placed


def _identity(
    name: str, vip: Vip, unserved: tuple[str, ...], identities: VipIdentities
) -> tuple[Identity, bool]:
    """Return a VIP's identity, and whether it has had other pools since it has it."""
    old = identities.former(vip)
    if old is not None:
        is_led_elsewhere = (*_led(old.vip), old.unserved) != (*_led(vip), unserved)
        return old.identity, old.moved or is_led_elsewhere
    back = identities.returning(vip)
    if back is not None:
        return back, True  # the pools that it had are not known any more
    return identities.fresh(name), False


def _led(vip: Vip) -> tuple[object, ...]:
    """Return what says to which pools a VIP's clients are led."""
    return vip.pool, vip.source_routes, vip.deny, vip.sorry_pool


def _unserved(vip: Vip, serving: Container[str]) -> tuple[str, ...]:
    """Return the pools of a VIP that its sorry pool replaces; none if that does not serve itself.

    This follows from the backends' weights alone, so it is the same on all hosts.
    """
    if vip.sorry_pool is None or vip.sorry_pool not in serving:
        return ()
    return tuple(sorted({pool for pool in vip.own_pools if pool not in serving}))
