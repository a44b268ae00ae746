# SPDX-License-Identifier: Apache-2.0
"""Frames for the fuzzer: well made ones of every kind that the balancer knows, and damaged ones.

They are put together by hand, since scapy takes a millisecond for each. The flows are few, so that
packets meet the entries of others: fragments their first one, ICMP errors the flow that they quote.
"""

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import Final

from tidegate.model.values import Address

CLIENTS4: Final = ("10.77.0.9", "10.77.0.10", "10.78.0.9", "203.0.113.200")
CLIENTS6: Final = ("fd77::9", "fd77::a", "fd77:1::9", "fd78::9")
NO_HOSTS4: Final = ("0.0.0.0", "127.0.0.1", "224.0.0.9", "255.255.255.255")  # noqa: S104
NO_HOSTS6: Final = ("::", "::1", "ff02::1")
OTHERS: Final = ("10.99.0.77", "fd99::77")
TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
_ETHER: Final = bytes.fromhex("020000000001020000000004")
_HOP, _ROUTING, _FRAGMENT, _AUTH, _OPTIONS = 0, 43, 44, 51, 60
_TAGS: Final = (b"\x81\x00", b"\x88\xa8", b"\x91\x00")
_EDGES: Final = (0, 1, 4, 5, 0x0F, 0x20, 0x40, 0x45, 0x60, 0x7F, 0x80, 0xFE, 0xFF)


@dataclass(frozen=True)
class Target:
    """Where a packet goes: a VIP, or nobody's address.

    Attributes:
        quic_offset: bytes of a QUIC connection id before the server id.
        server_ids: those that backends have.
    """

    address: Address
    port: int
    protocol: int
    quic_offset: int = 0
    server_ids: tuple[bytes, ...] = ()


