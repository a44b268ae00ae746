# SPDX-License-Identifier: Apache-2.0
"""The demo's VIPs, pools and backends, and the changes that are made to them under load.

Pool web4 serves the IPv4 VIP and has backends with IPv4 and with IPv6 addresses (IPIP and IP4IP6);
pool web6 serves the IPv6 VIP (IP6IP6); pool echo is for the measurement of delays. Backend b5 is in
no pool at first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tidegate.keyspace import paths
from tidegate.lab.control import Control, Written
from tidegate.lab.plan import ECHO_PORT, HTTP_PORT
from tidegate.lab.rack import Lab

BACKENDS: Final = 5
SPARE: Final = "b5"
POOL4, POOL6, POOL_ECHO = "web4", "web6", "echo"
WEIGHTS: Final[Mapping[str, int]] = {"b1": 100, "b2": 100, "b3": 200, "b4": 100}

# What the echo pool's two backends weigh: all but one in 65,536 new flows go to the first.
ECHO_WEIGHTS: Final[Mapping[str, int]] = {"b1": 65535, "b2": 1}


class Change(NamedTuple):
    """One put (or, without fields, one deletion) of a backend's key."""

    text: str
    pool: str
    backend: str
    fields: Mapping[str, Any] | None


@dataclass
class Roster:
    """What is written now, and the way to change it."""

    lab: Lab
    control: Control
    documents: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @property
    def targets(self) -> dict[str, str]:
        """Where clients connect to, by pool."""
        return {
            POOL4: f"{self.lab.vip4()}:{HTTP_PORT}",
            POOL6: f"[{self.lab.vip6()}]:{HTTP_PORT}",
        }

    def write_first(self) -> Written:
        """Write the pools, their backends and the VIPs; return the last of the writes."""
        for pool in (POOL4, POOL6, POOL_ECHO):
            self.control.put(paths.pool_key(pool), {})
        for backend, weight in WEIGHTS.items():
            family4 = 6 if backend == "b4" else 4
            self.change(POOL4, backend, address=self.address(backend, family4), weight=weight)
            self.change(POOL6, backend, address=self.address(backend, 6), weight=weight)
        for backend, weight in ECHO_WEIGHTS.items():
            self.change(POOL_ECHO, backend, address=self.address(backend, 4), weight=weight)
        for name, address, port, protocol, pool in (
            ("web4", self.lab.vip4(), HTTP_PORT, "tcp", POOL4),
            ("web6", self.lab.vip6(), HTTP_PORT, "tcp", POOL6),
            ("echo", self.lab.vip4(), ECHO_PORT, "udp", POOL_ECHO),
        ):
            vip = {"address": str(address), "port": port, "protocol": protocol, "pool": pool}
            written = self.control.put(paths.vip_key(name), vip)
        return written

    def address(self, backend: str, family: int, *, second: bool = False) -> str:
        """Return a backend's address as documents have it."""
        return str(self.lab.address(backend, family, second=second))

    def change(self, pool: str, backend: str, **fields: Any) -> Written:  # noqa: ANN401 - the document's own fields
        """Put a backend's document with these fields changed."""
        document = self.documents.setdefault((pool, backend), {})
        document.update(fields)
        return self.control.put(paths.backend_key(pool, backend), document)

    def apply(self, change: Change) -> Written:
        """Make one change."""
        if change.fields is not None:
            return self.change(change.pool, change.backend, **change.fields)
        del self.documents[change.pool, change.backend]
        return self.control.delete(paths.backend_key(change.pool, change.backend))

    def changes(self) -> list[Change]:
        """Return the changes of the demo, the two pools in turn."""
        pairs = zip(self._changes(POOL4, 4), self._changes(POOL6, 6), strict=True)
        return [change for pair in pairs for change in pair]

    def _changes(self, pool: str, family: int) -> list[Change]:
        spare = {"address": self.address(SPARE, family), "weight": 100}
        b3 = self.address("b3", family, second=True)
        # For web4 this changes the family of the outer header.
        b4 = self.address("b4", family, second=family == 6)  # noqa: PLR2004 - an IP version
        return [
            Change("add b5", pool, SPARE, spare),
            Change("drain b1", pool, "b1", {"state": "drain"}),
            Change("weight of b2 from 100 to 300", pool, "b2", {"weight": 300}),
            Change(f"address of b3 to {b3}", pool, "b3", {"address": b3}),
            Change("b1 active again", pool, "b1", {"state": "active"}),
            Change("delete b5", pool, SPARE, None),
            Change("weight of b2 back to 100", pool, "b2", {"weight": 100}),
            Change(f"address of b4 to {b4}", pool, "b4", {"address": b4}),
            Change("add b5 again", pool, SPARE, spare),
            Change("drain b3", pool, "b3", {"state": "drain"}),
            Change("b3 active again", pool, "b3", {"state": "active"}),
            Change("weight of b5 from 100 to 50", pool, SPARE, {"weight": 50}),
        ]
