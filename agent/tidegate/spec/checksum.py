# SPDX-License-Identifier: Apache-2.0
"""The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3)."""

import struct


def fold(total: int) -> int:
    """Fold a sum of 16-bit words into one word, carries added back in."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    """Return the checksum of octets; an odd one at the end counts as if a zero followed."""
    padded = data + b"\0" * (len(data) % 2)
    return ~fold(sum(struct.unpack(f">{len(padded) // 2}H", padded))) & 0xFFFF


def updated(before: int, old: int, new: int) -> int:
    """Return the checksum after one aligned word has changed.

    Of data that is all zero afterwards it would be 0xFFFF, and 0 is returned (RFC 1624 section 5):
    no header with addresses is, and `answer` takes care of the echo reply that may be.
    """
    return ~fold((~before & 0xFFFF) + (~old & 0xFFFF) + new) & 0xFFFF
