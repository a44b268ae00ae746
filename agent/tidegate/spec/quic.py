# SPDX-License-Identifier: Apache-2.0
"""QUIC: the server id in the connection id (draft-ietf-quic-load-balancers, RFC 8999)."""

from typing import Final

from tidegate.model.values import Quic

_LONG, _FIXED = 0x80, 0x40
_V2: Final = b"\x6b\x33\x43\xcf"
_HANDSHAKE: Final = 2
"""Types of version 1 below this one have a connection id that the client chose."""


def server_id(payload: bytes, quic: Quic) -> bytes | None:
    """Return the server id that a datagram carries, or None: it then goes by the table.

    None: not QUIC, too short, Initial or 0-RTT (whose connection id the client chose), version
    negotiation.
    """
    if not payload or not payload[0] & _FIXED:
        return None
    begin, end = quic.offset, quic.offset + quic.server_id_length
    if payload[0] & _LONG:
        if len(payload) < 6:  # noqa: PLR2004 - flags, version, length of the connection id
            return None
        version, kind = payload[1:5], payload[0] >> 4 & 3
        if version == _V2:  # RFC 9369 section 3.2: types are counted from Retry
            kind = (kind + 3) & 3
        if version == bytes(4) or kind < _HANDSHAKE or payload[5] < end:
            return None
        connection_id = payload[6:]
    else:
        connection_id = payload[1:]
    id_ = connection_id[begin:end]
    return id_ if len(id_) == quic.server_id_length else None
