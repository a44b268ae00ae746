# SPDX-License-Identifier: Apache-2.0
"""Reads the connection table of versions before the tables of lines: an LRU hash, by flow.

Its keys have all that the flow hash covers but the address of a VIP that is a network, of which
they have 20 bits of a digest: those flows cannot be found a place, and are counted. It knows when
an entry of TCP was written, and when a flow of UDP last spoke; that becomes the tick. Whether a
flow spoke more than once it does not know: all are taken to have.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.kernel import jiffies
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.maps import Shape
from tidegate.dataplane.takeover.placing import Copies, Moment
from tidegate.dataplane.takeover.siphash import Words, siphash13
from tidegate.model.constants import MAX_VIPS
from tidegate.model.generation import Generation
from tidegate.model.tag import flow_salt, vip_tag
from tidegate.model.ticks import TICKS
from tidegate.spec.lines import COPIED, FINGERPRINT, SPOKE, state_of

FLOW_KEY: Final = np.dtype(
    [("source", "V16"), ("vip", "<u4"), ("source_port", "<u2"), ("port", "<u2")]
)
"""Ports in network order, so that they read as a packet's do in the hash."""
FLOW: Final = np.dtype(
    [
        ("backend", "<u4"),
        ("backend_incarnation", "<u4"),
        ("vip_incarnation", "<u4"),
        ("zero", "<u4"),
        ("generation", "<u8"),
        ("seen", "<u8"),
    ]
)
_F_NO_COMMON_LRU: Final = 1 << 1
_BATCH: Final = 1 << 16
_ID: Final = np.uint32(0xFFF)
_SECOND_NS: Final = 1_000_000_000
_UNKNOWN, _ADDRESS4, _ADDRESS6, _NETWORK = range(4)


def is_hashed(shape: Shape) -> bool:
    """Return whether a map is a connection table of those versions, of whatever size."""
    sizes = FLOW_KEY.itemsize, FLOW.itemsize
    kind = bpf.LRU_HASH, *sizes, _F_NO_COMMON_LRU
    return (shape.kind, shape.key_size, shape.value_size, shape.flags) == kind


class HashedTable:
    """Such a table as a source.

    Args:
        fd: descriptor of the map, which stays the caller's.
        generation: in force; only flows of its VIPs are read.
        keys: of the flow hash, for the new table.
        pairs: size of the table that copies are for.

    Attributes:
        flows: entries that were read and can be copied.
        networks: entries of VIPs that are networks.
    """

    def __init__(self, fd: int, generation: Generation, keys: tuple[int, int], pairs: int) -> None:
        self._fd, self._keys, self._pairs = fd, keys, pairs
        self._clock = jiffies.clock()
        self._vips = _Vips(generation)
        self._since = 0
        self.flows = 0
        self.networks = 0

    def copies(self, now: Moment) -> Iterator[Copies]:
        """Yield copies of what was written since the last call."""
        since, self._since = self._since, now.ns
        sizes = FLOW_KEY.itemsize, FLOW.itemsize
        for keys, values, count in bpf.map_batches(self._fd, *sizes, _BATCH):
            key = np.frombuffer(keys, FLOW_KEY, count)
            flow = np.frombuffer(values, FLOW, count)
            fresh = flow["seen"] >= np.uint64(since)
            yield self._rekeyed(key[fresh], flow[fresh], now)

    def _rekeyed(
        self, key: npt.NDArray[np.void], flow: npt.NDArray[np.void], now: Moment
    ) -> Copies:
        ids = key["vip"] & _ID
        is_known = flow["vip_incarnation"] == self._vips.incarnation[ids]
        kind = np.where(is_known, self._vips.kind[ids], _UNKNOWN)
        self.networks += int(np.count_nonzero(kind == _NETWORK))
        parts = [
            self._of_family(key[kind == family], flow[kind == family], now, family=family)
            for family in (_ADDRESS4, _ADDRESS6)
        ]
        self.flows += sum(len(part.pairs) for part in parts)
        return Copies(*(np.concatenate(field) for field in zip(*parts, strict=True)))

    def _of_family(
        self, key: npt.NDArray[np.void], flow: npt.NDArray[np.void], now: Moment, *, family: int
    ) -> Copies:
        ids = key["vip"] & _ID
        hashes = self._hashes(key, ids, is_v6=family == _ADDRESS6) ^ self._vips.salt[ids]
        fingerprint = np.maximum(hashes & np.uint64(FINGERPRINT), np.uint64(1))
        incarnation = flow["backend_incarnation"].astype(np.uint64) & np.uint64(0xFF)
        backend = flow["backend"].astype(np.uint64) & np.uint64(0xFFFF)
        owners = fingerprint << np.uint64(24) | incarnation << np.uint64(16) | backend
        half = np.uint64(32)
        pairs = (hashes >> half) * np.uint64(self._pairs) >> half
        states = self._ticks(flow["seen"], now) << np.uint32(16) | ids << np.uint32(4)
        flags = np.uint32(state_of(0, 0, SPOKE | COPIED))
        return Copies(pairs.astype(np.int64), owners, states | flags)

    def _hashes(
        self, key: npt.NDArray[np.void], ids: npt.NDArray[np.uint32], *, is_v6: bool
    ) -> Words:
        """Return the flow hash over addresses and ports, as spec.hash.tracking_key has it."""
        source = np.frombuffer(key["source"].tobytes(), "<u8").reshape(-1, 2)
        ports = key["port"].astype(np.uint64) << np.uint64(16) | key["source_port"]
        last = self._vips.tag[ids] ^ ports
        if is_v6:
            return siphash13(self._keys, [source[:, 0], source[:, 1], last])
        return siphash13(self._keys, [source[:, 1] >> np.uint64(32), last])

    def _ticks(self, seen: npt.NDArray[np.uint64], now: Moment) -> npt.NDArray[np.uint32]:
        """Return the ticks of moments; what is older than the count reaches is as old as it can."""
        age = np.maximum(now.ns - seen.astype(np.int64), 0)
        passed = (
            age // _SECOND_NS * self._clock.hz + age % _SECOND_NS * self._clock.hz // _SECOND_NS
        )
        oldest = (TICKS - 1) << self._clock.shift
        tick = now.jiffies - np.minimum(passed, oldest) >> self._clock.shift
        ticks: npt.NDArray[np.uint32] = (tick % TICKS).astype(np.uint32)
        return ticks


class _Vips:
    """What the flows of each VIP id need: arrays by id."""

    def __init__(self, generation: Generation) -> None:
        self.kind = np.full(MAX_VIPS, _UNKNOWN)
        self.incarnation = np.zeros(MAX_VIPS, np.uint32)
        self.tag, self.salt = np.zeros(MAX_VIPS, np.uint64), np.zeros(MAX_VIPS, np.uint64)
        for placed in generation.vips.values():
            id_ = placed.identity.id
            family = _ADDRESS6 if placed.vip.network.version == 6 else _ADDRESS4  # noqa: PLR2004
            self.kind[id_] = _NETWORK if placed.vip.is_network else family
            self.incarnation[id_] = placed.identity.incarnation
            self.tag[id_], self.salt[id_] = vip_tag(placed.vip), flow_salt(placed.identity)
