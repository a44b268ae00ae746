# SPDX-License-Identifier: Apache-2.0
"""Content hashes that are equal on every host with the same inputs, whatever ids it gave out.

Each VIP and each pool is a line of the generation's hash. The lines are kept with what they are of,
so a change writes those alone that it concerns.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Final

import numpy as np

from tidegate.model.generation import PlacedBackend, PlacedPool, Slots
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
    vip_lines: Iterable[str], pool_lines: Iterable[str], hash_seed: str | None
) -> str:
    """Return the hash (hex) of VIPs, pools, current tables, backends with a key, and the seed.

    Args:
        vip_lines: as `vip_line` has them, in the order of names.
        pool_lines: likewise, as `pool_line` has them.
        hash_seed: key of the flow hash.
    """
    return _hash([f"hash_seed {hash_seed!a}", *vip_lines, *pool_lines]).hex()


def vip_line(vip: Vip, unserved: tuple[str, ...]) -> str:
    """Return the line of a VIP."""
    return f"vip {_text(vip, _VIP)} {vip.network} {unserved}"


def pool_line(placed: PlacedPool, backends: Iterable[PlacedBackend]) -> str:
    """Return the line of a pool and its backends, of which those with a key count."""
    lines = (
        each.line or backend_line(each.backend, each.weight, reachable=each.reachable)
        for each in backends
        if each.retire_at is None
    )
    # The first field of a line is the name, so this is the order of names.
    part = _hash(sorted(lines))
    return f"pool {_text(placed.pool, _POOL)} {placed.digest.hex()} {part.hex()}"


def backend_line(backend: Backend, weight: int, *, reachable: bool) -> str:
    """Return the line of a backend in its pool's hash."""
    address = backend.address
    text = _text(backend, _BACKEND)
    return f"backend {text} {address.version} {int(address)} {weight} {reachable}"


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
