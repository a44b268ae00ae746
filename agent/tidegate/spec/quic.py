# SPDX-License-Identifier: Apache-2.0
"""QUIC: the server id in the connection id (draft-ietf-quic-load-balancers, RFC 8999)."""

from typing import Final

from tidegate.model.values import Quic

_LONG: Final = 0x80
_UNROUTABLE: Final = 7
"""Config rotation bits that no load balancer has a configuration for."""


def server_id(payload: bytes, quic: Quic) -> bytes | None:
    """Return the server id that a datagram carries, or None: it then goes by the table.

    None: too short, version negotiation, or a connection id that says that it is unroutable. The
    fixed bit is not looked at, since it may be greased (RFC 9287), and neither is the packet's
    type: an id that the client chose names no server but by chance (draft-ietf-quic-load-balancers
    section 4: whatever is routable is forwarded by its id).
    """
    if not payload:
        return None
    begin, end = quic.offset, quic.offset + quic.server_id_length
    if payload[0] & _LONG:
        if len(payload) < 6 or payload[1:5] == bytes(4) or payload[5] < end:  # noqa: PLR2004
            return None
        connection_id = payload[6:]
    else:
        connection_id = payload[1:]
    if len(connection_id) < end or (begin and connection_id[0] >> 5 == _UNROUTABLE):
        return None
    return connection_id[begin:end]
