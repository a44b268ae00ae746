# SPDX-License-Identifier: Apache-2.0
"""The documents of a history, and what each server is by them: the rules here are the test's own.

A server is one machine. Its name may change while its address stays, and its address while its name
stays; it is another one when both are new, or when it comes back after its last delay.
"""

import random
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final, NamedTuple

from tidegate.model.document_types import BackendState, Protocol, Tracking
from tidegate.model.values import (
    Address,
    Backend,
    BackendKey,
    Desired,
    Fitness,
    Pool,
    Quic,
    Vip,
)

POOLS: Final = ("api", "web")
UDP_IDLE: Final = 60
_ID_BYTES: Final = 4
_FEWEST: Final = 3  # servers of a pool that take new flows
_MOST: Final = 9


@dataclass(eq=False)
class Server:
    """One machine.

    Attributes:
        leaves_at: second at which its delay ends, if its document is gone.
    """

    pool: str
    number: int
    name: str
    address: Address
    weight: int = 100
    state: BackendState = "active"
    has_failed: bool = False
    leaves_at: int | None = None

    def __str__(self) -> str:
        return f"{self.pool}/{self.name}"

    @property
    def server_id(self) -> bytes:
        """Its id in connection ids of QUIC."""
        return bytes([POOLS.index(self.pool)]) + self.number.to_bytes(_ID_BYTES - 1, "big")

    @property
    def keeps(self) -> bool:
        """Whether its flows go to it."""
        return not self.has_failed and self.state in ("active", "drain")

    @property
    def takes(self) -> bool:
        """Whether new flows may go to it."""
        is_active = self.state == "active" and self.weight > 0
        return self.keeps and is_active and self.leaves_at is None


class Standing(NamedTuple):
    """What a server is by the documents of one moment."""

    keeps: bool
    takes: bool
    address: bytes


@dataclass(frozen=True, eq=False)
class View:
    """What holds by the documents of one moment: servers that are there, and each VIP's pool."""

    servers: dict[Server, Standing]
    pools: dict[str, str]
    by_address: dict[bytes, Server] = field(init=False)
    serving: set[str] = field(init=False)
    """Pools of which a server takes new flows."""

    def __post_init__(self) -> None:
        there = self.servers.items()
        found = {standing.address: server for server, standing in there if standing.keeps}
        object.__setattr__(self, "by_address", found)
        object.__setattr__(self, "serving", {s.pool for s, standing in there if standing.takes})

    def keeps(self, server: Server) -> bool:
        """Return whether the flows of a server go to it."""
        standing = self.servers.get(server)
        return standing is not None and standing.keeps

    def takes(self, server: Server) -> bool:
        """Return whether new flows may go to a server."""
        standing = self.servers.get(server)
        return standing is not None and standing.takes


def _vips() -> list[Vip]:
    def one(
        name: str, address: str, protocol: Protocol, pool: str, tracking: Tracking, port: int = 80
    ) -> Vip:
        quic = Quic(_ID_BYTES) if name == "quic4" else None
        network = ip_network(address)
        return Vip(name, network, port, protocol, pool, tracking, quic=quic)

    return [
        one("full4", "10.99.0.1", "tcp", "web", "full"),
        one("full6", "fd99::1", "tcp", "web", "full"),
        one("moving4", "10.99.0.2", "tcp", "web", "full"),
        one("moving6", "fd99::2", "udp", "api", "full"),
        one("part4", "10.99.0.3", "tcp", "web", "transition"),
        one("part6", "fd99::3", "tcp", "api", "transition"),
        one("udp4", "10.99.0.1", "udp", "web", "full"),
        one("udp6", "fd99::3", "udp", "api", "transition"),
        one("quic4", "10.99.0.4", "udp", "api", "full", 443),
    ]


