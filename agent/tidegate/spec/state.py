# SPDX-License-Identifier: Apache-2.0
"""The maps of the data plane as plain values."""

import hashlib
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import NamedTuple

from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import Generation, Identity, Table
from tidegate.model.values import Address, Vip

PROTOCOLS = {"tcp": 6, "udp": 17}


class Service(NamedTuple):
    """Key of the VIP map: 16 bytes of address (IPv4 mapped), port and protocol number."""

    address: bytes
    port: int
    protocol: int


class VipEntry(NamedTuple):
    """What the VIP map says of a service."""

    identity: Identity
    pool: int
    tag: int


class BackendEntry(NamedTuple):
    """What the backend map says of an id."""

    incarnation: int
    address: Address
    quarantined: bool


class FlowKey(NamedTuple):
    """Key of the connection table and of the SYN table; ports are 2 bytes in network order."""

    source: bytes
    vip: int
    source_port: bytes
    port: bytes


class Flow(NamedTuple):
    """Which use of which backend id a flow belongs to, and the generation that said so."""

    backend: int
    backend_incarnation: int
    vip_incarnation: int
    generation: int


class Link(NamedTuple):
    """An interface; a gateway without MAC is None."""

    mac: bytes
    gateway4: bytes | None
    gateway6: bytes | None
    mtu: int


@dataclass(frozen=True)
class Settings:
    """What a program is built with."""

    hash_keys: tuple[int, int]
    source4: IPv4Network
    source6: IPv6Network


@dataclass
class State:
    """All maps. Only the flows, the SYNs and the counters change with packets."""

    settings: Settings
    links: Mapping[int, Link]
    vips: Mapping[Service, VipEntry] = field(default_factory=dict)
    tables: Mapping[int, Table] = field(default_factory=dict)
    backends: Mapping[int, BackendEntry] = field(default_factory=dict)
    flows: dict[FlowKey, Flow] = field(default_factory=dict)
    syns: dict[FlowKey, Flow] = field(default_factory=dict)
    drops: Counter[Reason] = field(default_factory=Counter)
    decisions: Counter[tuple[int, Decision]] = field(default_factory=Counter)
    rehashed: Counter[int] = field(default_factory=Counter)
    vip_packets: Counter[int] = field(default_factory=Counter)
    vip_bytes: Counter[int] = field(default_factory=Counter)
    backend_packets: Counter[int] = field(default_factory=Counter)
    backend_bytes: Counter[int] = field(default_factory=Counter)

    def install(self, generation: Generation) -> None:
        """Puts a generation in force; flows, SYNs and counters stay."""
        self.vips = {
            service_of(placed.vip): VipEntry(
                placed.identity,
                generation.pools[placed.vip.pool].identity.id,
                vip_tag(placed.vip),
            )
            for placed in generation.vips.values()
        }
        self.tables = {placed.identity.id: placed.table for placed in generation.pools.values()}
        self.backends = {
            placed.identity.id: BackendEntry(
                placed.identity.incarnation,
                placed.backend.address,
                placed.backend.state in ("quarantine", "disabled"),
            )
            for placed in generation.backends.values()
        }


def mapped(address: Address) -> bytes:
    """16 bytes: IPv6, or IPv4 as ::ffff:a.b.c.d."""
    if isinstance(address, IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def service_of(vip: Vip) -> Service:
    """Where a VIP is found in the VIP map."""
    return Service(mapped(vip.address), vip.port, PROTOCOLS[vip.protocol])


def vip_tag(vip: Vip) -> int:
    """64-bit hash of address, port and protocol: equal on every host, unlike the VIP's id."""
    key = struct.pack(">16sHBB", *service_of(vip), 0)
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
