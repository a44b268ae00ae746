# SPDX-License-Identifier: Apache-2.0
"""The loader of bpf/healthcheck.c, which sends health checks to the backend that they name.

It runs at the tc egress of an interface, whatever XDP program that has, and stays there when its
object is closed. The content of probes and their answers is not handled here.
"""

import errno
import mmap
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.compiler import compile_program
from tidegate.dataplane.kernel.loader import Kind, load
from tidegate.dataplane.kernel.programs import Build, interface_index
from tidegate.dataplane.tunnel.tunnel import CountedProgram, create_map, named, read_totals
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.model.constants import MAX_BACKENDS
from tidegate.model.decision import Reason
from tidegate.model.features import ALL_FEATURES
from tidegate.model.generation import Generation

EGRESS: Final = 0xFFFFFFF3
"""The egress side of a clsact qdisc (TC_H_CLSACT, TC_H_MIN_EGRESS of linux/pkt_sched.h)."""
CLSACT: Final = "clsact"
_FILTER: Final = "tidegate-probes"
HANDLE, PRIORITY = 0x5447, 0x5447
"""Our filter's own place, so that no other filter is replaced or removed."""
ALL_PROTOCOLS: Final = 0x0003
"""ETH_P_ALL."""
_INFO: Final = PRIORITY << 16
"""The priority alone, of whatever protocol."""


def probe_shapes() -> dict[str, maps.Shape]:
    """Return the maps of bpf/healthcheck.c that the balancer does not have."""
    return {
        "probe_counts": maps.Shape(bpf.PERCPU_ARRAY, 4, 8, len(Reason)),
        "probe_sent": maps.Shape(bpf.ARRAY, 4, 8, MAX_BACKENDS, bpf.F_MMAPABLE),
    }


class Probes(CountedProgram):
    """bpf/healthcheck.c over a balancer's maps, which must outlive this object, not what it loads.

    It has no state but its counters, so a new one simply takes the place of the one before.
    """

    def __init__(self, build: Build, balancer: Mapping[str, int]) -> None:
        """Compile and loads it.

        Args:
            build: of the balancer: its outer sources are the probes' too.
            balancer: descriptors of the balancer's maps by name.

        Raises:
            CompileError: with the compiler's or the verifier's messages.
            CapabilityError: not root, or no bcc.
            DataplaneError: the maps' layout differs from the program's.
        """
        everything = replace(build, features=ALL_FEATURES)
        program = compile_program("healthcheck", everything.constants())
        layout.check(program)
        fds = {name: create_map(name, shape) for name, shape in probe_shapes().items()}
        template = maps.create_inner()
        try:
            fd = load(program, {**balancer, **fds, "inner": template}, Kind.SCHED_CLS)
        finally:
            os.close(template)
        super().__init__(fd, fds, "probe_counts", len(Reason))
        # Mapped for as long as anybody looks: another thread may, while this is closed.
        memory = mmap.mmap(fds["probe_sent"], 8 * MAX_BACKENDS, mmap.MAP_SHARED, mmap.PROT_READ)
        self._sent = memoryview(memory).cast("Q")

    def attach(self, interface: str) -> None:
        """Attach it to an interface's tc egress, in place of the one that is there.

        Other tc programs stay, and see what is not a probe.

        Raises:
            DataplaneError: the interface does not exist, or the kernel has no clsact.
            CapabilityError: not allowed.
        """
        with IPRoute() as netlink, _refusals(interface, "attach"):
            index = interface_index(interface)
            try:
                netlink.tc("add", CLSACT, index)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
                _require_clsact(netlink, index, interface)
            try:
                self._replace_filter(netlink, index)
            except NetlinkError as error:
                if error.code != errno.EINVAL:
                    raise
                # Something else than a BPF filter has the place, and would have it for ever.
                netlink.tc("del-filter", index=index, parent=EGRESS, info=_INFO)
                self._replace_filter(netlink, index)

    def _replace_filter(self, netlink: Any, index: int) -> None:  # noqa: ANN401 - untyped
        netlink.tc(
            "replace-filter",
            "bpf",
            index,
            HANDLE,
            fd=self.program,
            name=_FILTER,
            parent=EGRESS,
            prio=PRIORITY,
            protocol=ALL_PROTOCOLS,
            direct_action=True,
        )

    def sent(self, backend: int) -> int:
        """Return a number that changes with each packet that is sent to the backend of this id."""
        return self._sent[backend]

    def counters(self) -> Counter[Reason]:
        """Read the probes by outcome: `NONE` was sent, the others were dropped."""
        return named(Reason, self._read())


def read_probe_counters(path: Path) -> Counter[Reason]:
    """Read the counters that a `Probes` pinned, as its own `counters` has them."""
    fd = bpf.open_pin(str(path))
    try:
        return named(Reason, read_totals(fd, len(Reason)))
    finally:
        os.close(fd)


def detach_probes(interface: str) -> bool:
    """Take bpf/healthcheck.c out of an interface's tc filters; return whether it was there.

    Raises:
        DataplaneError: there is no such interface.
        CapabilityError: not allowed.
    """
    with IPRoute() as netlink, _refusals(interface, "detach"):
        index = interface_index(interface)
        try:
            netlink.tc(
                "del-filter",
                "bpf",
                index,
                HANDLE,
                parent=EGRESS,
                prio=PRIORITY,
                protocol=ALL_PROTOCOLS,
            )
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.EINVAL):  # no filter; no clsact
                raise
            return False
    return True


def _require_clsact(netlink: Any, index: int, interface: str) -> None:  # noqa: ANN401 - untyped
    """Make sure that what has the place of `clsact` is one.

    An `ingress` queueing discipline has the same place. It would take a filter for the egress side
    without a word, and run it at ingress. A change of nothing is refused where the kind differs.
    """
    try:
        netlink.tc("change", CLSACT, index)
    except NetlinkError as error:
        if error.code != errno.EINVAL:
            raise
        raise DataplaneError(
            f"another queueing discipline has the place of {CLSACT}: `tc qdisc show dev "
            f"{interface}`, and have its filters on {CLSACT}, which has an ingress side too"
        ) from error


@contextmanager
def _refusals(interface: str, what: str) -> Iterator[None]:
    """Turn the kernel's refusals into our errors."""
    try:
        yield
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise CapabilityError(
                f"may not {what} the health-check program on {interface}: run as root, or with "
                "CAP_NET_ADMIN"
            ) from error
        raise DataplaneError(
            f"{interface}: cannot {what} the health-check program at tc egress "
            f"({os.strerror(error.code)}); it needs a kernel with CONFIG_NET_SCH_INGRESS and "
            "CONFIG_NET_CLS_BPF"
        ) from error


def has_checks(generation: Generation) -> bool:
    """Return whether the backends of any pool are checked."""
    pools = (placed.pool for placed in generation.pools.values())
    return any(pool.health is not None and pool.health.check is not None for pool in pools)
