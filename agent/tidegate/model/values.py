# SPDX-License-Identifier: Apache-2.0
"""What the operator wants (VIPs, pools, backends, steering), and what that was read from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

from tidegate.model.checks import Health
from tidegate.model.document_types import (
    BackendState,
    Encapsulation,
    HashFields,
    Protocol,
    Tracking,
    Unserved,
)
from tidegate.model.grouped import Grouped
from tidegate.model.received_writes import NO_WRITES, ReceivedWrites
from tidegate.model.steering import Guard

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Endpoint: TypeAlias = tuple[Network, int, Protocol]
"""What clients connect to: addresses, port (0: any), protocol. It is a VIP's identity."""


class BackendKey(NamedTuple):
    """A backend's name within its pool.

    One that has left while its name went to another server is called by its address, `@192.0.2.1`,
    which no key can name.
    """

    pool: str
    name: str

    def __str__(self) -> str:
        return f"{self.pool}/{self.name}"


_V = TypeVar("_V")


class ByPool(Grouped[BackendKey, _V], Generic[_V]):
    """Something of each backend, in groups by pool."""

    __slots__ = ()

    @staticmethod
    def group_of(key: BackendKey) -> str:
        """Return its pool."""
        return key.pool


class SynLimit(NamedTuple):
    """SYNs per second that one source prefix may send; its length by family."""

    rate: int
    prefix4: int = 24
    prefix6: int = 56


class Quic(NamedTuple):
    """Where a QUIC connection id has the server id: both in bytes."""

    server_id_length: int
    offset: int = 1


class SourceRoute(NamedTuple):
    """Clients in this network go to this pool."""

    network: Network
    pool: str


@dataclass(frozen=True, slots=True)
class Vip:
    """A virtual service: where clients connect to, and the pool that answers.

    Attributes:
        network: a plain address has its full length, /32 or /128.
        port: 0 is any port.
        udp_idle_timeout: s; 0 is never.
        tcp_idle_timeout: s; 0 is never.
        insert_limit: new entries of the connection table per second and CPU.
        mss_clamp: largest MSS that a SYN may offer; None leaves it alone.
        source_routes: sorted.
        deny: client networks that are refused, sorted.
        flow_sampling: flows of 65536 whose events are reported.
        unserved: what becomes of packets to its address that no VIP takes.
        sorry_pool: serves in place of a pool in which no backend takes new flows; may be None.
    """

    name: str
    network: Network
    port: int
    protocol: Protocol
    pool: str
    tracking: Tracking = "full"
    hash: HashFields = "5-tuple"
    udp_idle_timeout: int = 60
    tcp_idle_timeout: int = 4500
    insert_limit: int = 100_000
    syn_limit: SynLimit | None = None
    mss_clamp: int | None = None
    echo: bool = True
    quic: Quic | None = None
    source_routes: tuple[SourceRoute, ...] = ()
    deny: tuple[Network, ...] = ()
    flow_sampling: int = 0
    sorry_pool: str | None = None
    unserved: Unserved = "drop"

    @property
    def endpoint(self) -> Endpoint:
        """What clients connect to."""
        return self.network, self.port, self.protocol

    @property
    def address(self) -> Address:
        """The address, or the first one of a network."""
        return self.network.network_address

    @property
    def is_network(self) -> bool:
        """Whether it is more than one address."""
        return self.network.prefixlen < self.network.max_prefixlen

    @property
    def pools(self) -> tuple[str, ...]:
        """Every pool that its packets may go to."""
        sorry = () if self.sorry_pool is None else (self.sorry_pool,)
        return (*self.own_pools, *sorry)

    @property
    def own_pools(self) -> tuple[str, ...]:
        """The pools that serve it normally: all but its sorry pool."""
        return (self.pool, *(route.pool for route in self.source_routes))


@dataclass(frozen=True, slots=True)
class Pool:
    """A set of backends with one table.

    Attributes:
        deregistration_delay: s.
        transition_window: s.
        gue_port: UDP port of its backends; only GUE uses it.
        mtu: bytes of the outer packet; None is that of the link.
        slow_start: s.
        max_removed_percent: of the serving backends, by one change; None leaves it to the agent.
    """

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


