# SPDX-License-Identifier: Apache-2.0
"""Fills new maps whose content follows from a generation alone, before a program reads them."""

from collections.abc import Collection
from typing import Final

import numpy as np

from tidegate.dataplane.publish import backend_entries, vip_change
from tidegate.dataplane.publish.desired import desired_maps
from tidegate.dataplane.publish.mirror import Mirror
from tidegate.dataplane.publish.steps import unwatched
from tidegate.model.generation import Generation

_OF_VIPS: Final = frozenset({"vips", "vip_image", "vip_addresses", "prefixes", "routes"})


def fill(mirror: Mirror, generation: Generation, names: Collection[str]) -> None:
    """Write what these maps must hold for a generation that is in force, as far as they follow.

    A backend that has outlived its pool is reached by IP in IP from then on: how it was reached is
    in its old entry alone.

    Args:
        mirror: has been loaded, so that it knows the maps as they are.
        generation: as it was restored from the ledger.
        names: of maps; those that do not follow from a generation are left alone.

    Raises:
        OSError: the kernel refused.
        DataplaneError: there is no room for a VIP.
    """
    wanted = desired_maps(generation)
    if "backends" in names:
        _fill_backends(mirror, generation)
    for name in ("quic_servers", "stand_ins"):
        if name in names:
            mirror.put(name, wanted.maps[name])
    if not _OF_VIPS.isdisjoint(names):
        vip_change.put_in_force(mirror, wanted, unwatched)


def _fill_backends(mirror: Mirror, generation: Generation) -> None:
    for placed in generation.backends.values():
        entry = mirror.entries[placed.identity.id]
        backend_entries.stage(entry, placed, generation.pools.get(placed.backend.pool))
        backend_entries.select(entry, placed)
    ids = np.flatnonzero(mirror.entries["incarnation"]).astype(np.uint32)
    mirror.write_entries(ids)
