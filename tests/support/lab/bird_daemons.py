# SPDX-License-Identifier: Apache-2.0
"""BIRD on a lab's load balancers and on its router, which speak BGP to each other.

A host's BIRD reads the VIPs that its agent writes into a table of the kernel, and the router's
spreads their packets over the hosts that announce them.
"""

from collections.abc import Iterable
from typing import Final

from tidegate.lab.plan import ROUTER
from tidegate.lab.rack import Lab

TIMERS: Final = "connect delay time 1; connect retry time 2; error wait time 1, 2;"
"""Seconds; BIRD's own would have a test wait for minutes until a session is back."""
_HOST: Final = """
router id {address};
protocol device {{ }}
protocol kernel vips4 {{ kernel table 84; learn; ipv4 {{ import all; export none; }}; }}
protocol kernel vips6 {{ kernel table 84; learn; ipv6 {{ import all; export none; }}; }}
protocol bgp rack4 {{
    local {address} as 65001;
    neighbor {router} as 65000;
    ipv4 {{ import none; export all; }};
    {timers}
}}
protocol bgp rack6 {{
    local {address6} as 65001;
    neighbor {router6} as 65000;
    ipv6 {{ import none; export all; }};
    {timers}
}}
"""
_ROUTER: Final = """
router id 10.77.1.1;
protocol device {{ }}
protocol kernel kernel4 {{ merge paths yes; ipv4 {{ import none; export all; }}; }}
protocol kernel kernel6 {{ merge paths yes; ipv6 {{ import none; export all; }}; }}
{peers}
"""
_PEER: Final = """
protocol bgp {lb}v{family} {{
    local {router} as 65000;
    neighbor {address} as 65001;
    ipv{family} {{ import where net ~ [ {vips}+ ]; export none; }};
    {timers}
}}
"""


def _start_bird(lab: Lab, node: str, text: str) -> None:
    """Start one, which ends with the lab."""
    folder = lab.folder(node)
    (folder / "bird.conf").write_text(text)
    command = ["bird", "-f", "-c", str(folder / "bird.conf"), "-s", str(folder / "bird.ctl")]
    bird = lab.node(node).daemon([*command, "-P", str(folder / "bird.pid")], folder / "bird.log")
    lab._children.append(bird)


def start_birds(lab: Lab, lbs: Iterable[str], more: str) -> None:
    """Have these hosts announce their VIPs to the router, which sends packets where it learns.

    Args:
        lab: a bare one.
        lbs: the hosts.
        more: of the router's configuration.
    """
    peers = [more]
    for lb in lbs:
        station = lab.station(lb)
        addresses = {"address": station.address4(), "address6": station.address6()}
        routers = {"router": station.address4(1), "router6": station.address6(1)}
        _start_bird(lab, lb, _HOST.format(**addresses, **routers, timers=TIMERS))
        peers += [
            _PEER.format(
                lb=lb,
                family=4,
                router=station.address4(1),
                address=station.address4(),
                vips="10.99.0.0/24",
                timers=TIMERS,
            ),
            _PEER.format(
                lb=lb,
                family=6,
                router=station.address6(1),
                address=station.address6(),
                vips="fd99::/64",
                timers=TIMERS,
            ),
        ]
    router = lab.node(ROUTER)
    router.run(["ip", "route", "del", "10.99.0.0/24"])  # from here on, only what is announced
    router.run(["ip", "-6", "route", "del", "fd99::/64"])
    _start_bird(lab, ROUTER, _ROUTER.format(peers="".join(peers)))
