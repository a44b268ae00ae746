# SPDX-License-Identifier: Apache-2.0
"""The tag of a VIP in the flow hash: equal on every host, unlike the VIP's id."""

import hashlib
import struct
from typing import Final

from tidegate.model.address import mapped_length, packed
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
