# SPDX-License-Identifier: Apache-2.0
"""What the ids in the other maps stand for: a pinned map of records that no packet reads.

With it an agent that starts over knows every name, id, incarnation and document in force without
asking etcd, and a crash cannot part the names from the tables: both live as long as the pins.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from ipaddress import ip_address
from typing import Final, NamedTuple, TypeAlias

import msgspec

from tidegate.dataplane import syscalls as bpf
from tidegate.dataplane.maps import LEDGER_VALUE_BYTES
from tidegate.errors import DataplaneError
from tidegate.model.constants import MAX_BACKENDS, MAX_POOLS, MAX_VIPS
from tidegate.model.documents import BackendState, Protocol
from tidegate.model.generation import (
    Freed,
    FreedIds,
    Generation,
    Identity,
    PlacedBackend,
    PlacedVip,
)
from tidegate.model.values import Backend, BackendKey, Pool, Vip

_CAPACITY: Final = MAX_VIPS + MAX_POOLS + MAX_BACKENDS


class Kind(IntEnum):
    """What an id names."""

    META = 0
    VIP = 1
    POOL = 2
    BACKEND = 3


class _Record(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Fields are appended, never reordered: an older agent's records must stay readable."""


class MetaRecord(_Record, frozen=True, array_like=True, tag="meta"):
    """The last generation whose publishing was completed."""

    number: int
    revision: int


class VipRecord(_Record, frozen=True, array_like=True, tag="vip"):
    """A VIP in force."""

    incarnation: int
    name: str
    address: str
    port: int
    protocol: Protocol
    pool: str


class PoolRecord(_Record, frozen=True, array_like=True, tag="pool"):
    """A pool in force."""

    incarnation: int
    name: str
    deregistration_delay: int
    transition_window: int


class BackendRecord(_Record, frozen=True, array_like=True, tag="backend"):
    """A backend in force or draining."""

    incarnation: int
    pool: str
    name: str
    address: str
    weight: int
    state: BackendState
    retire_at: int | None


class FreedRecord(_Record, frozen=True, array_like=True, tag="freed"):
    """An id at rest."""

    incarnation: int
    at: int


Record: TypeAlias = MetaRecord | VipRecord | PoolRecord | BackendRecord | FreedRecord


class Place(NamedTuple):
    """Key of the ledger."""

    kind: Kind
    id: int


_decoder: Final = msgspec.msgpack.Decoder(Record)


def records(generation: Generation) -> dict[Place, Record]:
    """What the ledger holds when this generation is in force, but for the meta record."""
    found: dict[Place, Record] = {}
    for vip in generation.vips.values():
        found[Place(Kind.VIP, vip.identity.id)] = _vip_record(vip)
    for name, placed in generation.pools.items():
        found[Place(Kind.POOL, placed.identity.id)] = PoolRecord(
            placed.identity.incarnation,
            name,
            placed.pool.deregistration_delay,
            placed.pool.transition_window,
        )
    for backend in generation.backends.values():
        found[Place(Kind.BACKEND, backend.identity.id)] = _backend_record(backend)
    for kind, freed in (
        (Kind.VIP, generation.freed.vips),
        (Kind.POOL, generation.freed.pools),
        (Kind.BACKEND, generation.freed.backends),
    ):
        for id_, last in freed.items():
            found[Place(kind, id_)] = FreedRecord(last.incarnation, last.at)
    return found


def _vip_record(placed: PlacedVip) -> VipRecord:
    vip = placed.vip
    return VipRecord(
        placed.identity.incarnation, vip.name, str(vip.address), vip.port, vip.protocol, vip.pool
    )


def _backend_record(placed: PlacedBackend) -> BackendRecord:
    backend = placed.backend
    return BackendRecord(
        placed.identity.incarnation,
        backend.pool,
        backend.name,
        str(backend.address),
        backend.weight,
        backend.state,
        placed.retire_at,
    )


class Contents(NamedTuple):
    """The ledger as values."""

    meta: MetaRecord
    vips: Mapping[str, PlacedVip]
    pools: Mapping[str, tuple[Identity, Pool]]
    backends: Mapping[BackendKey, PlacedBackend]
    freed: FreedIds


def contents(found: Mapping[Place, Record]) -> Contents:
    """The values that a ledger's records stand for."""
    meta = MetaRecord(0, 0)
    vips: dict[str, PlacedVip] = {}
    pools: dict[str, tuple[Identity, Pool]] = {}
    backends: dict[BackendKey, PlacedBackend] = {}
    freed: dict[Kind, dict[int, Freed]] = {kind: {} for kind in Kind}
    for place, record in found.items():
        match record:
            case MetaRecord():
                meta = record
            case VipRecord(incarnation, name, address, port, protocol, pool):
                vip = Vip(name, ip_address(address), port, protocol, pool)
                vips[name] = PlacedVip(Identity(place.id, incarnation), vip)
            case PoolRecord(incarnation, name, delay, window):
                pools[name] = (Identity(place.id, incarnation), Pool(name, delay, window))
            case BackendRecord(incarnation, pool, name, address, weight, state, retire_at):
                backend = Backend(pool, name, ip_address(address), weight, state)
                identity = Identity(place.id, incarnation)
                backends[backend.key] = PlacedBackend(identity, backend, retire_at)
            case FreedRecord(incarnation, at):
                freed[place.kind][place.id] = Freed(incarnation, at)
    return Contents(
        meta,
        vips,
        pools,
        backends,
        FreedIds(freed[Kind.VIP], freed[Kind.POOL], freed[Kind.BACKEND]),
    )


def read(fd: int) -> dict[Place, Record]:
    """All records.

    Raises:
        DataplaneError: a record cannot be read, for example one of a later version.
    """
    keys, values, count = bpf.map_items(fd, 8, LEDGER_VALUE_BYTES, _CAPACITY)
    found: dict[Place, Record] = {}
    for i in range(count):
        kind, id_ = struct.unpack_from("<II", keys, 8 * i)
        at = LEDGER_VALUE_BYTES * i
        length = struct.unpack_from("<H", values, at)[0]
        try:
            found[Place(Kind(kind), id_)] = _decoder.decode(values[at + 2 : at + 2 + length])
        except (ValueError, msgspec.DecodeError) as error:
            raise DataplaneError(
                f"record {kind}/{id_} of the pinned ledger cannot be read ({error}): it was "
                "written by another version of Tidegate"
            ) from error
    return found


def write(fd: int, changed: Mapping[Place, Record]) -> None:
    """Writes records in one call."""
    keys = b"".join(struct.pack("<II", *place) for place in changed)
    bpf.map_update_batch(fd, keys, b"".join(_values(changed.values())), len(changed))


def _values(found: Iterable[Record]) -> Iterator[bytes]:
    for record in found:
        payload = msgspec.msgpack.encode(record)
        yield (struct.pack("<H", len(payload)) + payload).ljust(LEDGER_VALUE_BYTES, b"\0")
