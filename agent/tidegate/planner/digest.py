# SPDX-License-Identifier: Apache-2.0
"""Content hashes that are equal on every host with the same inputs, whatever ids it gave out."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

import numpy as np

from tidegate.model.generation import PlacedBackend, PlacedPool, PlacedVip, Slots


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
    state = hashlib.blake2b(digest_size=16, person=b"tidegate-gen")

    def add(*values: object) -> None:
        for value in values:
            state.update(str(value).encode() + b"\0")

    add("hash_seed", repr(hash_seed))
    for name in sorted(vips):
        vip = vips[name].vip
        add("vip", *(getattr(vip, field.name) for field in fields(vip)))
    for name in sorted(pools):
        pool = pools[name].pool
        add("pool", *(getattr(pool, field.name) for field in fields(pool)))
        add(pools[name].digest.hex())
    for placed in sorted(backends, key=lambda placed: placed.backend.key):
        backend = placed.backend
        if placed.retire_at is None:
            add("backend", *(getattr(backend, field.name) for field in fields(backend)))
            add(placed.weight, placed.reachable)
    return state.hexdigest()
