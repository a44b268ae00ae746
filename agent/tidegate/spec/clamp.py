# SPDX-License-Identifier: Apache-2.0
"""The MSS clamp of a SYN (RFC 9293 section 3.7.1), with the checksum updated."""

from typing import Final

from tidegate.spec.checksum import updated

_END, _NOP, _MSS = 0, 1, 2
_LOOKED_AT: Final = 10
"""Options that are looked at; senders put the MSS first."""


def clamp_mss(segment: bytes, limit: int) -> bytes:
    """Return the TCP segment with an MSS of at most `limit`; unchanged if it is unreadable."""
    end = min((segment[12] >> 4) * 4, len(segment))
    at = 20
    for _ in range(_LOOKED_AT):
        if at + 2 > end or segment[at] == _END:
            return segment
        kind, size = segment[at], segment[at + 1]
        if kind == _NOP:
            at += 1
        elif kind != _MSS:
            if size < 2:  # noqa: PLR2004 - kind and length
                return segment
            at += size
        else:
            return _clamped(segment, at, limit, end)
    return segment


def _clamped(segment: bytes, at: int, limit: int, end: int) -> bytes:
    old = int.from_bytes(segment[at + 2 : at + 4])
    if segment[at + 1] != 4 or at + 4 > end or old <= limit:  # noqa: PLR2004 - length of the option
        return segment
    new = limit.to_bytes(2)
    words = [old, limit]
    if at % 2:  # it spans two words: each half counts in the other place
        words = [(word & 0xFF) << 8 | word >> 8 for word in words]
    check = updated(int.from_bytes(segment[16:18]), *words)
    clamped = segment[: at + 2] + new + segment[at + 4 :]
    return clamped[:16] + check.to_bytes(2) + clamped[18:]
