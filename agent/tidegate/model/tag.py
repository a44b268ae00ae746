# SPDX-License-Identifier: Apache-2.0
"""What stands for a VIP in hashes: its tag, equal on every host, and the salt of its flows."""

import hashlib
import struct
from typing import Final

from tidegate.model.address import mapped_length, packed
from tidegate.model.generation import Identity
from tidegate.model.values import Vip

PROTOCOLS: Final = {"tcp": 6, "udp": 17}
"""IP protocol numbers."""


def vip_tag(vip: Vip) -> int:
    """Return a 64-bit hash of a VIP's network, port and protocol.

    BLAKE2b over the 16-byte network address, the prefix length in that form (1 byte), the port
    (2 bytes, network order) and the protocol number (1 byte); the first 8 bytes, little-endian.
    """
    service = struct.pack(
        ">16sBHB",
        packed(vip.network.network_address),
        mapped_length(vip.network),
        vip.port,
        PROTOCOLS[vip.protocol],
    )
    return int.from_bytes(hashlib.blake2b(service, digest_size=8).digest(), "little")


def flow_salt(identity: Identity) -> int:
    """Return a 64-bit hash that makes flows' entries of one use of a VIP id differ from the next's.

    BLAKE2b (person `tidegate-salt`) over id and incarnation (4 bytes each, little-endian); 8 bytes,
    little-endian.
    """
    use = struct.pack("<II", *identity)
    digest = hashlib.blake2b(use, digest_size=8, person=b"tidegate-salt").digest()
    return int.from_bytes(digest, "little")
