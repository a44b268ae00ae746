# SPDX-License-Identifier: Apache-2.0
"""Parse one key by itself: its shape, its document, and the rules within the document.

A result follows from the key and its bytes alone, so it can be cached. `ParseCache` does that: an
agent reads all keys of its release at each change, and nearly all are unchanged. Rules between
documents are in `validate`.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from tidegate.keyspace.documents.build import build_backend, build_pool, build_vip
from tidegate.keyspace.documents.decode import Fault, decode_kept
from tidegate.keyspace.paths import NAME_RULE, SETTINGS_KEY, is_name
from tidegate.model.documents import BackendDocument, PoolDocument, SettingsDocument, VipDocument
from tidegate.model.grouped import Edits
from tidegate.model.values import (
    Address,
    Backend,
    BackendKey,
    ByPool,
    Document,
    Documents,
    Pool,
    Vip,
)

Kind: TypeAlias = Literal["settings", "vip", "pool", "backend", "unknown"]

_SHAPES: Final = "a key is settings, vips/<vip>, pools/<pool> or pools/<pool>/backends/<backend>"
_NO_OWNER: Final = BackendKey("", "")


class ParsedKey(NamedTuple):
    """What a key stands for, or everything that is wrong with it by itself.

    Attributes:
        document: what was parsed.
        name: the VIP's, the pool's or the backend's.
        owner: only of a backend.
    """

    document: Document
    kind: Kind
    name: str
    owner: BackendKey
    found: Vip | Pool | Backend | SettingsDocument | list[Fault]


class ParseCache:
    """The parsed keys of the last pass, and the values of the valid ones.

    Attributes:
        vips: by name, in any order; so are the others.
        backends: shares the groups of pools of which no document changed with the last pass.
        refused: keys that are refused for themselves, by key.
        hash_seed: that of `settings`; None if it has none or is refused.
        shared: addresses and server ids that more than one backend of a pool has.
        sound: of the last pass, by pool, backends whose addresses were found to be in order.
        sound_beside: what else that followed from.
    """

    def __init__(self) -> None:
        self._documents = Documents()
        self._parsed: dict[str, ParsedKey] = {}
        self.vips: dict[str, Vip] = {}
        self.pools: dict[str, Pool] = {}
        self.backends: ByPool[Backend] = ByPool()
        self.refused: dict[str, ParsedKey] = {}
        self.hash_seed: str | None = None
        self._having: Counter[tuple[str, Address | bytes]] = Counter()
        self.shared: set[tuple[str, Address | bytes]] = set()
        self.sound: dict[str, tuple[Mapping[BackendKey, Backend], Pool]] = {}
        self.sound_beside: object = None

    def update(self, documents: Mapping[str, Document]) -> None:
        """Parse what is new or changed among these documents, and forget all others."""
        last, self._documents = self._documents, Documents.of(documents)
        backends = Edits(self.backends)
        for name in self._documents.differing(last):
            self._update_group(last.group(name), self._documents.group(name), backends)
        self.backends = ByPool.of(backends.frozen())

    def _update_group(
        self,
        before: Mapping[str, Document],
        after: Mapping[str, Document],
        backends: Edits[BackendKey, Backend],
    ) -> None:
        parsed = self._parsed
        for key, document in after.items():
            known = parsed.get(key)
            if known is None:
                self._add(key, parse_key(key, document), backends)
            elif known.document is not document:
                self._forget(key, known, backends)
                if (
                    known.document.value != document.value
                    or known.document.refused != document.refused
                ):
                    known = parse_key(key, document)
                self._add(key, known._replace(document=document), backends)
        for key in before.keys() - after.keys():
            self._forget(key, parsed.pop(key), backends)

    def _add(self, key: str, parsed: ParsedKey, backends: Edits[BackendKey, Backend]) -> None:
        self._parsed[key] = parsed
        match parsed.found:
            case Backend() as backend:
                backends[parsed.owner] = backend
                self._count(backend, 1)
            case Vip() as vip:
                self.vips[parsed.name] = vip
            case Pool() as pool:
                self.pools[parsed.name] = pool
            case SettingsDocument(hash_seed=hash_seed):
                self.hash_seed = hash_seed
            case _:
                self.refused[key] = parsed

    def _forget(self, key: str, parsed: ParsedKey, backends: Edits[BackendKey, Backend]) -> None:
        match parsed.found:
            case Backend() as backend:
                del backends[parsed.owner]
                self._count(backend, -1)
            case Vip():
                del self.vips[parsed.name]
            case Pool():
                del self.pools[parsed.name]
            case SettingsDocument():
                self.hash_seed = None
            case _:
                del self.refused[key]

    def _count(self, backend: Backend, by: int) -> None:
        self._count_place((backend.pool, backend.address), by)
        if backend.quic_server_id:
            self._count_place((backend.pool, backend.quic_server_id), by)

    def _count_place(self, place: tuple[str, Address | bytes], by: int) -> None:
        self._having[place] += by
        if self._having[place] > 1:
            self.shared.add(place)
        else:
            self.shared.discard(place)
        if not self._having[place]:
            del self._having[place]


def parse_key(key: str, document: Document) -> ParsedKey:
    """Parse a key, relative to its release."""
    match key.split("/"):
        case [only] if only == SETTINGS_KEY:
            return ParsedKey(
                document, "settings", "", _NO_OWNER, decode_kept(document, SettingsDocument)
            )
        case ["vips", name] if is_name(name):
            return ParsedKey(document, "vip", name, _NO_OWNER, _vip(name, document))
        case ["pools", name] if is_name(name):
            return ParsedKey(document, "pool", name, _NO_OWNER, _pool(name, document))
        case ["pools", pool, "backends", name] if is_name(pool) and is_name(name):
            owner = BackendKey(pool, name)
            return ParsedKey(document, "backend", name, owner, _backend(owner, document))
        case ["vips", _] | ["pools", _] | ["pools", _, "backends", _]:
            reason = f"a part of the key is not a name: {NAME_RULE}"
        case [""]:
            reason = f"the key has no name behind the release's prefix; {_SHAPES}"
        case _:
            reason = f"the key is not one of Tidegate's; {_SHAPES}"
    return ParsedKey(document, "unknown", "", _NO_OWNER, [Fault("", reason, "schema")])


def _vip(name: str, document: Document) -> Vip | list[Fault]:
    found = decode_kept(document, VipDocument)
    return build_vip(name, found) if isinstance(found, VipDocument) else found


def _pool(name: str, document: Document) -> Pool | list[Fault]:
    found = decode_kept(document, PoolDocument)
    return build_pool(name, found) if isinstance(found, PoolDocument) else found


def _backend(owner: BackendKey, document: Document) -> Backend | list[Fault]:
    found = decode_kept(document, BackendDocument)
    return build_backend(owner, found) if isinstance(found, BackendDocument) else found
