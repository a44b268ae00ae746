# SPDX-License-Identifier: Apache-2.0
"""Points of VIPs and backends from the kernel's counters: most of what a scrape is made of.

Names are kept from one scrape to the next and made anew when a generation has others. The values
are taken out of the sums by one index for each metric; no point has a line of Python of its own.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.inspect.counter_reader import Census, CounterSample
from tidegate.model.decision import FOR_ADDRESSES, FOR_VIPS, Decision, Reason
from tidegate.model.generation import Generation, Identity
from tidegate.model.values import BackendKey
from tidegate.telemetry.metrics.points import Points, Series
from tidegate.telemetry.names import metric_attributes as attributes
from tidegate.telemetry.names import metrics as names
from tidegate.telemetry.registry import Attribute

_DECISIONS: Final = tuple(each.name.lower() for each in Decision)
_VIP_REASONS: Final = sorted(FOR_VIPS - {Reason.NONE})
_ADDRESS_REASONS: Final = sorted(FOR_ADDRESSES)
_VIP_DROPS: Final = tuple(each.name.lower() for each in _VIP_REASONS)
_ADDRESS_DROPS: Final = tuple(each.name.lower() for each in _ADDRESS_REASONS)
_VERDICTS: Final = ("aborted", "drop", "pass", "tx")

_Ids: TypeAlias = npt.NDArray[np.intp]
_Name = TypeVar("_Name", str, BackendKey)
_Backends: TypeAlias = Mapping[BackendKey, Identity]


class _Owners:
    """Remembers when each owner of an id was first seen: its counters start then."""

    def __init__(self, began: int, clock: Callable[[], int]) -> None:
        self._began = began
        self._clock = clock
        self._since: dict[Identity, int] | None = None

    def since(self, uses: list[Identity]) -> list[int]:
        """Return when each was first seen, in the same order; ns since 1970."""
        known = self._since
        if known is None and not uses:
            return []
        fresh = self._began if known is None else self._clock()
        self._since = {use: (known or {}).get(use, fresh) for use in uses}
        return list(self._since.values())


class PacketPoints:
    """Makes points, from one generation to the next.

    Args:
        began: when the kernel's counters were made, ns since 1970.
        clock: ns since 1970.
    """

    def __init__(self, began: int, clock: Callable[[], int]) -> None:
        self._began = began
        self._vip_owners, self._backend_owners = _Owners(began, clock), _Owners(began, clock)
        self._address_owners = _Owners(began, clock)
        self._vips: Mapping[str, Identity] = {}
        self._addresses: Mapping[str, Identity] = {}
        self._backends: _Backends = {}
        self._cpus: list[int] = []
        self._name_vips()
        self._name_backends()
        self._name_cpus()

    def points(self, counted: CounterSample) -> list[Points]:
        """Return points of all that packets are counted by."""
        self._follow(counted.generation)
        vips, backends = counted.totals.vips[self._vip_ids], counted.totals.backends
        backends = backends[self._backend_ids]
        decisions = vips["decisions"]
        flows = decisions[:, Decision.SYN] + decisions[:, Decision.DATAGRAM]
        rehashes = (vips["rehashed_quarantined"], vips["rehashed_gone"])
        drops = vips["drops"][:, _VIP_REASONS]
        addresses = counted.totals.addresses[self._address_ids]
        lost = addresses["drops"][:, _ADDRESS_REASONS]
        return [
            Points(names.VIP_PACKETS, self._by_vip, vips["packets"].tolist()),
            Points(names.VIP_IO, self._by_vip, vips["bytes"].tolist()),
            Points(names.VIP_NEW_FLOWS, self._by_vip, flows.tolist()),
            Points(names.VIP_ANSWERS, self._by_vip, vips["answered"].tolist()),
            Points(names.VIP_DECISIONS, self._by_decision, decisions.ravel().tolist()),
            Points(names.VIP_DROPS, self._by_drop, drops.ravel().tolist()),
            Points(names.ADDRESS_ANSWERS, self._by_address, addresses["answered"].tolist()),
            Points(names.ADDRESS_DROPS, self._by_address_drop, lost.ravel().tolist()),
            Points(names.VIP_REHASHES, self._by_rehash, _rows(*rehashes)),
            Points(names.VIP_INSERTS, self._by_insert, _rows(vips["tracked"], vips["untracked"])),
            Points(names.BACKEND_PACKETS, self._by_backend, backends["packets"].tolist()),
            Points(names.BACKEND_IO, self._by_backend, backends["bytes"].tolist()),
            self._of_cpus(counted.by_cpu),
            Points(names.EVENTS, self._by_event, list(counted.events)),
        ]

    def live(self, census: Census) -> list[Points]:
        """Return the flows of VIPs and backends as they were counted last; newer ones have none."""
        vips = {name: placed.identity for name, placed in census.generation.vips.items()}
        backends = {key: placed.identity for key, placed in census.generation.backends.items()}
        return [
            Points(names.VIP_LIVE_FLOWS, self._by_vip, _of(self._vips, vips, census.vips)),
            Points(
                names.BACKEND_LIVE_FLOWS,
                self._by_backend,
                _of(self._backends, backends, census.backends),
            ),
        ]

    def _follow(self, generation: Generation) -> None:
        vips = {name: placed.identity for name, placed in sorted(generation.vips.items())}
        if vips != self._vips:
            self._vips = vips
            self._addresses = _addresses(generation)
            self._name_vips()
        backends = {key: each.identity for key, each in generation.backends.items()}
        if backends != self._backends:
            self._backends = dict(sorted(backends.items()))
            self._name_backends()

    def _name_vips(self) -> None:
        uses = list(self._vips.values())
        self._vip_ids: _Ids = np.array([use.id for use in uses], np.intp)
        began = self._vip_owners.since(uses)

        def by(keys: Attribute, words: tuple[str, ...]) -> Series:
            rows = [(name, word) for name in self._vips for word in words]
            return Series((attributes.VIP, keys), rows, [at for at in began for _ in words])

        self._by_vip = Series((attributes.VIP,), [(name,) for name in self._vips], began)
        self._by_decision = by(attributes.DECISION, _DECISIONS)
        self._by_drop = by(attributes.DROP_REASON, _VIP_DROPS)
        self._by_rehash = by(attributes.REHASH_CAUSE, ("quarantined", "gone"))
        self._name_addresses()
        self._by_insert = by(attributes.INSERT_OUTCOME, ("written", "refused"))

    def _name_addresses(self) -> None:
        uses = list(self._addresses.values())
        self._address_ids: _Ids = np.array([use.id for use in uses], np.intp)
        began = self._address_owners.since(uses)
        rows = [(address, word) for address in self._addresses for word in _ADDRESS_DROPS]
        starts = [at for at in began for _ in _ADDRESS_DROPS]
        each = [(address,) for address in self._addresses]
        self._by_address = Series((attributes.ADDRESS,), each, began)
        self._by_address_drop = Series((attributes.ADDRESS, attributes.DROP_REASON), rows, starts)

    def _name_backends(self) -> None:
        uses = list(self._backends.values())
        self._backend_ids: _Ids = np.array([use.id for use in uses], np.intp)
        rows = [(key.pool, key.name) for key in self._backends]
        began = self._backend_owners.since(uses)
        self._by_backend = Series((attributes.POOL, attributes.BACKEND), rows, began)

    def _name_cpus(self) -> None:
        rows = [(cpu, word) for word in _VERDICTS for cpu in self._cpus]
        self._by_cpu = Series((attributes.CPU, attributes.VERDICT), rows, self._began)
        self._by_event = Series((attributes.EVENT_OUTCOME,), [("sent",), ("lost",)], self._began)

    def _of_cpus(self, by_cpu: npt.NDArray[np.uint64]) -> Points:
        """Return points of CPUs that ever had a packet: a machine may have many it never uses."""
        used = np.flatnonzero(by_cpu.any(axis=0)).tolist()
        if used != self._cpus:
            self._cpus = used
            self._name_cpus()
        return Points(names.PROGRAM_PACKETS, self._by_cpu, by_cpu[:, used].ravel().tolist())


def _of(
    now: Mapping[_Name, Identity],
    then: Mapping[_Name, Identity],
    counts: npt.NDArray[np.int64],
) -> list[int]:
    """Return what was counted for the names of now, 0 for one that is not what it was then."""
    return [int(counts[use.id]) if then.get(name) == use else 0 for name, use in now.items()]


def _addresses(generation: Generation) -> dict[str, Identity]:
    """Return the addresses of VIPs, each with the lowest identity there, as it is counted by."""
    found: dict[str, Identity] = {}
    for placed in sorted(generation.vips.values(), key=lambda placed: placed.identity.id):
        network = placed.vip.network
        single = network.prefixlen == network.max_prefixlen
        found.setdefault(str(network.network_address if single else network), placed.identity)
    return dict(sorted(found.items()))


def _rows(*columns: npt.NDArray[np.uint64]) -> list[int]:
    values: list[int] = np.stack(columns, axis=1).ravel().tolist()
    return values
