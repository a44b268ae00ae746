# SPDX-License-Identifier: Apache-2.0
"""Checks over HTTP, UDP, DNS and gRPC through the real tunnel, on one load balancer.

One pool per type, each with all backends and a VIP address of its own. What ails b1 is known to
that pool's check alone, while long-lived flows run through the same address. What was measured is a
table in pytest's summary.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import groupby
from typing import Any, NamedTuple

import dns.rcode
import pytest

from support.lab.checked_lab import (
    CheckedLab,
    Status,
    assert_others_untouched,
    build_lab,
    measured,
    of_pools,
)
from support.lab.long_flows import Flows
from support.lab.responders import DNS_PORT, GRPC_PORT, NAME, PAGE_PORT, WELL, Responders
from tidegate.lab import wiring
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

Record = Callable[[str, object], None]
PACE = {"interval": 0.3, "timeout": 0.25, "rise": 2, "fall": 2}
CHECKS: dict[str, dict[str, Any]] = {
    "page": {"type": "http", "path": "/well", "status": ["200"], "body": WELL},
    "udp": {"type": "udp", "send": "ping", "expect": "ping"},
    "dns": {"type": "dns", "query": NAME},
    "grpc": {"type": "grpc"},
    "six": {"type": "http"},
    "flap": {"type": "http", "path": "/flap", "interval": 0.2, "timeout": 0.2},
}
HOLD = 2
"""Seconds that the backend that flaps must pass: more than any of its good times."""
NUMBERS = {pool: number for number, pool in enumerate(CHECKS, 1)}
PORTS = {
    "page": ("tcp", PAGE_PORT),
    "dns": ("udp", DNS_PORT),
    "grpc": ("tcp", GRPC_PORT),
    "flap": ("tcp", PAGE_PORT),
}


class RespondingLab(NamedTuple):
    """A lab of one host whose backends have a server for each type of check."""

    checked_lab: CheckedLab
    servers: Mapping[str, Responders]

    def flows(self, pool: str) -> Flows:
        """Long-lived flows through a pool's VIP."""
        lab, number = self.checked_lab.lab, NUMBERS[pool]
        vip = lab.vip6(number) if pool == "six" else lab.vip4(number)
        return Flows(lab, [str(vip)], [node.name for node in lab.backends()])


def vips(lab: Lab) -> Mapping[str, Mapping[str, Any]]:
    """Of each pool: what its check asks, by name before the ports of the flows."""
    addresses = {pool: lab.vip4(number) for pool, number in NUMBERS.items()}
    return of_pools(addresses | {"six": lab.vip6(NUMBERS["six"])}, PORTS)


@pytest.fixture(scope="module")
def responding_lab() -> Iterator[RespondingLab]:
    def pool(name: str) -> Mapping[str, Any]:
        hold = HOLD if name == "flap" else 0
        check = PACE | CHECKS[name]
        return {"health": {"check": check, "hold_down": hold, "panic_percent": 30}}

    pools = {name: pool(name) for name in CHECKS}
    size = {"backends": 3, "lbs": 1, "vips": len(CHECKS)}
    with build_lab(size, pools, vips, {"b3": 6}) as checked_lab, ExitStack() as stack:
        servers = {
            node.name: stack.enter_context(Responders(node, checked_lab.lab.vip4(NUMBERS["dns"])))
            for node in checked_lab.lab.backends()
        }
        checked_lab.wait_for_states({"healthy": 3 * len(CHECKS)})
        checked_lab.unhealthy(0)
        yield RespondingLab(checked_lab, servers)


Change = Callable[[RespondingLab], object]


def to(**values: object) -> Change:
    """Change how b1's servers answer."""

    def change(responding_lab: RespondingLab) -> None:
        for name, value in values.items():
            setattr(responding_lab.servers["b1"], name, value)

    return change


def rpc(*, serving: bool) -> Change:
    return lambda lab: lab.servers["b1"].serving(yes=serving)


def echo(number: signal.Signals) -> Change:
    """Send a signal to b1's UDP server."""

    def change(responding_lab: RespondingLab) -> None:
        nodes = {node["name"]: node for node in responding_lab.checked_lab.lab.status()["nodes"]}
        mine = [p["pid"] for p in nodes["b1"]["processes"] if "echo.py" in p["command"]]
        assert len(mine) == 1
        os.kill(mine[0], number)

    return change


