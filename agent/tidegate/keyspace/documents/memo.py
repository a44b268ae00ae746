# SPDX-License-Identifier: Apache-2.0
"""One key by itself: its shape, its document, and the rules within the document.

A reading follows from the key and its bytes alone, so one that was made before may be used again.
That is what a `Memo` is for: an agent reads all keys of its release at each change, and nearly all
are as they were. Rules between documents are in `validate`.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from tidegate.keyspace.documents.build import build_backend, build_pool, build_vip
from tidegate.keyspace.documents.decode import Fault, decode
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
        document: what was read.
        name: the VIP's, the pool's or the backend's.
        owner: only of a backend.
    """

    document: Document
    kind: Kind
    name: str
    owner: BackendKey
    found: Vip | Pool | Backend | SettingsDocument | list[Fault]


class Memo:
    """The readings of the last pass, one for each key that it had, and what the good ones say.

    Attributes:
        vips: by name, in any order; so are the others.
        refused: readings of keys that are refused for themselves, by key.
        hash_seed: what `settings` says; None if it says nothing or is refused.
    """

    def __init__(self) -> None:
        self._readings: dict[str, Reading] = {}
        self.vips: dict[str, Vip] = {}
        self.pools: dict[str, Pool] = {}
        self.backends: dict[BackendKey, Backend] = {}
        self.refused: dict[str, Reading] = {}
        self.hash_seed: str | None = None

    def read(self, documents: Mapping[str, Document]) -> None:
        """Makes this the readings of these documents, and of no others."""
        readings = self._readings
        for key, document in documents.items():
            known = readings.get(key)
            if known is None:
                self._take(key, read(key, document))
            elif known.document is not document:
                if known.document.value != document.value:
                    self._forget(key, known)
                    known = read(key, document)
                self._take(key, known._replace(document=document))
        if len(readings) > len(documents):
            for key in readings.keys() - documents.keys():
                self._forget(key, readings[key])
                del readings[key]

    def _take(self, key: str, reading: Reading) -> None:
        self._readings[key] = reading
        match reading.found:
            case Backend() as backend:
                self.backends[reading.owner] = backend
            case Vip() as vip:
                self.vips[reading.name] = vip
            case Pool() as pool:
                self.pools[reading.name] = pool
            case SettingsDocument(hash_seed=hash_seed):
                self.hash_seed = hash_seed
            case _:
                self.refused[key] = reading

    def _forget(self, key: str, reading: Reading) -> None:
        match reading.found:
            case Backend():
                del self.backends[reading.owner]
            case Vip():
                del self.vips[reading.name]
            case Pool():
                del self.pools[reading.name]
            case SettingsDocument():
                self.hash_seed = None
            case _:
                del self.refused[key]


def read(key: str, document: Document) -> Reading:
    """Read a key, relative to its release."""
    value = document.value
    match key.split("/"):
        case [only] if only == SETTINGS_KEY:
            return Reading(document, "settings", "", _NOBODY, decode(value, SettingsDocument))
        case ["vips", name] if is_name(name):
            return Reading(document, "vip", name, _NOBODY, _vip(name, value))
        case ["pools", name] if is_name(name):
            return Reading(document, "pool", name, _NOBODY, _pool(name, value))
        case ["pools", pool, "backends", name] if is_name(pool) and is_name(name):
            owner = BackendKey(pool, name)
            return Reading(document, "backend", name, owner, _backend(owner, value))
        case ["vips", _] | ["pools", _] | ["pools", _, "backends", _]:
            reason = f"The key holds what is not a name: {NAME_RULE}."
        case _:
            reason = f"The key is not one of Tidegate's: {_SHAPES}."
    return Reading(document, "strange", "", _NOBODY, [Fault("", reason, "schema")])


def _vip(name: str, value: bytes) -> Vip | list[Fault]:
    found = decode(value, VipDocument)
    return build_vip(name, found) if isinstance(found, VipDocument) else found


def _pool(name: str, value: bytes) -> Pool | list[Fault]:
    found = decode(value, PoolDocument)
    return build_pool(name, found) if isinstance(found, PoolDocument) else found


def _backend(owner: BackendKey, value: bytes) -> Backend | list[Fault]:
    found = decode(value, BackendDocument)
    return build_backend(owner, found) if isinstance(found, BackendDocument) else found
