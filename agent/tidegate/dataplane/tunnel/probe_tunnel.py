# SPDX-License-Identifier: Apache-2.0
"""The way of this host's probes into the tunnel, kept whole: the argument.

A marked connection is a probe of one backend only if bpf/healthcheck.c has it on its way out. Sent
plain, it would come to any balancer, whose table would choose who answers: a healthy backend would
be blamed for another one, and a dead one praised. So the way is held by three things.

* The program stands in two places at each interface's egress: a tc filter, and a tcx link where the
  kernel has them (6.6). Whoever takes one away (`tc qdisc del dev eth0 clsact`) leaves the other,
  and no probe leaves plain. A packet that one has put into the tunnel is no probe to the other.
* Both are compared twice a second, and at the kernel's word of a change, with what has to be there:
  the program, its place, that its answer is the verdict. What differs is put back at once, named in
  the log, and counted as a repair.
* The program counts each probe that it has sent, by backend (`sent`). A result without such a
  packet says nothing of the backend (health/engine.py). And where a place cannot be had again, the
  way is closed: no probe begins (`is_closed`), and the status says why.

What remains: where both places are gone at once, on an interface made anew, and where the filter is
gone from a kernel without tcx, probes leave plain until the program is back. They are not believed,
and have a hop limit of 1 (health/tcp.py), so only an endpoint on the same link gets them.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel import tcx
from tidegate.dataplane.kernel.programs import interface_index
from tidegate.dataplane.network.rtnetlink import RouteSocket
from tidegate.dataplane.publish.audit import Difference, Finding
from tidegate.dataplane.tunnel import probes as egress
from tidegate.dataplane.tunnel.probes import Probes, detach_probes
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.event_log import EventLog
from tidegate.spec.healthcheck import MARK

log = EventLog(__name__)

_COUNTS: Final = "probe_counts"
_HOOKS: Final = "probe_hooks"
_FILTER, _LINK = "tc filter", "tcx link"
_PLACE: Final = (
    egress.HANDLE,
    egress.PRIORITY << 16 | socket.htons(egress.ALL_PROTOCOLS),
)


class ProbeTunnel:
    """The probe program at the interfaces' egress.

    Args:
        pins: folder of the data plane's pins.
        make: loads the program, which is closed by who made it.
    """

    def __init__(self, pins: Path, make: Callable[[], Probes]) -> None:
        self._pins = pins
        self._make = make
        self._probes: Probes | None = None
        self._program = 0
        self._has_tcx = True
        self._standing: set[str] = set()
        self._findings: list[Finding] = []
        self._faults: dict[str, str] = {}
        self._plain: set[str] = set()

    @property
    def is_loaded(self) -> bool:
        """Whether there is a program."""
        return self._probes is not None

    @property
    def problems(self) -> list[str]:
        """What somebody should know, as sentences."""
        ends = {
            True: "no backend is checked until it is there",
            False: "one place holds them alone",
        }
        return [f"{each}; {ends[name in self._plain]}" for name, each in self._faults.items()]

    def load(self) -> None:
        """Load the program, with every feature, so no change of documents needs another.

        Raises:
            CompileError: with the compiler's or the verifier's messages.
            CapabilityError, DataplaneError: it cannot be loaded.
        """
        probes = self._make()
        (self._pins / _COUNTS).unlink(missing_ok=True)  # of the agent before
        probes.pin_counters(self._pins / _COUNTS)
        self._program = bpf.object_id(probes.program)
        self._probes = probes

    def sent(self, mark: int) -> int | None:
        """Return a number that changes with each packet of this mark that takes the tunnel.

        From any thread. None: there is nothing to tell it by.
        """
        if self._probes is None or mark >> 16 != MARK:
            return None
        return self._probes.sent(mark & 0xFFFF)

    @property
    def is_closed(self) -> bool:
        """Whether probes would leave an interface plain, so that none may begin."""
        return bool(self._plain)

    def lost_pins(self) -> Iterator[Difference]:
        """Find pins that are gone."""
        counts = self._pins / _COUNTS
        if self._probes is not None and not counts.exists():
            repair = partial(self._probes.pin_counters, counts)
            yield Difference(Finding("pins", _COUNTS, "missing"), repair)

    def take_findings(self) -> list[Finding]:
        """Return what was found and put back since this was last asked."""
        found, self._findings = self._findings, []
        return found

    def is_whole(self, interface: str) -> bool:
        """Return whether the program is where it belongs; true if the interface is away.

        Raises:
            OSError: this host cannot look.
        """
        with suppress(DataplaneError):
            return not any(self._lacking(interface))
        return True

    def keep(self, interface: str) -> None:
        """Put the program where it belongs, whatever an earlier agent or somebody else left.

        Raises:
            DataplaneError: there is no such interface.
        """
        if self._probes is None:
            release(interface, self._pins)
            return
        lacking = list(self._lacking(interface))
        try:
            if lacking:
                self._put(self._probes, interface)
        except (OSError, DataplaneError, CapabilityError) as error:
            self._note_fault(interface, f"the probes' program cannot be put at its egress: {error}")
            return
        self._faults.pop(interface, None)
        self._plain.discard(interface)
        if interface not in self._standing:
            log.info("probe_tunnel", interface=interface, tcx=self._has_tcx)
        elif lacking:
            self._findings += [Finding("probe tunnel", f"{interface} {e}", "lost") for e in lacking]
        self._standing.add(interface)

    def forget(self, interface: str) -> None:
        """Take note that an interface is away, and all that was on it."""
        self._standing.discard(interface)
        self._plain.discard(interface)
        self._faults.pop(interface, None)

    def _note_fault(self, interface: str, reason: str) -> None:
        """Close the way if no place is left, and say so once."""
        if len({_FILTER, _LINK} & {*self._lacking(interface)}) == 1 + self._has_tcx:
            self._plain.add(interface)
        else:
            self._plain.discard(interface)
        if self._faults.get(interface) != reason:
            log.error("probe_tunnel_lost", interface=interface, reason=reason)
        self._faults[interface] = reason

    def _lacking(self, interface: str) -> Iterator[str]:
        """Name the places in which the program is not, or not as it has to be."""
        if self._probes is None:
            return
        device = interface_index(interface)
        with RouteSocket() as routes:
            filters = routes.filters(device, egress.EGRESS)
        ours = [each for each in filters if each.place == _PLACE]
        if not any(each.program == self._program and each.decides for each in ours):
            yield _FILTER
        if self._has_tcx and tcx.read(_hook(interface, self._pins)) != (self._program, device):
            yield _LINK
        if not (self._pins / _COUNTS).exists():
            yield "counters' pin"

    def _put(self, probes: Probes, interface: str) -> None:
        path, device = _hook(interface, self._pins), interface_index(interface)
        if self._has_tcx and not tcx.attach(probes.program, device, path):
            self._has_tcx = False
            log.info("no_tcx", reason="this kernel has none: the tc filter stands alone")
        probes.attach(interface)
        if not (self._pins / _COUNTS).exists():
            probes.pin_counters(self._pins / _COUNTS)
        lost = ", ".join(self._lacking(interface))
        if lost:
            raise DataplaneError(f"{interface}: the {lost} was replaced at once")


def release(interface: str, pins: Path) -> bool:
    """Take the probe program off an interface's egress; return whether it was there.

    Raises:
        DataplaneError: there is no such interface.
        CapabilityError: not allowed.
    """
    path = _hook(interface, pins)
    was_linked = path.exists()
    path.unlink(missing_ok=True)
    return detach_probes(interface) or was_linked


def _hook(interface: str, pins: Path) -> Path:
    """Return where the link is pinned. A BPF file system refuses dots; no name has a colon."""
    return pins / _HOOKS / interface.replace(".", ":")
