# SPDX-License-Identifier: Apache-2.0
"""Content hashes that are equal on every host with the same inputs, whatever ids it gave out."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Final

import numpy as np

from tidegate.model.generation import PlacedBackend, PlacedPool, PlacedVip, Slots
from tidegate.model.values import Backend, Pool, Vip


def table_digest(current: Slots, serving_ids: Sequence[int]) -> bytes:
    """Return the hash of a table by names.

    Args:
        current: uint32[n], the id that owns each slot.
        serving_ids: ids of the pool's serving backends in the order of their names; an owner
            counts as its place in this order.
    """
    rank = np.zeros(max([0, *serving_ids, int(current.max())]) + 1, np.uint32)
    rank[list(serving_ids)] = np.arange(1, len(serving_ids) + 1, dtype=np.uint32)
    return hashlib.blake2b(rank[current].astype("<u4").tobytes(), digest_size=16).digest()


def generation_digest(
    vips: Mapping[str, PlacedVip],
    pools: Mapping[str, PlacedPool],
    parts: Mapping[str, bytes],
    hash_seed: str | None,
) -> str:
    """Return the hash (hex) of VIPs, pools, current tables, backends with a key, and the seed."""
    lines = [f"hash_seed {hash_seed!a}"]
    for name in sorted(vips):
        vip, unserved = vips[name].vip, vips[name].unserved
        lines.append(f"vip {_text(vip, _VIP)} {vip.network} {unserved}")
    for name in sorted(pools):
        placed = pools[name]
        lines.append(f"pool {_text(placed.pool, _POOL)} {placed.digest.hex()} {parts[name].hex()}")
    return _hash(lines).hex()


def backend_hashes(
    pools: Collection[str], backends: Iterable[PlacedBackend], known: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Return the hashes of the backends with a key, by pool.

    Args:
        pools: names of all pools.
        backends: of all pools.
        known: hashes that are still right, since no backend of those pools has changed.
    """
    lines: dict[str, list[str]] = {pool: [] for pool in pools if pool not in known}
    for placed in backends:
        backend = placed.backend
        there = lines.get(backend.pool)
        if there is not None and placed.retire_at is None:
            address = backend.address
            there.append(
                f"backend {_text(backend, _BACKEND)} {address.version} {int(address)} "
                f"{placed.weight} {placed.reachable}"
            )
    # The first field of a line is the name, so this is the order of names.
    fresh = {pool: _hash(sorted(found)) for pool, found in lines.items()}
    return {pool: fresh[pool] if pool in fresh else known[pool] for pool in pools}


def _hash(lines: list[str]) -> bytes:
    text = "\n".join(lines).encode()
    return hashlib.blake2b(text, digest_size=16, person=b"tidegate-gen").digest()


def _others(kind: type, *apart: str) -> Callable[[object], tuple[object, ...]]:
    """Return a function that reads all fields of a value but these."""
    return attrgetter(*(field.name for field in fields(kind) if field.name not in apart))


# Addresses are written apart: their representation takes ten times as long as that of all else.
_VIP: Final = _others(Vip, "network")
_POOL: Final = _others(Pool)
_BACKEND: Final = _others(Backend, "address")


def _text(value: object, read: Callable[[object], tuple[object, ...]]) -> str:
    # The representations of two different tuples of texts, numbers and networks differ.
    return repr(read(value))
