# SPDX-License-Identifier: Apache-2.0
"""Short ways to write rosters, and a clockless planner to step them, for tests."""

from ipaddress import ip_address, ip_network
from typing import Any

from tidegate.model.document_types import BackendState, Protocol
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Backend, BackendKey, Desired, Pool, Vip
from tidegate.planner import plan

VIP4, VIP6 = "10.99.0.1", "fd99::1"


def vip(
    name: str,
    address: str,
    port: int = 80,
    protocol: Protocol = "tcp",
    pool: str = "web",
    **options: Any,
) -> Vip:
    """Return a VIP; the address may be a network, the options are the other fields of Vip."""
    return Vip(name, ip_network(address), port, protocol, pool, **options)


def backend(
    name: str,
    address: str = "",
    *,
    weight: int = 100,
    state: BackendState = "active",
    pool: str = "web",
    **options: Any,
) -> Backend:
    """Return a backend; its address is made from the number in its name unless given.

    The options are the other fields of Backend.
    """
    number = int("".join(filter(str.isdigit, name)) or 0)
    where = ip_address(address or f"10.1.0.{number}")
    return Backend(pool, name, where, weight, state, **options)


def desired(
    vips: list[Vip],
    backends: list[Backend],
    *,
    revision: int = 1,
    delay: int = 300,
    window: int = 300,
    **options: Any,
) -> Desired:
    """Return everything that is wanted; pools are those that VIPs and backends name.

    The options are the other fields of Pool, for all pools.
    """
    names = {pool for v in vips for pool in v.pools} | {b.pool for b in backends}
    return Desired(
        revision,
        {v.name: v for v in vips},
        {name: Pool(name, delay, window, **options) for name in sorted(names)},
        {BackendKey(b.pool, b.name): b for b in backends},
    )


def web(*backends: Backend, delay: int = 300, window: int = 300, **options: Any) -> Desired:
    """Return two TCP VIPs and a UDP one, all served by the pool `web`."""
    vips = [
        vip("web4", VIP4),
        vip("web6", VIP6),
        vip("dns4", VIP4, 53, "udp"),
        vip("dns6", VIP6, 53, "udp"),
    ]
    return desired(vips, list(backends), delay=delay, window=window, **options)


def generations(*steps: Desired, now: int = 1000) -> list[Generation]:
    """Return the generation of each step, one second apart."""
    found: list[Generation] = []
    previous = NOTHING
    for second, step in enumerate(steps):
        previous = plan(step, previous, now + second)
        found.append(previous)
    return found