def checksum(data: bytes) -> int:
    """Compute the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Frames:
    """Draws frames for some targets."""

    def __init__(self, chance: random.Random, targets: Sequence[Target]) -> None:
        self._chance = chance
        self._targets = targets
        self._last = _ETHER + b"\x08\x00"

    def draw(self) -> bytes:
        """Draw a frame; every other one is damaged."""
        frame = self._good()
        before, self._last = self._last, frame
        if self._chance.random() < 0.5:
            return frame
        data = bytearray(frame)
        for _ in range(self._chance.choice([1, 1, 1, 2, 4])):
            self._damage(data, before)
        return bytes(data[:3000])

    def _good(self) -> bytes:
        chance = self._chance
        if chance.random() < 0.02:
            return chance.randbytes(chance.choice([0, 1, 13, 14, 33, 34, 60, 300]))
        target = chance.choice(self._targets)
        if chance.random() < 0.05:
            target = Target(ip_address(chance.choice(OTHERS)), target.port, target.protocol)
        is_v4 = target.address.version == 4
        client = ip_address(chance.choice(CLIENTS4 if is_v4 else CLIENTS6))
        if chance.random() < 0.05:
            client = ip_address(chance.choice(NO_HOSTS4 if is_v4 else NO_HOSTS6))
        kind = chance.random()
        if kind < 0.2:
            protocol, payload = self._icmp(client, target)
        elif kind < 0.25:
            protocol, payload = (
                chance.choice([4, 41, 47, 50, 59, 255]),
                self._segment(client, target)[1],
            )
        else:
            protocol, payload = self._segment(client, target)
        packet = (self._ip4 if is_v4 else self._ip6)(client, target.address, protocol, payload)
        tags = b"".join(
            chance.choice(_TAGS) + chance.randbytes(2)
            for _ in range(chance.choice([0] * 17 + [1, 2, 3]))
        )
        padding = b"\0" * chance.choice([0, 0, 0, 6, 18])
        return _ETHER + tags + (b"\x08\x00" if is_v4 else b"\x86\xdd") + packet + padding

    def _segment(self, client: Address, target: Target) -> tuple[int, bytes]:
        """Draw a TCP segment or UDP datagram from one of a few ports."""
        chance = self._chance
        source = 40000 + chance.randrange(12)
        port = target.port or chance.choice([80, 8080])
        if target.protocol == TCP:
            flags = chance.choice([2, 2, 16, 16, 24, 17, 4, 18, 20, 0xC2])
            options = chance.choice(
                [
                    b"",
                    b"\2\4\5\xb4",
                    b"\1\1\1\2\4\5\xb4\0",
                    b"\2\4\2\0\1\3\3\7",
                    b"\2\5\5\xb4\0\0\0\0",
                ]
            )
            number = chance.choice([0, 1, 1, 2, 0x10000, 0x20001])
            words = (20 + len(options)) // 4
            segment = struct.pack(
                ">HHIIBBHHH", source, port, number, 2, words << 4, flags, 512, 0, 0
            ) + (options + self._data())
            at = 16
        else:
            is_quic = chance.random() < (0.8 if target.server_ids else 0.4)
            data = self._quic(target) if is_quic else self._data()
            segment = struct.pack(">HHHH", source, port, 8 + len(data), 0) + data
            at = 6
        total = checksum(_pseudo(client, target.address, target.protocol, len(segment)) + segment)
        if target.protocol == UDP and chance.random() < 0.1:
            total = 0  # sent without a checksum (RFC 768)
        return target.protocol, segment[:at] + total.to_bytes(2) + segment[at + 2 :]

    def _data(self) -> bytes:
        # Around what fits 1500 bytes: 20 to 80 bytes of headers inside and out.
        return b"x" * self._chance.choice(
            [
                0,
                1,
                2,
                10,
                10,
                100,
                100,
                536,
                1000,
                1200,
                1380,
                1399,
                1400,
                1401,
                1420,
                1419,
                1421,
                1440,
                1441,
                1460,
            ]
        )

    def _quic(self, target: Target) -> bytes:
        """Draw a QUIC header (RFC 9000 section 17): long with its ids, or short."""
        chance = self._chance
        if target.server_ids and chance.random() < 0.7:
            id_ = chance.randbytes(target.quic_offset) + chance.choice(target.server_ids)
        else:
            id_ = chance.choice([b"", b"\x01", b"\0\x07", b"\x40" + chance.randbytes(2), bytes(8)])
        id_ += chance.randbytes(chance.choice([0, 0, 4, 8, 12]))
        if chance.random() < 0.5:
            return bytes([0x40 | chance.randrange(64)]) + id_ + self._data()
        version = chance.choice([b"\0\0\0\1", b"\x6b\x33\x43\xcf", b"\0\0\0\0"])
        first = bytes([0xC0 | chance.randrange(64)])
        return first + version + bytes([len(id_)]) + id_ + b"\x08" + bytes(8) + self._data()

    def _icmp(self, client: Address, target: Target) -> tuple[int, bytes]:
        """Draw a ping, or an error that quotes what a backend sent to the client as the VIP."""
        chance = self._chance
        is_v4 = client.version == 4
        if chance.random() < 0.3:
            kind = chance.choice([8, 8, 0, 13] if is_v4 else [128, 128, 129, 135, 136])
            message = struct.pack(">BBHHH", kind, 0, 0, chance.randrange(65536), 1) + self._data()
        else:
            _, segment = self._segment(target.address, Target(client, 0, target.protocol))
            ports = struct.pack(">HH", target.port or 80, 40000 + chance.randrange(12))
            quoted = (self._ip4 if is_v4 else self._ip6)(
                target.address, client, target.protocol, ports + segment[4:]
            )
            quoted = quoted[: chance.choice([len(quoted), 28, 48, 27, 19, 60, 576, 1232])]
            kind = chance.choice([3, 3, 11, 12, 4, 5] if is_v4 else [1, 2, 2, 3, 4, 5])
            code = chance.choice([0, 1, 3, 4, 4])
            mtu = chance.choice([0, 67, 68, 575, 576, 1279, 1280, 1400, 1500, 9000])
            message = struct.pack(">BBHI", kind, code, 0, mtu) + quoted
        protocol = ICMP if is_v4 else ICMP6
        head = b"" if is_v4 else _pseudo(client, target.address, protocol, len(message))
        total = checksum(head + message)
        return protocol, message[:2] + total.to_bytes(2) + message[4:]

    def _ip4(self, source: Address, to: Address, protocol: int, payload: bytes) -> bytes:
        chance = self._chance
        options = b""
        if chance.random() < 0.1:
            options = chance.choice(
                [b"\1" * 4, b"\7\7\4\0\0\0\0\0", b"\x94\4\0\0", b"\1" * 40, b"\x44\x50\5\0"]
            )
        fragment, payload = self._fragment4(payload)
        length = 20 + len(options) + len(payload)
        fields = [
            4 << 4 | 5 + len(options) // 4,
            chance.choice([0, 0, 1, 2, 3, 0xB8]),
            length,
            0x7000 + chance.randrange(4),
            fragment,
            chance.choice([1, 64, 255]),
        ]
        bare = struct.pack(">BBHHHBBH", *fields, protocol, 0) + source.packed + to.packed + options
        return bare[:10] + checksum(bare).to_bytes(2) + bare[12:] + payload

    def _fragment4(self, payload: bytes) -> tuple[int, bytes]:
        """Draw flags and offset: mostly a whole datagram, else its first, a middle or last part."""
        chance = self._chance
        if chance.random() < 0.85:
            return chance.choice([0, 0x4000]), payload
        cut = max(8, len(payload) // 2 & ~7)
        return chance.choice(
            [
                (0x2000, payload[:cut]),
                (0x2000 | cut // 8, payload[cut:]),
                (cut // 8, payload[cut:]),
                (chance.randrange(65536), payload),
            ]
        )

    def _ip6(self, source: Address, to: Address, protocol: int, payload: bytes) -> bytes:
        chance = self._chance
        if chance.random() < 0.25:
            for _ in range(chance.choice([1, 1, 2, 3, 4, 6, 9])):
                protocol, payload = self._extension(protocol, payload)
        first = 6 << 28 | chance.choice([0, 1, 2, 0xB8]) << 20 | chance.randrange(1 << 20)
        head = struct.pack(">IHBB", first, len(payload), protocol, chance.choice([1, 64, 255]))
        return head + source.packed + to.packed + payload

    def _extension(self, protocol: int, payload: bytes) -> tuple[int, bytes]:
        """Draw a payload behind one extension header (RFC 8200 section 4)."""
        chance = self._chance
        kind = chance.choice([_HOP, _ROUTING, _FRAGMENT, _FRAGMENT, _AUTH, _OPTIONS])
        if kind == _FRAGMENT:
            cut = max(8, len(payload) // 2 & ~7)
            offset, part = chance.choice(
                [(0, payload), (1, payload[:cut]), (cut | 1, payload[cut:]), (cut, payload[cut:])]
            )
            number = 0x70000000 + chance.randrange(4)
            return kind, struct.pack(">BBHI", protocol, 0, offset, number) + part
        units = chance.choice([0, 0, 1, 3])
        if kind == _AUTH:  # in units of 4 bytes, minus 2 (RFC 4302 section 2.2)
            return kind, bytes([protocol, units * 2]) + bytes(units * 8 + 6) + payload
        return kind, bytes([protocol, units, 1, units * 8 + 4]) + bytes(units * 8 + 4) + payload

    def _damage(self, data: bytearray, other: bytes) -> None:
        """Damage a frame in place, once."""
        chance = self._chance
        kind = chance.choice(
            ["byte", "byte", "byte", "bit", "word", "cut", "grow", "splice", "gap"]
        )
        at = chance.randrange(min(len(data), 120)) if data else 0
        # Behind the MAC addresses, which decide nothing.
        at = max(at, min(12, len(data) - 1))
        match kind:
            case "byte" if data:
                data[at] = chance.choice([*_EDGES, chance.randrange(256)])
            case "bit" if data:
                data[at] ^= 1 << chance.randrange(8)
            case "word" if data:
                data[at : at + 2] = chance.choice([0, 1, 0xFFFF, chance.randrange(65536)]).to_bytes(
                    2
                )
            case "cut":
                del data[chance.randrange(len(data) + 1) if chance.random() < 0.5 else at :]
            case "grow":
                data += chance.randbytes(chance.choice([1, 2, 8, 40]))
            case "splice":
                data[at:] = other[at:]
            case "gap":
                del data[at : at + chance.choice([1, 2, 4, 8, 20])]


def _pseudo(source: Address, to: Address, protocol: int, length: int) -> bytes:
    if isinstance(source, IPv4Address):
        return source.packed + to.packed + struct.pack(">BBH", 0, protocol, length)
    return source.packed + to.packed + struct.pack(">II", length, protocol)
