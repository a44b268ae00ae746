# SPDX-License-Identifier: Apache-2.0
"""One key by itself: its shape, its document, and the rules within the document.

A reading follows from the key and its bytes alone, so one that was made before may be used again.
That is what a `Memo` is for: an agent reads all keys of its release at each change, and nearly all
are as they were. Rules between documents are in `validate`.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from tidegate.keyspace.build import build_backend, build_pool, build_vip
from tidegate.keyspace.decode import Fault, decode
from tidegate.keyspace.paths import NAME_RULE, SETTINGS_KEY, is_name
from tidegate.model.documents import (
    BackendDocument,
    PoolDocument,
    SettingsDocument,
    VipDocument,
)
from tidegate.model.values import Backend, BackendKey, Document, Pool, Vip

Kind: TypeAlias = Literal["settings", "vip", "pool", "backend", "strange"]

_SHAPES: Final = "a key is settings, vips/<vip>, pools/<pool> or pools/<pool>/backends/<backend>"
_NOBODY: Final = BackendKey("", "")


class Reading(NamedTuple):
    """What a key stands for, or everything that is wrong with it by itself.

    Attributes:
        value: the bytes that were read.
        name: the VIP's, the pool's or the backend's.
        owner: only of a backend.
    """

    value: bytes
    kind: Kind
    name: str
    owner: BackendKey
    found: Vip | Pool | Backend | SettingsDocument | list[Fault]


class Memo:
    """The readings of the last pass, one for each key that it had."""

    def __init__(self) -> None:
        self._readings: dict[str, Reading] = {}

    def read(self, documents: Mapping[str, Document]) -> Mapping[str, Reading]:
        """A reading of each of these documents, in any order; valid until the next call."""
        readings = self._readings
        for key, document in documents.items():
            known = readings.get(key)
            if known is None or known.value != document.value:
                readings[key] = read(key, document.value)
        if len(readings) > len(documents):
            for key in readings.keys() - documents.keys():
                del readings[key]
        return readings


def read(key: str, value: bytes) -> Reading:
    """Read a key, relative to its release."""
    parts = key.split("/")
    match parts:
        case [only] if only == SETTINGS_KEY:
            return Reading(value, "settings", "", _NOBODY, decode(value, SettingsDocument))
        case ["vips", name] if is_name(name):
            return Reading(value, "vip", name, _NOBODY, _vip(name, value))
        case ["pools", name] if is_name(name):
            return Reading(value, "pool", name, _NOBODY, _pool(name, value))
        case ["pools", pool, "backends", name] if is_name(pool) and is_name(name):
            owner = BackendKey(pool, name)
            return Reading(value, "backend", name, owner, _backend(owner, value))
        case ["vips", _] | ["pools", _] | ["pools", _, "backends", _]:
            reason = f"The key holds what is not a name: {NAME_RULE}."
        case _:
            reason = f"The key is not one of Tidegate's: {_SHAPES}."
    return Reading(value, "strange", "", _NOBODY, [Fault("", reason, "schema")])


def _vip(name: str, value: bytes) -> Vip | list[Fault]:
    found = decode(value, VipDocument)
    return build_vip(name, found) if isinstance(found, VipDocument) else found


def _pool(name: str, value: bytes) -> Pool | list[Fault]:
    found = decode(value, PoolDocument)
    return build_pool(name, found) if isinstance(found, PoolDocument) else found


def _backend(owner: BackendKey, value: bytes) -> Backend | list[Fault]:
    found = decode(value, BackendDocument)
    return build_backend(owner, found) if isinstance(found, BackendDocument) else found
