# SPDX-License-Identifier: Apache-2.0
"""Puts the VIPs of a generation in force: step 4 of publishing, whose place `publisher` argues.

Source routes are there before their VIPs, and outlive them. An address bit is set as long as a VIP
of its address may be found. VIPs of one address come into force, and go, together, by the choice of
an image; networks do one by one. Where both change, an image with the VIPs of before and of now is
in force while the networks change, so that a VIP that becomes a network, or is one no more, is
never away, and no VIP's packets go to a network around it. (Where that image has no room, which
takes thousands of VIPs, the VIPs change first, and that moment is accepted.) Until an image is
selected, a crash leaves the VIPs of before; after it those of now, or both.
"""

from tidegate.dataplane.publish.desired import DesiredMaps
from tidegate.dataplane.publish.entries import Contents
from tidegate.dataplane.publish.ledger import VipRecord
from tidegate.dataplane.publish.mirror import Mirror
from tidegate.dataplane.publish.steps import Reached, Step


def put_in_force(mirror: Mirror, wanted: DesiredMaps, reached: Reached) -> None:
    """Write records, routes and VIPs, and delete what is gone; raise OSError, DataplaneError."""
    maps, images = wanted.maps, mirror.images
    mirror.record({p: r for p, r in wanted.changed.items() if isinstance(r, VipRecord)})
    reached(Step.VIPS_RECORDED)
    mirror.put("routes", maps["routes"])
    reached(Step.ROUTES_WRITTEN)
    images.add_bits(wanted.addresses)
    reached(Step.ADDRESSES_ADDED)
    both = {**images.in_force, **maps["vips"]}
    has_same_networks = mirror.written["prefixes"] == maps["prefixes"]
    is_one_change = has_same_networks or not images.has_room(both)
    _select(mirror, maps["vips"] if is_one_change else both, reached)
    mirror.put("prefixes", maps["prefixes"])
    reached(Step.PREFIXES_WRITTEN)
    mirror.drop_others("prefixes", maps["prefixes"])
    reached(Step.PREFIXES_DELETED)
    _select(mirror, maps["vips"], reached)
    images.write_bits(wanted.addresses)
    reached(Step.ADDRESSES_REMOVED)
    mirror.drop_others("routes", maps["routes"])
    reached(Step.ROUTES_DELETED)


def _select(mirror: Mirror, vips: Contents, reached: Reached) -> None:
    """Put these VIPs of one address in force together, unless they are."""
    images = mirror.images
    is_new = not images.holds(vips)
    if is_new:
        images.write(vips, mirror.settle)
    reached(Step.VIPS_WRITTEN)
    if is_new:
        images.select(vips)
    reached(Step.VIPS_SELECTED)