class Roster:
    """What is wanted, and how it changes.

    Args:
        chance: what is drawn from.
        renames: whether servers change their names.
    """

    def __init__(self, chance: random.Random, *, renames: bool) -> None:
        self.now = 1000
        """The history's clock, s."""
        self._chance = chance
        self._renames = renames
        self._numbers = 0
        self.vips = {vip.name: vip for vip in _vips()}
        self.pools = {
            name: Pool(name, chance.choice([0, 30, 150, 600]), chance.choice([60, 300]))
            for name in POOLS
        }
        self.servers = [self._new(pool) for pool in POOLS for _ in range(5)]
        self.fitness: dict[BackendKey, Fitness] = {}
        self.changes: dict[str, int] = dict.fromkeys(POOLS, 0)
        """How often each pool has changed."""
        self.touched: set[Server] = set()
        """Servers that have changed since the last publication: each changes once in one."""

    def _new(self, pool: str) -> Server:
        self._numbers += 1
        return Server(pool, self._numbers, f"s{self._numbers}", self._address(pool))

    def _address(self, pool: str) -> Address:
        self._numbers += 1
        prefix = self._chance.choice(["10.1", "fd10:"])
        net = POOLS.index(pool) + 1
        dotted = f"{prefix}.{net}.{self._numbers}"
        return ip_address(dotted if prefix == "10.1" else f"fd10:{net}::{self._numbers:x}")

    def let_go(self) -> None:
        """Let servers go whose delay is over."""
        gone = [s for s in self.servers if s.leaves_at is not None and s.leaves_at <= self.now]
        for server in gone:
            self._leave(server)

    def view(self) -> View:
        """Return what holds now."""
        there = {s: Standing(s.keeps, s.takes, s.address.packed) for s in self.servers}
        return View(there, {name: vip.pool for name, vip in self.vips.items()})

    def desired(self) -> Desired:
        """Return the documents."""
        backends = [
            Backend(s.pool, s.name, s.address, s.weight, s.state, quic_server_id=s.server_id)
            for s in self.servers
            if s.leaves_at is None
        ]
        return Desired(self.now, dict(self.vips), dict(self.pools), {b.key: b for b in backends})

    def change(self) -> str:
        """Change one thing at random; return what, in words."""
        kinds = (
            self._add, self._delete, self._come_back, self._drain, self._undrain, self._weigh,
            self._readdress, self._quarantine, self._fail, self._fail, self._recover,
            self._move_vip, *(self._rename,) * self._renames,
        )  # fmt: skip
        while True:
            done = self._chance.choice(kinds)()
            if done:
                return done

    def _pick(self, pool: str = "", **wanted: object) -> Server | None:
        found = [
            s
            for s in self.servers
            if s.pool == (pool or s.pool)
            and s not in self.touched
            and all(getattr(s, n) == v for n, v in wanted.items())
        ]
        return self._chance.choice(found) if found else None

    def spare(self) -> Server | None:
        """Return a server that its pool can do without: two thirds of those there stay."""
        server = self._pick(takes=True)
        if server is None:
            return None
        there = [s for s in self.servers if s.pool == server.pool and s.leaves_at is None]
        taking = sum(s.takes for s in there)
        return server if taking > max(_FEWEST, len(there) * 2 // 3) else None

    def _touch(self, server: Server, what: str) -> str:
        self.changes[server.pool] += 1
        self.touched.add(server)
        return f"{server} {what}"

    def _leave(self, server: Server) -> None:
        self.servers.remove(server)
        self.fitness.pop(BackendKey(server.pool, server.name), None)
        self.changes[server.pool] += 1

    def _add(self) -> str:
        server = self._new(self._chance.choice(POOLS))
        if sum(s.pool == server.pool for s in self.servers) >= _MOST:
            return ""
        self.servers.append(server)
        return self._touch(server, f"is added at {server.address}")

    def _delete(self) -> str:
        server = self.spare()
        if server is None:
            return ""
        server.leaves_at = self.now + self.pools[server.pool].deregistration_delay
        what = self._touch(server, "is deleted")
        self.let_go()
        return what

    def _come_back(self) -> str:
        leaving = [s for s in self.servers if s.leaves_at is not None and s not in self.touched]
        if not leaving:
            return ""
        server = self._chance.choice(leaving)
        server.leaves_at, server.state, server.weight = None, "active", 100
        return self._touch(server, "is added again")

    def _rename(self) -> str:
        server = self._pick(has_failed=False)
        if server is None:
            return ""
        was, self._numbers = server.name, self._numbers + 1
        server.name = f"s{self._numbers}"
        if server.leaves_at is not None:
            server.leaves_at, server.state, server.weight = None, "active", 100
        return self._touch(server, f"was {was}")

    def _drain(self) -> str:
        server = self.spare()
        if server is None:
            return ""
        server.state = "drain"
        return self._touch(server, "drains")

    def _undrain(self) -> str:
        server = self._pick(leaves_at=None, state="drain") or self._pick(
            leaves_at=None, state="quarantine"
        )
        if server is None:
            return ""
        server.state = "active"
        return self._touch(server, "is active")

    def _weigh(self) -> str:
        server = self._pick(leaves_at=None, weight=0) or self.spare()
        if server is None:
            return ""
        server.weight = self._chance.choice([0, 50, 100, 150] if server.weight else [100])
        return self._touch(server, f"has weight {server.weight}")

    def _readdress(self) -> str:
        server = self._pick(leaves_at=None)
        if server is None:
            return ""
        server.address = self._address(server.pool)
        return self._touch(server, f"is at {server.address}")

    def _quarantine(self) -> str:
        server = self.spare()
        if server is None:
            return ""
        server.state = "quarantine"
        return self._touch(server, "is in quarantine")

    def _fail(self) -> str:
        server = self.spare()
        return "" if server is None else self.fail(server)

    def fail(self, server: Server) -> str:
        """Let a server fail its health checks."""
        server.has_failed = True
        self.fitness[BackendKey(server.pool, server.name)] = Fitness(is_out=True)
        return self._touch(server, "fails")

    def _recover(self) -> str:
        server = self._pick(leaves_at=None, has_failed=True)
        return "" if server is None else self.recover(server)

    def recover(self, server: Server) -> str:
        """Let a server pass its health checks again."""
        server.has_failed = False
        self.fitness[BackendKey(server.pool, server.name)] = Fitness(joins_at=self.now)
        return self._touch(server, "recovers")

    def _move_vip(self) -> str:
        name = self._chance.choice(["moving4", "moving6"])
        old = self.vips[name]
        pool = next(p for p in POOLS if p != old.pool)
        self.vips[name] = Vip(
            name, old.network, old.port, old.protocol, pool, old.tracking, quic=old.quic
        )
        return f"VIP {name} goes to {pool}"
