# SPDX-License-Identifier: Apache-2.0
"""The settings of a host's data plane, as values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tidegate.dataplane.kernel import programs
from tidegate.dataplane.kernel.owner import Owner
from tidegate.dataplane.links import Gateways
from tidegate.dataplane.publish.aside import NOTHING_ASIDE, Aside


@dataclass(frozen=True)
class Settings:
    """The settings of a data plane.

    Attributes:
        pins: folder on a BPF file system.
        mode: `auto` is native, or generic where the driver refuses native.
        grace: seconds for which a replaced table stays loaded.
        probe_tunnel: whether marked connections of this host to a VIP go to the backend that the
            mark names (bpf/healthcheck.c at the interfaces' tc egress).
        macs: MAC addresses beside the interfaces' own, whose frames are taken; four at most.
        aside: what there is to do beside making a program and publishing, which take seconds.
        merging_off: whether NICs are told not to merge packets (LRO, rx-gro-hw).
        owner: fleet and host, by which its program is known without pins.
        file: the agent's, for advice.
        takes_over: whether programs that are not certainly ours are replaced at the start.
    """

    pins: Path
    interfaces: Sequence[str]
    mode: programs.ModeChoice
    build: programs.Build
    gateways: Gateways
    grace: float
    probe_tunnel: bool = False
    merging_off: bool = True
    aside: Aside = NOTHING_ASIDE
    macs: tuple[bytes, ...] = ()
    owner: Owner = field(default_factory=Owner)
    file: Path = Path("/etc/tidegate/agent.toml")
    takes_over: bool = False

    @property
    def own(self) -> Owner:
        """Return the owner of what is pinned."""
        return msgspec.structs.replace(self.owner, pins=str(self.pins))
