# SPDX-License-Identifier: Apache-2.0
"""Single places of map `vips`, for tests that damage them, and addresses that collide in it."""

from collections.abc import Mapping
from ipaddress import IPv6Address

import numpy as np

from tidegate.dataplane.kernel import layout
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.publish import vip_images
from tidegate.dataplane.publish.vip_places import FACTORS, PLACE_BITS, Places
from tidegate.model.constants import VIP_PLACES

EMPTY = bytes(layout.VIP_PLACE.itemsize)


def index_of(fds: Mapping[str, int], key: bytes) -> int:
    """Return the element of `vips` at which packets find a key."""
    held = vip_images.read(fds)
    (place,) = np.flatnonzero(
        held.images[held.selected]["key"] == np.frombuffer(key, layout.VIP_KEY)
    )
    return held.selected * VIP_PLACES + int(place)


def place_of(key: bytes, value: bytes) -> bytes:
    """Return the bytes of a place that has an entry."""
    return (key + bytes(4) + value).ljust(layout.VIP_PLACE.itemsize, b"\0")


def put(fds: Mapping[str, int], index: int, place: bytes) -> None:
    """Write an element of `vips`."""
    bpf.map_update(fds["vips"], index.to_bytes(4, "little"), place)


def address_at(where: Places, port: int, number: int, protocol: int = 6) -> IPv6Address:
    """Return an address whose VIP of this port has these places; another one for each number.

    The hash is undone: its bits but the places are free, and so is one word of the address.
    """
    hashed = where.first << 64 - PLACE_BITS | where.second << 64 - 2 * PLACE_BITS | number
    mixed = hashed * pow(FACTORS[3], -1, 1 << 64) % (1 << 64)
    rest = mixed ^ mixed >> 32
    service = int.from_bytes(port.to_bytes(2), "little") | protocol << 16
    low = int.from_bytes(number.to_bytes(8), "little")
    high = (rest - low * FACTORS[1] - service * FACTORS[2]) * pow(FACTORS[0], -1, 1 << 64)
    return IPv6Address((high % (1 << 64)).to_bytes(8, "little") + low.to_bytes(8, "little"))
