# SPDX-License-Identifier: Apache-2.0
"""Where each key of map `vips` is: one of two places that follow from it. Pure functions.

An entry may be at either of its two places (cuckoo hashing: Pagh and Rodler, J. Algorithms 51,
2004), so a packet looks at two at the most. A key whose places are both taken drives the entry that
is there to its other place, and so on. Each entry has one other place, so each of the two chains is
walked to its end without a choice; where both run into themselves, no arrangement at all has room
for the key. Keys that are there keep their places as far as they can, so a change writes few.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np

from tidegate.dataplane.kernel import layout
from tidegate.errors import DataplaneError
from tidegate.model.address import unpacked
from tidegate.model.constants import VIP_PLACES

FACTORS: Final = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
)
"""FACTOR1 to FACTOR4 of bpf/vip.h: primes of xxHash."""

_WORD: Final = (1 << 64) - 1
PLACE_BITS: Final = VIP_PLACES.bit_length() - 1
_KEY: Final = struct.Struct("<QQI")


class Places(NamedTuple):
    """The two places of a key; they may be the same."""

    first: int
    second: int


def mixed(x: int) -> int:
    """Return the hash of a sum of products of 64 bits, as bpf/vip.h computes it."""
    x &= _WORD
    return (x ^ x >> 32) * FACTORS[3] & _WORD


def places(key: bytes) -> Places:
    """Return the places of a key of `vips`."""
    high, low, service = _KEY.unpack(key)
    hashed = mixed(high * FACTORS[0] + low * FACTORS[1] + service * FACTORS[2])
    second = hashed >> (64 - 2 * PLACE_BITS) & (VIP_PLACES - 1)
    return Places(hashed >> (64 - PLACE_BITS), second)


def placed(keys: Iterable[bytes], before: Mapping[bytes, int]) -> dict[bytes, int]:
    """Return a place for each key, the same for the same keys and the same places before.

    Args:
        keys: all that are to have one.
        before: where keys are, each at one of its places.

    Raises:
        DataplaneError: there is no room for a key, which the text names.
    """
    wanted = set(keys)
    owners = {place: key for key, place in before.items() if key in wanted}
    for key in sorted(wanted - before.keys()):
        chains = [list(_chain(place, owners)) for place in dict.fromkeys(places(key))]
        ending = [chain for chain in chains if chain[-1] not in owners]
        if not ending:
            raise DataplaneError(_no_room(key))
        _shift(key, min(ending, key=len), owners)
    return {key: place for place, key in owners.items()}


def _chain(place: int, owners: Mapping[int, bytes]) -> Iterator[int]:
    """Yield the places that owners would have to leave one after another, and the free one.

    If there is no free one, the last place is the one before the chain comes back to itself.
    """
    seen: set[int] = set()
    while place not in seen:
        seen.add(place)
        yield place
        if place not in owners:
            return
        first, second = places(owners[place])
        place = second if place == first else first


def _shift(key: bytes, chain: list[int], owners: dict[int, bytes]) -> None:
    """Put a key at the head of a chain whose last place is free; each owner goes one place on."""
    for here, onward in zip(reversed(chain[:-1]), reversed(chain[1:]), strict=True):
        owners[onward] = owners[here]
    owners[chain[0]] = key


def _no_room(key: bytes) -> str:
    return (
        f"no room for VIP {key_name(key)}: its places in map vips are taken, and so are all that "
        "their owners could go to. Give this VIP another port or address (protocols 1 and 58 stand "
        "for the address), or move VIPs to another fleet: VIPs that share an address take less room"
    )


def key_name(key: bytes) -> str:
    """Describe a key of `vips` for people."""
    vip = np.frombuffer(key, layout.VIP_KEY)[0]
    address = unpacked(vip["address"].tobytes())
    return f"{address} port {vip['port']} protocol {vip['protocol']}"
