# SPDX-License-Identifier: Apache-2.0
"""Whose verdict counts in a fleet of four hosts: the fleet's, each host's own, an operator's.

One pool for each mode, all of the same backends, with long-lived flows through an address of its
own. Two hosts are load balancers with agents. Of the other two there are the verdicts alone, which
is all that hosts know of each other: four agents take twice as long to start, and do the same. What
was measured is a table in pytest's summary.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from support.lab.checked_lab import (
    VERDICTS,
    CheckedLab,
    Status,
    answers_to,
    assert_others_untouched,
    build_lab,
    measured,
    of_pools,
)
from support.lab.long_flows import Flows
from tidegate.keyspace.status.document import rfc3339
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

Record = Callable[[str, object], None]
ALL = ("b1", "b2", "b3")
CHECK = {"type": "http", "interval": 0.4, "timeout": 0.35, "rise": 2, "fall": 2}
NUMBERS = {"fleet": 1, "local": 2, "external": 3}
REACHING, NOT_REACHING = "lb3", "lb4"
"""Hosts of which there are verdicts only: one that finds what the second agent does, and one that
finds what the first does."""
ALL_WELL = {"healthy": 2 * 2 * len(ALL) + 2 * len(ALL)}


def vips(lab: Lab) -> Mapping[str, Mapping[str, Any]]:
    """Of each pool, at an address of its own."""
    return of_pools({pool: lab.vip4(number) for pool, number in NUMBERS.items()}, {})


@pytest.fixture(scope="module")
def checked_lab() -> Iterator[CheckedLab]:
    health: dict[str, dict[str, Any]] = {
        mode: {"mode": mode, "hold_down": 0, "panic_percent": 30} for mode in NUMBERS
    }
    for mode in ("fleet", "local"):
        health[mode]["check"] = CHECK
    pools = {mode: {"health": each} for mode, each in health.items()}
    size = {"backends": len(ALL), "lbs": 2, "vips": len(NUMBERS)}
    with build_lab(size, pools, vips, {"b3": 6}) as found:
        for host in (REACHING, NOT_REACHING):
            verdict(found, host, "fleet", ALL, "healthy")
        found.wait_for_states(ALL_WELL)
        found.synced()
        yield found


def flows_of(checked_lab: CheckedLab, pool: str, each: int = 16) -> Flows:
    """Long-lived flows through a pool's VIP; the router spreads them over all hosts."""
    return Flows(checked_lab.lab, [str(checked_lab.lab.vip4(NUMBERS[pool]))], ALL, each=each)


def out(count: int) -> Callable[[Status], bool]:
    return lambda status: bool(status["backends"]["unhealthy"] == count)


def verdict(
    checked_lab: CheckedLab, host: str, pool: str, backends: Iterable[str], state: str
) -> None:
    """Write a host's or an operator's verdict with etcdctl."""
    word = {
        "state": state,
        "code": "external",
        "since": rfc3339(int(time.time())),
        "recovered": False,
    }
    for backend in backends:
        checked_lab.lab.etcdctl("put", f"{VERDICTS}{host}/{pool}/{backend}", json.dumps(word))


@contextmanager
def unreached(checked_lab: CheckedLab, backends: Iterable[str]) -> Iterator[None]:
    """Keep two of four hosts, an agent and one of verdicts only, from these backends."""
    answers_to(checked_lab.lab, "lb1", backends, lost=True)
    verdict(checked_lab, NOT_REACHING, "fleet", backends, "unhealthy")
    try:
        yield
    finally:
        answers_to(checked_lab.lab, "lb1", backends, lost=False)
        verdict(checked_lab, NOT_REACHING, "fleet", backends, "healthy")


def test_an_operators_verdict_takes_out_and_lets_in(
    checked_lab: CheckedLab, record_property: Record
) -> None:
    """With `external` a verdict in etcd counts for all hosts, on that pool alone, as is its end."""
    with flows_of(checked_lab, "external") as flows:
        flows.fails_now()
        verdict(checked_lab, "operator", "external", ["b1"], "unhealthy")
        try:
            found_at = checked_lab.unhealthy(1)
            flows.moved(["b1"])
            flows.ended(["b1"])
            flows.settle(["b1"])
            since = time.monotonic()
            verdict(checked_lab, "operator", "external", ["b1"], "healthy")
            back = checked_lab.unhealthy(0) - since
            flows.settle(["b1"])
            assert_others_untouched(flows, ["b1"])
            row = measured("external verdict", flows, ["b1"], found_at, back)
        finally:
            checked_lab.lab.etcdctl("del", f"{VERDICTS}operator/external/b1")
        assert flows.outcome("udp", ["b1"]).moved > 0
        checked_lab.unhealthy(0)
        record_property("health", row)


def test_an_even_split_takes_nothing_out_but_of_a_local_pool(
    checked_lab: CheckedLab, record_property: Record
) -> None:
    """Two of four hosts find b1 dead: it stays; with `local` the one that does takes it out."""
    finding, other = checked_lab.statuses
    # So many that some of b1's are on each of the hosts, but for one run in some thousands.
    with flows_of(checked_lab, "fleet") as flows, flows_of(checked_lab, "local", 48) as own:
        for each in (flows, own):
            each.fails_now()
        with unreached(checked_lab, ["b1"]):
            checked_lab.wait_for_verdicts(lambda v: dead(v, "fleet") == ["lb1", NOT_REACHING])
            split_at = time.monotonic()
            found_at = finding.wait("b1 out", out(1), timeout=20).at
            other.wait("b1 in", out(0), timeout=20)
            flows.settle()
            own.settle()
            assert_others_untouched(flows, ())
            moved = own.outcome("udp", ["b1"])
            assert 0 < moved.moved < moved.flows, "the router spreads b1's flows over both hosts"
            assert_others_untouched(own, ["b1"])
        mended = time.monotonic()
        back = checked_lab.unhealthy(0) - mended
        checked_lab.wait_for_states(ALL_WELL)
        flows.settle()
        assert_others_untouched(flows, ())
        record_property("health", measured("even split: fleet", flows, (), split_at))
        record_property("health", measured("even split: local", own, ["b1"], found_at, back))


def dead(verdicts: Mapping[str, Any], pool: str) -> list[str]:
    """Return the hosts that find b1 of a pool dead."""
    ours = {key: each["state"] for key, each in verdicts.items() if key.endswith(f"/{pool}/b1")}
    return sorted(key.partition("/")[0] for key, state in ours.items() if state == "unhealthy")


def test_two_of_four_blind_hosts_take_nothing_out(
    checked_lab: CheckedLab, record_property: Record
) -> None:
    """Half of the hosts reach nothing: such a one is degraded, others are not, no flow moves."""
    blind, seeing = checked_lab.statuses
    with flows_of(checked_lab, "fleet") as flows:
        flows.fails_now()
        with unreached(checked_lab, ALL):
            found_at = blind.wait("blind", lambda s: s["health"]["blind"], timeout=20).at
            blind.wait("degraded", lambda s: "path is broken" in s["reason"], timeout=20)
            assert blind.current()["state"] == "degraded"
            flows.settle()
            checked_lab.unhealthy(0)
            seeing.wait("synced", lambda s: s["state"] == "synced", timeout=20)
            assert not seeing.current()["health"]["blind"]
            assert_others_untouched(flows, ())
        mended = time.monotonic()
        checked_lab.wait_for_states(ALL_WELL)
        back = blind.wait("synced", lambda s: s["state"] == "synced", timeout=20).at - mended
        flows.settle()
        assert_others_untouched(flows, ())
        record_property("health", measured("two of four blind", flows, (), found_at, back))