@dataclass(frozen=True, slots=True)
class Backend:
    """One server of a pool.

    Attributes:
        quic_server_id: its server id in QUIC connection ids; empty if it has none.
        starts_at: wall-clock second from which it takes new flows; None is always.
        drain_deadline: wall-clock second from which it keeps no flows; None is never.
    """

    pool: str
    name: str
    address: Address
    weight: int
    state: BackendState
    quic_server_id: bytes = b""
    starts_at: int | None = None
    drain_deadline: int | None = None

    @property
    def key(self) -> BackendKey:
        """Its name within its pool."""
        return BackendKey(self.pool, self.name)


class Fitness(NamedTuple):
    """What health checks make of a backend.

    Attributes:
        is_out: its flows move at once, and it takes no new ones.
        joins_at: wall-clock second from which it joins again, through its pool's slow start; None
            if it was never out.
    """

    is_out: bool = False
    joins_at: int | None = None


FIT = Fitness()


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything that one revision of the keyspace asks for, after validation.

    Attributes:
        hash_seed: key of the flow hash; None leaves it to the agent's file.
        release: release that it was read from; empty if that is not known.
        pointer: track whose key named the release; empty if none did.
    """

    revision: int
    vips: Mapping[str, Vip]
    pools: Mapping[str, Pool]
    backends: Mapping[BackendKey, Backend]
    hash_seed: str | None = None
    release: str = ""
    pointer: str = ""

    def __post_init__(self) -> None:
        """Keep backends by pool."""
        object.__setattr__(self, "backends", ByPool.of(self.backends))

    @property
    def by_pool(self) -> ByPool[Backend]:
        """The backends, in groups by pool."""
        return ByPool.of(self.backends)


EMPTY = Desired(revision=0, vips={}, pools={}, backends={})


class Document(NamedTuple):
    """The bytes of one key, and the etcd revisions that wrote them and that created the key.

    Attributes:
        refused: why the bytes were too many to be kept; `value` is empty then. Empty if they are.
    """

    value: bytes
    mod_revision: int
    create_revision: int = 0
    refused: str = ""


class Documents(Grouped[str, Document]):
    """Documents by key, in groups: a pool with its backends, and each other one by itself."""

    __slots__ = ()

    @staticmethod
    def group_of(key: str) -> str:
        """Return a key's first two parts."""
        return "/".join(key.split("/", 2)[:2])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A prefix of etcd at one revision: documents by key relative to the prefix.

    Attributes:
        writes: what was written since the snapshot before; only of those that follow each other.
    """

    revision: int
    documents: Mapping[str, Document]
    writes: ReceivedWrites = field(default=NO_WRITES, compare=False)


Stage = Literal["decode", "schema", "reference", "guard", "build", "publish", "verify"]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A refusal of a key: the key, the field, and the reason.

    The key is relative to the release, or to the fleet if it is outside all releases.
    """

    key: str
    field: str
    reason: str
    stage: Stage
    revision: int

    def __str__(self) -> str:
        place = f"{self.key}: {self.field}" if self.field else self.key
        return f"{place}: {self.reason}"


class Override(NamedTuple):
    """A key that lifts a guard until a second since 1970; no pool is every pool."""

    name: str
    guard: Guard
    pool: str | None
    expires_at: int


@dataclass(frozen=True, slots=True)
class Steering:
    """The steering of a host by the keys beside the releases, at one revision.

    Attributes:
        pointer: track whose key named the release; empty if the agent's file did.
        freeze: why nothing may change; empty if it may.
        overrides: by name, with those that have expired: which apply depends on the clock.
        rejections: documents that are refused; keys are relative to the fleet.
        allowed_addresses: of the host itself that VIPs may have all the same.
        hash_seed: key of the flow hash where a release names none; None leaves it to the file.
        seed_warning: what somebody should do about it; empty for nothing.
    """

    revision: int
    track: str
    release: str
    pointer: str = ""
    freeze: str = ""
    overrides: tuple[Override, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    allowed_addresses: tuple[Address, ...] = ()
    hash_seed: str | None = field(default=None, repr=False)
    seed_warning: str = ""


class View(NamedTuple):
    """Everything that a host follows: its steering, and the release that this names.

    Attributes:
        writes: what was written since the view before, to keys that concern this host.
    """

    steering: Steering
    snapshot: Snapshot
    writes: ReceivedWrites = NO_WRITES
