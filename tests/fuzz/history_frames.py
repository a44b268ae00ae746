# SPDX-License-Identifier: Apache-2.0
"""Frames of a history's flows, packed by hand, since scapy makes a thousand in a second."""

import struct
from ipaddress import IPv4Address
from typing import Final

from fuzz.history_books import Flow, Kind
from tidegate.model.values import Address, Vip
from tidegate.spec import Verdict

_MACS: Final = bytes.fromhex("020000000001020000000004")
_FLAGS: Final[dict[Kind, int]] = {
    "SYN": 2, "SYN again": 2, "stray SYN": 2, "ACK": 16, "data": 24, "FIN": 17, "RST": 4,
}  # fmt: skip
_TCP_BYTES: Final = 20
_UDP_BYTES: Final = 8
_SHORT_HEADER: Final = b"\x40\x00"
"""A short header, and the byte of the connection id before the server id."""


def new_flow(vip: Vip, client: Address, port: int) -> Flow:
    """Return ports that a client may use, with what all frames from them begin with."""
    tcp = vip.protocol == "tcp"
    rest = _TCP_BYTES if tcp else _UDP_BYTES + 9
    number, to = (6 if tcp else 17), vip.network.network_address
    if isinstance(client, IPv4Address):
        ip = struct.pack("!BBHIBBH", 0x45, 0, 20 + rest, 0, 64, number, 0)
        head = _MACS + b"\x08\x00" + ip
    else:
        head = _MACS + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, rest, number, 64)
    ports = struct.pack("!HH", port, vip.port)
    return Flow(vip.name, head + client.packed + to.packed + ports, tcp)


def frame(flow: Flow, kind: Kind, sequence: int, server_id: bytes) -> bytes:
    """Return a packet of a flow."""
    if flow.is_tcp:
        number = sequence & 0xFFFFFFFF
        return flow.head + struct.pack("!IIBBHI", number, 1, 0x50, _FLAGS[kind], 8192, 0)
    payload = _SHORT_HEADER + server_id.ljust(8, b"\xff")
    return flow.head + struct.pack("!HH", _UDP_BYTES + len(payload), 0) + payload


def where_to(verdict: Verdict, out: bytes) -> bytes | None:
    """Return the address of the outer header of what the program left; None if it sent nothing."""
    if verdict is not Verdict.TX:
        return None
    return out[30:34] if out[12:14] == b"\x08\x00" else out[38:54]