def forget_vip6(responding_lab: RespondingLab) -> None:
    lab = responding_lab.checked_lab.lab
    address = f"{lab.vip6(NUMBERS['six'])}/128"
    lab.node("b1").run(["ip", "addr", "del", address, "dev", "lo"])


def know_vip6(responding_lab: RespondingLab) -> None:
    lab = responding_lab.checked_lab.lab
    wiring.add_loopback_address(lab.node("b1").namespace, lab.vip6(NUMBERS["six"]))


FAILURES: dict[str, tuple[str, str, Change, Change]] = {
    "http: wrong status": ("page", "The status is 503", to(status=503), to(status=200)),
    "http: wrong body": ("page", "does not contain", to(body="all is lost"), to(body=WELL)),
    "http: answers late": ("page", "within 0.25 s", to(delay=0.6), to(delay=0.0)),
    "udp: server hangs": ("udp", "within 0.25 s", echo(signal.SIGSTOP), echo(signal.SIGCONT)),
    "dns: SERVFAIL": (
        "dns",
        "SERVFAIL",
        to(rcode=dns.rcode.SERVFAIL),
        to(rcode=dns.rcode.NOERROR),
    ),
    "grpc: not serving": ("grpc", "NOT_SERVING", rpc(serving=False), rpc(serving=True)),
    "IPv6-only VIP removed": ("six", "within 0.25 s", forget_vip6, know_vip6),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_each_check_finds_what_it_looks_for(
    responding_lab: RespondingLab, failure: str, record_property: Record
) -> None:
    """The backend is out of that pool alone, for the reason that is true, and returns when well."""
    pool, words, fail, mend = FAILURES[failure]
    checked_lab = responding_lab.checked_lab
    with responding_lab.flows(pool) as flows:
        flows.fails_now()
        fail(responding_lab)
        try:
            found_at = checked_lab.unhealthy(1)
            flows.moved(["b1"])
            flows.ended(["b1"])
            flows.settle(["b1"])
            ill = {k: v for k, v in checked_lab.verdicts().items() if v["state"] == "unhealthy"}
        finally:
            mend(responding_lab)
        mended = time.monotonic()
        back = checked_lab.unhealthy(0) - mended
        flows.settle(["b1"])
        assert list(ill) == [f"lb1/{pool}/b1"]
        assert words in ill[f"lb1/{pool}/b1"]["reason"]
        moved = flows.outcome("udp", ["b1"])
        assert moved.moved == moved.flows > 0
        assert_others_untouched(flows, ["b1"])
        record_property("health", measured(failure, flows, ["b1"], found_at, back))


FLAPS = 3


def test_a_flapping_backend_is_held_down(
    responding_lab: RespondingLab, record_property: Record
) -> None:
    """However often it changes: it is out, in, out and then held, and so are its flows."""
    checked_lab, server = responding_lab.checked_lab, responding_lab.servers["b1"]
    counts: list[int] = []
    ended = 0.0

    def flap() -> None:
        nonlocal ended
        for _ in range(FLAPS):
            for flaps in (True, False):
                server.flaps = flaps
                server.wait_for_flap_answers(3)  # the first may be of before
        ended = time.monotonic()

    flapping = threading.Thread(target=flap)

    def is_over(status: Status) -> bool:
        counts.append(status["backends"]["unhealthy"])
        return not flapping.is_alive() and counts[-1] == 0

    with responding_lab.flows("flap") as flows:
        flows.fails_now()
        flapping.start()
        try:
            found_at = checked_lab.unhealthy(1)
            counts.append(1)
            back = checked_lab.statuses[0].wait("back", is_over, timeout=60).at
        finally:
            flapping.join()
        flows.settle(["b1"])
        changes = [count for count, _ in groupby(counts)]
        assert set(counts) == {0, 1}
        assert len(changes) <= 4, changes  # held down by nothing, it would be two for each flap
        moves = [flow.moves_since(flows.failed_at) for flow in flows.homes("udp", ["b1"])]
        assert moves
        assert max(moves) <= len(changes)
        assert_others_untouched(flows, ["b1"])
        row = measured(f"flapping ({FLAPS} times)", flows, ["b1"], found_at, back - ended)
        record_property("health", row)
