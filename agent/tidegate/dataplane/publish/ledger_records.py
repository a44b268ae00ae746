# SPDX-License-Identifier: Apache-2.0
"""The records of the ledger, as they are written: what each id stands for."""

from enum import IntEnum
from typing import NamedTuple, TypeAlias

import msgspec

from tidegate.model.checks import Health
from tidegate.model.document_types import (
    BackendState,
    Encapsulation,
    HashFields,
    Protocol,
    Tracking,
    Unserved,
)


class Kind(IntEnum):
    """What an id names."""

    META = 0
    VIP = 1
    POOL = 2
    BACKEND = 3

    # An enum hashes its name, in Python; places are looked up thousands of times for a change.
    __hash__ = int.__hash__


class _Record(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Fields are appended, never reordered: an older agent's records must stay readable."""


class MetaRecord(_Record, frozen=True, array_like=True, tag="meta"):
    """The last generation whose publishing was completed."""

    number: int
    revision: int
    hash_seed: str | None = None
    release: str = ""
    pointer: str = ""
    attempt: int = 0
    """The last generation whose publishing was begun: its number is spent, complete or not."""
    hold: str = ""
    """Why an operator of this host has frozen it."""


class VipRecord(_Record, frozen=True, array_like=True, tag="vip"):
    """A VIP in force. `address` may have a prefix length; routes and `unserved` have pools' ids.

    `unserved_packets` is the VIP's option `unserved`.
    """

    incarnation: int
    name: str
    address: str
    port: int
    protocol: Protocol
    pool: str
    tracking: Tracking = "full"
    hash: HashFields = "5-tuple"
    udp_idle_timeout: int = 60
    insert_limit: int = 100_000
    syn_limit: tuple[int, int, int] | None = None
    mss_clamp: int | None = None
    echo: bool = True
    quic: tuple[int, int] | None = None
    source_routes: tuple[tuple[bytes, int], ...] = ()
    deny: tuple[bytes, ...] = ()
    flow_sampling: int = 0
    sorry_pool: str | None = None
    unserved: tuple[int, ...] = ()
    tcp_idle_timeout: int = 4500
    moved: bool = False
    unserved_packets: Unserved = "drop"


class PoolRecord(_Record, frozen=True, array_like=True, tag="pool"):
    """A pool in force."""

    incarnation: int
    name: str
    deregistration_delay: int
    transition_window: int
    encapsulation: Encapsulation = "ipip"
    gue_port: int = 6080
    mtu: int | None = None
    slow_start: int = 0
    slow_start_steps: int = 8
    max_removed_percent: int | None = None
    health: Health | None = None
    levels: tuple[tuple[int, int], ...] = ()


class BackendRecord(_Record, frozen=True, array_like=True, tag="backend"):
    """A backend in force or draining.

    `effective_weight` and `reachable` are None in records from before slow start.
    """

    incarnation: int
    pool: str
    name: str
    address: str
    weight: int
    state: BackendState
    retire_at: int | None
    quic_server_id: bytes = b""
    starts_at: int | None = None
    drain_deadline: int | None = None
    effective_weight: int | None = None
    reachable: bool | None = None
    is_out: bool = False
    joins_at: int | None = None


class FreedRecord(_Record, frozen=True, array_like=True, tag="freed"):
    """A freed id, which is not reused before its cooldown has passed; a VIP's has its endpoint."""

    incarnation: int
    at: int
    endpoint: tuple[str, int, Protocol] | None = None


Record: TypeAlias = MetaRecord | VipRecord | PoolRecord | BackendRecord | FreedRecord


class Place(NamedTuple):
    """Key of the ledger."""

    kind: Kind
    id: int
