# SPDX-License-Identifier: Apache-2.0
"""Content hashes that are equal on every host with the same inputs, whatever ids it gave out."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Final

import numpy as np

from tidegate.model.generation import PlacedBackend, PlacedPool, PlacedVip, Slots
from tidegate.model.values import Backend, Pool, Vip


def table_digest(current: Slots, serving_ids: Sequence[int]) -> bytes:
    """Hash of a table by names.

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
    backends: Iterable[PlacedBackend],
    hash_seed: str | None,
) -> str:
    """Hash of VIPs, pools, their current tables, the backends with a key, and the seed (hex)."""
    parts = [f"hash_seed {hash_seed!a}"]
    for name in sorted(vips):
        vip = vips[name].vip
        parts.append(f"vip {_text(vip, _VIP)} {vip.network}")
    for name in sorted(pools):
        placed = pools[name]
        parts.append(f"pool {_text(placed.pool, _POOL)} {placed.digest.hex()}")
    for backend in sorted(backends, key=_by_key):
        if backend.retire_at is None:
            address = backend.backend.address
            parts.append(
                f"backend {_text(backend.backend, _BACKEND)} {address.version} {int(address)} "
                f"{backend.weight} {backend.reachable}"
            )
    text = "\n".join(parts).encode()
    return hashlib.blake2b(text, digest_size=16, person=b"tidegate-gen").hexdigest()


def _others(kind: type, *apart: str) -> Callable[[object], tuple[object, ...]]:
    """Reads all fields of a value but these, which are written in another way."""
    return attrgetter(*(field.name for field in fields(kind) if field.name not in apart))


# Addresses are written apart: their representation takes ten times as long as that of all else.
_VIP: Final = _others(Vip, "network")
_POOL: Final = _others(Pool)
_BACKEND: Final = _others(Backend, "address")


def _text(value: object, read: Callable[[object], tuple[object, ...]]) -> str:
    # The representation of a tuple of texts, numbers and networks tells any two of them apart.
    return repr(read(value))


def _by_key(placed: PlacedBackend) -> tuple[str, str]:
    return placed.backend.pool, placed.backend.name
