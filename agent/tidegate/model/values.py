# SPDX-License-Identifier: Apache-2.0
"""What the operator wants: VIPs, pools, backends, and the snapshot that they were read from."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, NamedTuple, TypeAlias

from tidegate.model.documents import BackendState, Protocol

Address: TypeAlias = IPv4Address | IPv6Address


class BackendKey(NamedTuple):
    """What an id belongs to: a backend's name within its pool."""

    pool: str
    name: str

    def __str__(self) -> str:
        return f"{self.pool}/{self.name}"


@dataclass(frozen=True, slots=True)
class Vip:
    """A virtual service: where clients connect to, and the pool that answers."""

    name: str
    address: Address
    port: int
    protocol: Protocol
    pool: str


@dataclass(frozen=True, slots=True)
class Pool:
    """A set of backends with one table. Times are seconds."""

    name: str
    deregistration_delay: int
    transition_window: int


@dataclass(frozen=True, slots=True)
class Backend:
    """One server of a pool."""

    pool: str
    name: str
    address: Address
    weight: int
    state: BackendState

    @property
    def key(self) -> BackendKey:
        """The identity that its id belongs to."""
        return BackendKey(self.pool, self.name)


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything that one revision of the keyspace asks for, after validation."""

    revision: int
    vips: Mapping[str, Vip]
    pools: Mapping[str, Pool]
    backends: Mapping[BackendKey, Backend]


EMPTY = Desired(revision=0, vips={}, pools={}, backends={})


class Document(NamedTuple):
    """The bytes of one key, and the etcd revisions that wrote them and that created the key."""

    value: bytes
    mod_revision: int
    create_revision: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A prefix of etcd at one revision: documents by key relative to the prefix."""

    revision: int
    documents: Mapping[str, Document]


Stage = Literal["decode", "schema", "reference", "guard", "build", "publish", "verify"]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a key was refused: the key relative to the release, the field, and a sentence."""

    key: str
    field: str
    reason: str
    stage: Stage
    revision: int

    def __str__(self) -> str:
        place = f"{self.key}: {self.field}" if self.field else self.key
        return f"{place}: {self.reason}"
