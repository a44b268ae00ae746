# SPDX-License-Identifier: Apache-2.0
"""Whose word counts, on four load balancers: the fleet's, each host's own, an operator's.

One pool for each mode, all of the same backends, with long-lived flows through an address of its
own. What was measured is a table in pytest's summary.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from health_rack import (
    VERDICTS,
    Fleet,
    Status,
    answers_to,
    assert_others_untouched,
    measured,
    of_pools,
    rack,
)
from long_flows import Flows
from tidegate.keyspace.status import rfc3339
from tidegate.lab.control import StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

Record = Callable[[str, object], None]
ALL = ("b1", "b2", "b3")
CHECK = {"type": "http", "interval": 0.4, "timeout": 0.35, "rise": 2, "fall": 2}
NUMBERS = {"fleet": 1, "local": 2, "external": 3}
HOSTS = 4


def vips(lab: Lab) -> Mapping[str, Mapping[str, Any]]:
    """Of each pool, at an address of its own."""
    return of_pools({pool: lab.vip4(number) for pool, number in NUMBERS.items()}, {})


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    health: dict[str, dict[str, Any]] = {
        mode: {"mode": mode, "hold_down": 0, "panic_percent": 30} for mode in NUMBERS
    }
    for mode in ("fleet", "local"):
        health[mode]["check"] = CHECK
    pools = {mode: {"health": each} for mode, each in health.items()}
    size = {"backends": len(ALL), "lbs": HOSTS, "vips": len(NUMBERS)}
    with rack(size, pools, vips, {"b3": 6}) as found:
        found.wait_for_states({"healthy": 2 * HOSTS * len(ALL)})
        found.synced()
        yield found


def flows_of(fleet: Fleet, pool: str, each: int = 16) -> Flows:
    """Long-lived flows through a pool's VIP; the router spreads them over all hosts."""
    return Flows(fleet.lab, [str(fleet.lab.vip4(NUMBERS[pool]))], ALL, each=each)


def out(count: int) -> Callable[[Status], bool]:
    return lambda status: bool(status["backends"]["unhealthy"] == count)


def await_all(
    watches: tuple[StatusWatch, ...], what: str, wanted: Callable[[Status], bool]
) -> float:
    """When the last of these hosts was seen to be so."""
    return max(each.wait(what, wanted, timeout=20).at for each in watches)


def verdict(fleet: Fleet, state: str) -> None:
    """An operator's word on b1, with etcdctl."""
    now = rfc3339(int(time.time()))
    recovered = state == "healthy"
    word = {"state": state, "code": "external", "since": now, "recovered": recovered}
    fleet.lab.etcdctl("put", f"{VERDICTS}operator/external/b1", json.dumps(word))


def test_an_operators_verdict_takes_out_and_lets_in(fleet: Fleet, record_property: Record) -> None:
    """With `external` a word in etcd is obeyed by all hosts, on that pool alone, as is its end."""
    with flows_of(fleet, "external") as flows:
        flows.fails_now()
        verdict(fleet, "unhealthy")
        try:
            found_at = fleet.unhealthy(1)
            flows.moved(["b1"])
            flows.ended(["b1"])
            flows.settle(["b1"])
            since = time.monotonic()
            verdict(fleet, "healthy")
            back = fleet.unhealthy(0) - since
            flows.settle(["b1"])
            assert_others_untouched(flows, ["b1"])
            row = measured("external verdict", flows, ["b1"], found_at, back)
        finally:
            fleet.lab.etcdctl("del", f"{VERDICTS}operator/external/b1")
        assert flows.outcome("udp", ["b1"]).moved > 0
        fleet.unhealthy(0)
        record_property("health", row)


def test_an_even_split_takes_nothing_out_but_of_a_local_pool(
    fleet: Fleet, record_property: Record
) -> None:
    """Two of four hosts find b1 dead: it stays; with `local` they alone take it out."""
    finding, others = fleet.statuses[:2], fleet.statuses[2:]
    # So many that some of b1's are on each half of the hosts, but for one run in some thousands.
    with flows_of(fleet, "fleet") as flows, flows_of(fleet, "local", 48) as own:
        for each in (flows, own):
            each.fails_now()
        for host in ("lb1", "lb2"):
            answers_to(fleet.lab, host, ["b1"], lost=True)
        try:
            fleet.wait_for_verdicts(lambda v: split(v, "fleet") == ["lb1", "lb2"])
            split_at = time.monotonic()
            found_at = await_all(finding, "b1 out", out(1))
            await_all(others, "b1 in", out(0))
            flows.settle()
            own.settle()
            assert_others_untouched(flows, ())
            moved = own.outcome("udp", ["b1"])
            assert 0 < moved.moved < moved.flows, "the router spreads b1's flows over all hosts"
            assert_others_untouched(own, ["b1"])
        finally:
            for host in ("lb1", "lb2"):
                answers_to(fleet.lab, host, ["b1"], lost=False)
        mended = time.monotonic()
        back = fleet.unhealthy(0) - mended
        fleet.wait_for_verdicts(lambda v: split(v, "fleet") == [])
        flows.settle()
        assert_others_untouched(flows, ())
        record_property("health", measured("even split: fleet", flows, (), split_at))
        record_property("health", measured("even split: local", own, ["b1"], found_at, back))


def split(verdicts: Mapping[str, Any], pool: str) -> list[str]:
    """The hosts that find b1 of a pool dead."""
    ours = {key: each["state"] for key, each in verdicts.items() if key.endswith(f"/{pool}/b1")}
    return sorted(key.partition("/")[0] for key, state in ours.items() if state == "unhealthy")


def test_two_of_four_blind_hosts_say_so_and_take_nothing_out(
    fleet: Fleet, record_property: Record
) -> None:
    """Half of the hosts reach nothing: they are degraded, the others are not, and no flow moves."""
    blind, seeing = fleet.statuses[:2], fleet.statuses[2:]
    with flows_of(fleet, "fleet") as flows:
        flows.fails_now()
        for host in ("lb1", "lb2"):
            answers_to(fleet.lab, host, ALL, lost=True)
        try:
            found_at = await_all(blind, "blind", lambda s: s["health"]["blind"])
            await_all(blind, "degraded", lambda s: "path is broken" in s["reason"])
            assert {each.current()["state"] for each in blind} == {"degraded"}
            flows.settle()
            fleet.unhealthy(0)
            await_all(seeing, "seeing", lambda s: not s["health"]["blind"])
            assert_others_untouched(flows, ())
        finally:
            for host in ("lb1", "lb2"):
                answers_to(fleet.lab, host, ALL, lost=False)
        mended = time.monotonic()
        fleet.wait_for_states({"healthy": 2 * HOSTS * len(ALL)})
        back = await_all(blind, "synced", lambda s: s["state"] == "synced") - mended
        flows.settle()
        assert_others_untouched(flows, ())
        record_property("health", measured("two of four blind", flows, (), found_at, back))
