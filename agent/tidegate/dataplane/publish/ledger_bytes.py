# SPDX-License-Identifier: Apache-2.0
"""The ledger's records as bytes: in which of the two maps each is, its key, and its value."""

import struct
from collections.abc import Mapping
from typing import Final

import msgspec

from tidegate.dataplane.kernel.maps import LEDGER_VALUE_BYTES, WIDE_LEDGER_VALUE_BYTES, read_all
from tidegate.dataplane.publish.ledger import Kind, Place, Record
from tidegate.errors import DataplaneError

_VALUE_BYTES: Final = {"ledger": LEDGER_VALUE_BYTES, "wide_ledger": WIDE_LEDGER_VALUE_BYTES}
MAPS: Final = tuple(_VALUE_BYTES)
_decoder: Final = msgspec.msgpack.Decoder(Record)


def read(maps: Mapping[str, int]) -> dict[Place, Record]:
    """Read all records.

    Raises:
        DataplaneError: a record cannot be read, for example one of a later version.
    """
    found = {key: v for name in MAPS for key, v in read_all(name, maps[name]).items()}
    return decoded(found, strict=True)


def decoded(found: Mapping[bytes, bytes], *, strict: bool) -> dict[Place, Record]:
    """Decode records from key and value bytes.

    Args:
        found: elements of the two maps.
        strict: refuse what cannot be read; else it is left out.

    Raises:
        DataplaneError: a record cannot be read, for example one of a later version.
    """
    records: dict[Place, Record] = {}
    for key, value in found.items():
        kind, id_ = struct.unpack("<II", key)
        try:
            records[Place(Kind(kind), id_)] = decode(value)
        except (ValueError, msgspec.DecodeError) as error:
            if strict:
                raise DataplaneError(
                    f"record {kind}/{id_} of the pinned ledger cannot be read ({error}): it was "
                    "written by another version of Tidegate"
                ) from error
    return records


def encoded(records: Mapping[Place, Record]) -> dict[str, dict[bytes, bytes]]:
    """Encode records as elements, by map.

    Raises:
        DataplaneError: a record is longer than its map's values.
    """
    found: dict[str, dict[bytes, bytes]] = {name: {} for name in MAPS}
    for place, record in records.items():
        name, key = where(place)
        found[name][key] = encode(place, record)
    return found


def where(place: Place) -> tuple[str, bytes]:
    """Return map and key of a record."""
    return _map_of(place), struct.pack("<II", *place)


def encode(place: Place, record: Record) -> bytes:
    """Encode the value of a record: its length in 2 bytes, MessagePack, zeros.

    Raises:
        DataplaneError: it is longer than its map's values.
    """
    payload = msgspec.msgpack.encode(record)
    size = _VALUE_BYTES[_map_of(place)]
    if len(payload) + 2 > size:
        raise DataplaneError(
            f"record {place.kind.name.lower()}/{place.id} has {len(payload)} bytes, and the ledger "
            f"takes {size - 2}"
        )
    return (struct.pack("<H", len(payload)) + payload).ljust(size, b"\0")


def decode(value: bytes) -> Record:
    """Decode the record of a value; raise ValueError or msgspec.DecodeError if it is invalid."""
    length = struct.unpack_from("<H", value)[0]
    record: Record = _decoder.decode(value[2 : 2 + length])
    return record


def _map_of(place: Place) -> str:
    return "ledger" if place.kind is Kind.BACKEND else "wide_ledger"
