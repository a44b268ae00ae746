# SPDX-License-Identifier: Apache-2.0
"""The kernel's counters, summed over CPUs, as arrays by id.

The kernel hands over a per-CPU array in batches, from any element on. A batch is as large as a
core's cache takes, so its values are summed while they are near, and a host with many CPUs needs no
more memory than one with two. Nothing here loops over ids or CPUs.

Every read sums all that it reads. To look first at what has changed since the last time would mean
to keep every CPU's value and to read both, old and new: that takes about as long as the sum itself
(`./dev bench telemetry`), and cannot save the kernel's copying.

Counters belong to an incarnation of an id: they are zeroed before an id gets its next owner, so an
owner never inherits its predecessor's packets, not even in an agent that starts later.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.errors import DataplaneError
from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import Generation, Identity, PlacedBackend, PlacedVip
from tidegate.model.grouped import ChangedValues, changed_values

BATCH_BYTES: Final = 1 << 19
"""Of one batch of values: half of what the smaller second-level caches hold."""

_WORD: Final = np.dtype("<u8")


class Totals(NamedTuple):
    """Counters over all CPUs, by id; element 0 is unused.

    Attributes:
        vips: `layout.VIP_COUNTERS`.
        addresses: `layout.ADDRESS_COUNTERS`, by the lowest id of an address's VIPs.
        backends: `layout.BACKEND_COUNTERS`.
    """

    vips: npt.NDArray[np.void]
    addresses: npt.NDArray[np.void]
    backends: npt.NDArray[np.void]


def read(fds: Mapping[str, int], generation: Generation) -> Totals:
    """Read the counters of a generation's ids. It may be called on any thread.

    Raises:
        DataplaneError: the kernel refused.
    """
    try:
        return Totals(
            *vip_totals(fds, generation),
            _sums(fds["backend_counts"], layout.BACKEND_COUNTERS, _ids(generation.backends)),
        )
    except OSError as error:
        raise DataplaneError(f"cannot read the counters: {error.strerror}") from error


def vip_totals(
    fds: Mapping[str, int], generation: Generation
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """Read the counters of a generation's VIPs and of their addresses alone; raise as `read`."""
    count = _ids(generation.vips)
    try:
        return (
            _sums(fds["vip_counts"], layout.VIP_COUNTERS, count),
            _sums(fds["address_counts"], layout.ADDRESS_COUNTERS, count),
        )
    except OSError as error:
        raise DataplaneError(f"cannot read the counters: {error.strerror}") from error


def _ids(placed: Mapping[Any, Any]) -> int:
    return 1 + max((each.identity.id for each in placed.values()), default=0)


def _sums(fd: int, dtype: np.dtype[np.void], count: int) -> npt.NDArray[np.void]:
    """Sum the first `count` elements of a per-CPU array, each over its CPUs."""
    cpus, words = maps.cpu_count(), dtype.itemsize // _WORD.itemsize
    size = max(1, BATCH_BYTES // (cpus * dtype.itemsize))
    room = np.empty((min(size, count), cpus, words), _WORD)
    found = np.zeros((count, words), _WORD)
    for first in range(0, count, size):
        part = room[: min(size, count - first)]
        bpf.array_values(fd, first, part, len(part))
        found[first : first + len(part)] = summed(part)
    return found.view(dtype)[:, 0]


def summed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Sum an array of shape (ids, CPUs, counters) over the CPUs.

    By einsum: `sum` over the middle axis adds two numbers at a time where there are two counters.
    """
    sums: npt.NDArray[np.uint64] = np.einsum("icw->iw", values)
    return sums


def packet_outcomes(
    vips: npt.NDArray[np.void], addresses: npt.NDArray[np.void]
) -> npt.NDArray[np.uint64]:
    """Return the outcomes of packets by id, of a VIP and the address that it stands for.

    Shape (ids, 4): all packets, those that were dropped, TCP packets without a SYN that no table of
    flows knew, and frames that the host had merged, which are dropped too.
    """
    drops = vips["drops"].sum(axis=1) + addresses["drops"].sum(axis=1)
    decisions = vips["decisions"]
    misses = decisions[:, Decision.FALLBACK] + decisions[:, Decision.CURRENT]
    packets = vips["packets"] + vips["answered"] + addresses["answered"] + drops
    merged = vips["drops"][:, Reason.MERGED]
    return np.stack((packets, drops, misses, merged), axis=1)


def per_cpu_packets(fds: Mapping[str, int]) -> npt.NDArray[np.uint64]:
    """Read the packets that each CPU has run the program for: shape (verdicts, CPUs).

    Raises:
        DataplaneError: the kernel refused.
    """
    room = np.empty((maps.VERDICTS, maps.cpu_count()), _WORD)
    try:
        bpf.array_values(fds["verdict_counts"], 0, room, maps.VERDICTS)
    except OSError as error:
        raise DataplaneError(f"cannot read the counters: {error.strerror}") from error
    return room


def clear_reused(fds: Mapping[str, int], before: Generation, after: Generation) -> None:
    """Zero the counters of ids that are about to get another owner; raise OSError.

    No packet is counted for them: they rested for longer than a flow may, and lead nowhere yet.
    """
    # A VIP that comes back within its id's cooldown goes on where it was.
    returning = {Identity(id_, rest.incarnation) for id_, rest in before.freed.vips.items()}
    of_vips = _reused(changed_values(before.vips, after.vips), returning)
    of_backends = [
        identity
        for name in after.by_pool.differing(before.by_pool)
        for identity in _reused(
            changed_values(before.by_pool.group(name), after.by_pool.group(name)), set()
        )
    ]
    for name, dtype, identities in (
        ("vip_counts", layout.VIP_COUNTERS, of_vips),
        ("address_counts", layout.ADDRESS_COUNTERS, of_vips),
        ("backend_counts", layout.BACKEND_COUNTERS, of_backends),
    ):
        zeros = bytes(dtype.itemsize * maps.cpu_count())
        for identity in identities:
            bpf.map_update(fds[name], identity.id.to_bytes(4, "little"), zeros)


def _reused(
    changed: ChangedValues[PlacedVip] | ChangedValues[PlacedBackend], returning: set[Identity]
) -> list[Identity]:
    """Return new incarnations but the first of an id, whose counters are zero."""
    known = {each.identity for each in changed.before} | returning
    uses = (each.identity for each in changed.after)
    return [use for use in uses if use.incarnation > 1 and use not in known]
