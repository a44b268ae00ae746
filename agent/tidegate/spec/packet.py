# SPDX-License-Identifier: Apache-2.0
"""From a frame to a packet that a VIP could be for, or None."""

from dataclasses import dataclass
from typing import Final

_ETHERNET: Final = 14
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_TCP, _UDP = 6, 17
_TRANSPORT_BYTES: Final = {_TCP: 20, _UDP: 8}


@dataclass(frozen=True)
class Packet:
    """What the decisions look at.

    Attributes:
        length: bytes of the IP packet as its header says.
        available: bytes of the frame behind the Ethernet header.
        headers: bytes of the IP and transport headers, without TCP options.
    """

    source: bytes
    destination: bytes
    protocol: int
    source_port: bytes
    port: bytes
    length: int
    available: int
    headers: int
    tos: int
    is_v6: bool
    is_fragment: bool
    is_syn: bool
    is_rst: bool


def parse(frame: bytes) -> Packet | None:
    """Reads a frame. None: not IPv4 or IPv6, truncated, a later fragment, neither TCP nor UDP."""
    if len(frame) < _ETHERNET:
        return None
    kind, ip = frame[12:14], frame[_ETHERNET:]
    if kind == _IPV4:
        return _parse4(ip)
    if kind == _IPV6:
        return _parse6(ip)
    return None


def _parse4(ip: bytes) -> Packet | None:
    if len(ip) < 20 or ip[0] >> 4 != 4 or ip[0] & 15 < 5:  # noqa: PLR2004 - RFC 791
        return None
    fragment = int.from_bytes(ip[6:8])
    if fragment & 0x1FFF:
        return None
    return _transport(
        ip,
        header=(ip[0] & 15) * 4,
        protocol=ip[9],
        source=b"\0" * 10 + b"\xff\xff" + ip[12:16],
        destination=b"\0" * 10 + b"\xff\xff" + ip[16:20],
        length=int.from_bytes(ip[2:4]),
        tos=ip[1],
        is_v6=False,
        is_fragment=bool(fragment & 0x3FFF),
    )


def _parse6(ip: bytes) -> Packet | None:
    if len(ip) < 40 or ip[0] >> 4 != 6:  # noqa: PLR2004 - RFC 8200
        return None
    return _transport(
        ip,
        header=40,
        protocol=ip[6],
        source=ip[8:24],
        destination=ip[24:40],
        length=int.from_bytes(ip[4:6]) + 40,
        tos=(ip[0] & 15) << 4 | ip[1] >> 4,
        is_v6=True,
        is_fragment=False,
    )


def _transport(
    ip: bytes,
    *,
    header: int,
    protocol: int,
    source: bytes,
    destination: bytes,
    length: int,
    tos: int,
    is_v6: bool,
    is_fragment: bool,
) -> Packet | None:
    if protocol not in _TRANSPORT_BYTES or len(ip) < header + _TRANSPORT_BYTES[protocol]:
        return None
    segment = ip[header:]
    flags = segment[13] if protocol == _TCP else 0
    syn, rst, ack = flags & 2, flags & 4, flags & 16
    return Packet(
        source=source,
        destination=destination,
        protocol=protocol,
        source_port=segment[0:2],
        port=segment[2:4],
        length=length,
        available=len(ip),
        headers=header + _TRANSPORT_BYTES[protocol],
        tos=tos,
        is_v6=is_v6,
        is_fragment=is_fragment,
        is_syn=bool(syn and not ack),
        is_rst=bool(rst),
    )
