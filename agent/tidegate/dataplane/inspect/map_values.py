# SPDX-License-Identifier: Apache-2.0
"""What packets write to the maps, as the specification's values: flows, fragments, counters."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.model.decision import Decision, Reason
from tidegate.spec.state import Flow, FlowKey, FragmentKey, VipCounters

_SUMS = (
    "packets",
    "bytes",
    "rehashed_quarantined",
    "rehashed_gone",
    "tracked",
    "untracked",
    "answered",
)


def flows(fd: int, capacity: int) -> dict[FlowKey, Flow]:
    """Read the connection table or the SYN table."""
    keys, values = _items(fd, layout.FLOW_KEY, capacity)
    ports = ([n.to_bytes(2) for n in keys[f].tolist()] for f in ("source_port", "port"))
    named = zip(map(bytes, keys["source"]), keys["vip"].tolist(), *ports, strict=True)
    return dict(zip(map(FlowKey._make, named), _flows(values), strict=True))


def fragments(fd: int, capacity: int) -> dict[FragmentKey, Flow]:
    """Read the fragment table: where first fragments went."""
    keys, values = _items(fd, layout.FRAGMENT_KEY, capacity)
    named = zip(
        map(bytes, keys["source"]),
        map(bytes, keys["destination"]),
        (n.to_bytes(4, "little") for n in keys["id"].tolist()),
        keys["protocol"].tolist(),
        strict=True,
    )
    return dict(zip(map(FragmentKey._make, named), _flows(values), strict=True))


def _items(
    fd: int, key: np.dtype[np.void], capacity: int
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    keys, values, count = bpf.map_items(fd, key.itemsize, layout.FLOW.itemsize, capacity)
    return np.frombuffer(keys, key, count), np.frombuffer(values, layout.FLOW, count)


def _flows(values: npt.NDArray[np.void]) -> Iterable[Flow]:
    return map(Flow._make, zip(*(values[f].tolist() for f in Flow._fields), strict=True))


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
