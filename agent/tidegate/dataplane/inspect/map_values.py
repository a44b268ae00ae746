# SPDX-License-Identifier: Apache-2.0
"""What packets count in the maps, as the specification's values."""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.model.decision import Decision, Reason
from tidegate.spec.state import AddressCounters, VipCounters

_SUMS = (
    "packets",
    "bytes",
    "rehashed_quarantined",
    "rehashed_gone",
    "tracked",
    "untracked",
    "answered",
)


def per_cpu(fd: int, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """Read the first `count` values of a per-CPU array: shape (count, CPUs)."""
    cpus = maps.cpu_count()
    raw = bpf.map_items(fd, 4, dtype.itemsize * cpus, count)[1]
    return np.frombuffer(raw, dtype).reshape(-1, cpus)


def vip_counters(counts: npt.NDArray[np.void]) -> dict[int, VipCounters]:
    """Return counters of each VIP id that has any, from `vip_counts` (shape: ids, CPUs)."""
    words = np.ascontiguousarray(counts).view(np.uint64).reshape(len(counts), -1)
    return {
        int(vip): VipCounters(
            **{name: int(counts[vip][name].sum()) for name in _SUMS},
            decisions=_counter(Decision, counts[vip]["decisions"]),
            drops=_counter(Reason, counts[vip]["drops"]),
        )
        for vip in np.flatnonzero(words.any(axis=1))
    }


def address_counters(counts: npt.NDArray[np.void]) -> dict[int, AddressCounters]:
    """Return counters of each address that has any, from `address_counts` (shape: ids, CPUs)."""
    words = np.ascontiguousarray(counts).view(np.uint64).reshape(len(counts), -1)
    return {
        int(id_): AddressCounters(
            int(counts[id_]["answered"].sum()), _counter(Reason, counts[id_]["drops"])
        )
        for id_ in np.flatnonzero(words.any(axis=1))
    }


def _counter(kind: type[Any], counts: npt.NDArray[np.uint64]) -> Counter[Any]:
    return Counter({kind(i): int(n) for i, n in enumerate(counts.sum(axis=0)) if n})


def backend_counters(counts: npt.NDArray[np.void]) -> dict[int, tuple[int, int]]:
    """Return packets and bytes of each backend id that has any, from `backend_counts`."""
    packets, total = counts["packets"].sum(axis=1), counts["bytes"].sum(axis=1)
    return {int(i): (int(packets[i]), int(total[i])) for i in np.flatnonzero(packets)}


def verdicts(fd: int) -> dict[int, int]:
    """Read the packets by verdict."""
    counts = per_cpu(fd, layout.VERDICTS, maps.VERDICTS).sum(axis=1)
    return {verdict: int(count) for verdict, count in enumerate(counts) if count}
