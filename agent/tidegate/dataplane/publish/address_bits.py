# SPDX-License-Identifier: Apache-2.0
"""Which addresses may be a VIP's, as bits that every packet looks at first. Pure functions.

A bit that is not set says for certain that an address is no VIP's. One that is set may be another
address's with the same hash: then the packet goes the whole way. The hashes are those of bpf/vip.h.
"""

from ipaddress import IPv4Network
from typing import Final

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.kernel import layout
from tidegate.dataplane.publish.vip_places import FACTORS, mixed
from tidegate.model.address import packed
from tidegate.model.generation import Generation
from tidegate.model.values import Address, Network

_NETWORK_FACTOR: Final = 0x9E3779B1
_HASH_BITS: Final = 16
_V6_BITS: Final = 32
"""Bits of an IPv6 address that the hash of its network depends on."""


def address_bits(generation: Generation) -> bytes:
    """Return the element of map `vip_addresses` for the VIPs of a generation."""
    networks = {placed.vip.network for placed in generation.vips.values()}
    bits = np.zeros(1, layout.ADDRESS_BITS)
    for network in networks:
        if network.prefixlen == network.max_prefixlen:
            _set(bits["hosts"][0], np.array([host_bit(network.network_address)], np.uint32))
        else:
            _set(bits["networks"][0], network_bits(network))
    return bits.tobytes()


def host_bit(address: Address) -> int:
    """Return the bit of a VIP of one address."""
    form = packed(address)
    high, low = (int.from_bytes(form[at : at + 8], "little") for at in (0, 8))
    return mixed(high * FACTORS[0] + low * FACTORS[1]) >> (64 - _HASH_BITS)


def network_bits(network: Network) -> npt.NDArray[np.uint32]:
    """Return the bits of all addresses in a network."""
    if isinstance(network, IPv4Network):
        first = int(network.network_address) >> _HASH_BITS
        return np.arange(first, first + _covered(network, _HASH_BITS), dtype=np.uint32)
    count = _covered(network, _V6_BITS)
    if count >= 1 << _HASH_BITS:  # so many that hardly a bit is left out
        return np.arange(1 << _HASH_BITS, dtype=np.uint32)
    first = int.from_bytes(network.network_address.packed[:4])
    words = np.arange(first, first + count, dtype=np.uint64)
    # As a little-endian machine reads the four bytes.
    hashed = words.astype(np.uint32).byteswap() * np.uint32(_NETWORK_FACTOR)
    return np.unique(hashed >> np.uint32(_HASH_BITS))


def _covered(network: Network, bits: int) -> int:
    """Count the values that the first so many bits of an address in a network have."""
    return 1 << max(0, bits - network.prefixlen)


def _set(words: npt.NDArray[np.uint64], bits: npt.NDArray[np.uint32]) -> None:
    ones = np.uint64(1) << (bits & np.uint32(63)).astype(np.uint64)
    np.bitwise_or.at(words, bits >> np.uint32(6), ones)
