# SPDX-License-Identifier: Apache-2.0
"""The flow hash: SipHash-1-3 (Aumasson and Bernstein, INDOCRYPT 2012) over two to five words."""

from dataclasses import replace
from typing import Final

from tidegate.spec.packet import Packet
from tidegate.spec.state import VipEntry

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
    """Return the 64-bit hash of 64-bit words; their number is part of the initial state."""
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


def flow_hash(keys: tuple[int, int], packet: Packet, entry: VipEntry) -> int:
    """Return the hash of a packet's flow.

    It covers the source (32 bits of IPv4, 128 of IPv6), then the VIP's tag with the ports; then,
    for a network VIP, the destination address. A VIP that keeps a client on one backend leaves out
    what differs between the client's flows.
    """
    source = packet.source
    words = [_word(source[:8]), _word(source[8:])] if packet.is_v6 else [_word(source[12:])]
    fields = entry.vip.hash
    ports = _word(packet.port) << 16 if fields != "source" else 0
    if fields == "5-tuple":
        ports |= _word(packet.source_port)
    words.append(entry.tag ^ ports)
    if entry.vip.is_network and fields != "source":
        words += [_word(packet.destination[:8]), _word(packet.destination[8:])]
    return siphash13(keys, words)


def _word(octets: bytes) -> int:
    """Return octets in network order as the number that a little-endian machine loads."""
    return int.from_bytes(octets, "little")


def tracking_key(keys: tuple[int, int], packet: Packet, entry: VipEntry, hash_: int) -> int:
    """Return the key of a packet's flow in the connection table and among the marks.

    It is the flow hash, over addresses and ports also where the VIP leaves some of them out of it,
    and is another one for each use of a VIP id.
    """
    if entry.vip.hash != "5-tuple":
        whole = entry._replace(vip=replace(entry.vip, hash="5-tuple"))
        hash_ = flow_hash(keys, packet, whole)
    return hash_ ^ entry.salt


def fragment_key(keys: tuple[int, int], packet: Packet) -> int:
    """Return the key of a datagram in the fragment table: addresses, id and protocol.

    In IPv6 the next header of a later fragment need not be that of the first, so none counts.
    """
    protocol = 0 if packet.is_v6 else packet.protocol
    words = [packet.source[:8], packet.source[8:], packet.destination[:8], packet.destination[8:]]
    id_ = _word(packet.fragment_id) | protocol << 32
    return siphash13(keys, [*map(_word, words), id_])


def prefix_hash(keys: tuple[int, int], packet: Packet, bits: tuple[int, int], salt: int) -> int:
    """Return the hash of a packet's source prefix, for the limits on prefixes.

    Args:
        keys: of the hash.
        packet: whose source it is.
        bits: length of the prefix, in IPv4 and in IPv6.
        salt: of the VIP that has the limit; 0: all VIPs share it.
    """
    length = bits[1] if packet.is_v6 else 96 + bits[0]
    mask = (1 << 128) - (1 << (128 - length))
    prefix = (int.from_bytes(packet.source) & mask).to_bytes(16)
    return siphash13(keys, [_word(prefix[:8]), _word(prefix[8:]), salt])


def slot_of(hash_: int, size: int) -> int:
    """Return the slot of a hash in a table of `size` slots: the upper 32 bits, scaled."""
    return (hash_ >> 32) * size >> 32


def rehash(hash_: int) -> int:
    """Return the next value of Knuth's MMIX generator, from which another slot is drawn."""
    return (hash_ * 6364136223846793005 + 1442695040888963407) & _MASK
