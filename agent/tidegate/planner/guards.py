# SPDX-License-Identifier: Apache-2.0
"""Changes that are more likely an accident than a wish: they are refused, the last one stays.

An emptied prefix must not empty the data plane. What an operator means to take away is set to
`disabled` or `drain` first; a key that is merely gone is not taken for an order.
"""

from tidegate.model.generation import Generation
from tidegate.model.values import Desired, Rejection


def refusals(desired: Desired, previous: Generation) -> tuple[Rejection, ...]:
    """Why this change must not become a generation; empty if it may."""
    found: list[Rejection] = []
    if previous.vips and not desired.vips:
        found.append(
            _guard(
                "vips",
                f"all {len(previous.vips)} VIPs would vanish at once; the last generation stays in "
                "force. If it is meant, set guards.allow_empty in the agent's file and reload it",
                desired.revision,
            )
        )
    for pool in sorted({pool for vip in desired.vips.values() for pool in vip.pools}):
        had = {
            key
            for key, placed in previous.backends.items()
            if key.pool == pool and placed.backend.state == "active" and placed.retire_at is None
        }
        if had and not any(key.pool == pool for key in desired.backends):
            found.append(
                _guard(
                    f"pools/{pool}/backends",
                    f"all {len(had)} serving backends of a pool that a VIP uses would vanish at "
                    "once; the last generation stays in force. If it is meant, set them to "
                    '"disabled" first, or set guards.allow_empty in the agent\'s file and reload',
                    desired.revision,
                )
            )
    return tuple(found)


def _guard(key: str, reason: str, revision: int) -> Rejection:
    return Rejection(key, "", reason, "guard", revision)
