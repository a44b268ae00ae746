# SPDX-License-Identifier: Apache-2.0
"""The flow hash: SipHash-1-3 (Aumasson and Bernstein, INDOCRYPT 2012) over two or three words."""

from typing import Final

_MASK: Final = (1 << 64) - 1


def _rotate(x: int, bits: int) -> int:
    return ((x << bits) | (x >> (64 - bits))) & _MASK


def _round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = (v0 + v1) & _MASK
    v1 = _rotate(v1, 13) ^ v0
    v0 = _rotate(v0, 32)
    v2 = (v2 + v3) & _MASK
    v3 = _rotate(v3, 16) ^ v2
    v0 = (v0 + v3) & _MASK
    v3 = _rotate(v3, 21) ^ v0
    v2 = (v2 + v1) & _MASK
    v1 = _rotate(v1, 17) ^ v2
    return v0, v1, _rotate(v2, 32), v3


def siphash13(keys: tuple[int, int], words: list[int]) -> int:
    """64-bit hash of 64-bit words; their number is part of the initial state."""
    key0, key1 = keys
    v0 = key0 ^ 0x736F6D6570736575
    v1 = key1 ^ 0x646F72616E646F6D ^ len(words)
    v2 = key0 ^ 0x6C7967656E657261
    v3 = key1 ^ 0x7465646279746573
    for word in words:
        v3 ^= word
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def flow_hash(
    keys: tuple[int, int], source: bytes, source_port: bytes, port: bytes, tag: int, *, is_v6: bool
) -> int:
    """Hash of a flow.

    Args:
        keys: the fleet's hash key.
        source: 16 bytes, IPv4 mapped; of IPv4 only the last four count.
        source_port: 2 bytes in network order.
        port: 2 bytes in network order.
        tag: the VIP's hash, which stands for destination address, port and protocol.
        is_v6: family of the packet.
    """
    little = int.from_bytes
    words = [little(source[12:], "little")]
    if is_v6:
        words = [little(source[:8], "little"), little(source[8:], "little")]
    ports = little(port, "little") << 16 | little(source_port, "little")
    return siphash13(keys, [*words, tag ^ ports])


def slot_of(value: int, size: int) -> int:
    """The slot of a hash in a table of `size` slots: the upper 32 bits, scaled."""
    return (value >> 32) * size >> 32


def rehash(value: int) -> int:
    """The next value of Knuth's MMIX generator, from which another slot is drawn."""
    return (value * 6364136223846793005 + 1442695040888963407) & _MASK
