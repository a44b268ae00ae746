# SPDX-License-Identifier: Apache-2.0
"""A change that needs room in every map, and what must not move while the kernel has none."""

from dataclasses import replace
from ipaddress import ip_network

from support.crash.bench import Bench, Packets, everything
from support.documents.roster import backend, generations, vip
from tidegate.model.values import Desired, Quic, SourceRoute
from tidegate.planner import plan

NOW = 1_700_000_000


OLD = generations(everything(), now=NOW)[-1]


def more() -> Desired:
    """Return one more of everything: each keyed map needs room for it, each table changes."""
    base = everything()
    routes = (SourceRoute(ip_network("10.0.0.0/8"), "web"),)
    vips = [
        vip("more", "192.0.2.77", source_routes=routes),
        vip("more-net", "198.19.0.0/24"),
        vip("more-quic", "192.0.2.78", 443, "udp", "api", quic=Quic(2)),
    ]
    servers = [
        backend("b9", "203.0.113.9"),
        backend("a9", "2001:db8:2::9", pool="api", quic_server_id=b"\x09\x09"),
    ]
    return replace(
        base,
        revision=2,
        vips=base.vips | {v.name: v for v in vips},
        backends=base.backends | {b.key: b for b in servers},
    )


NEW = plan(more(), OLD, NOW + 1)


class Watch:
    """Flows and tables of the VIPs that are there all the time."""

    def __init__(self, bench: Bench) -> None:
        self.packets = Packets(bench.program, OLD, NEW)
        self.vips = {name: placed.vip for name, placed in OLD.vips.items()}
        self.flows = self.packets.establish(self.vips)
        self.tables = self.look()

    def look(self) -> dict[str, list[str | None]]:
        """Return where new flows go, by VIP."""
        return {name: self.packets.table(service) for name, service in self.vips.items()}

    def assert_nothing_moved(self) -> None:
        """Check that every open flow is where it was."""
        assert self.packets.established(self.vips) == self.flows
