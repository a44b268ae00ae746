# SPDX-License-Identifier: Apache-2.0
"""Flows stay with their server and their VIP, whatever these are called, and off what failed."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from support.documents.roster import VIP4, backend, desired, vip
from support.packets.both import Both
from support.packets.frames import ip4, tcp
from tidegate.model.document_types import BackendState, Tracking
from tidegate.model.values import BackendKey, Desired, Fitness
from tidegate.planner import plan

pytestmark = pytest.mark.root

SOURCES = range(40000, 40024)
DELAY = 300


def want(tracking: Tracking = "full", delay: int = DELAY, **servers: int) -> Desired:
    """Return a pool of backends by name, each at the address of this number."""
    found = [backend(name, f"10.1.0.{number}") for name, number in servers.items()]
    return desired([vip("web4", VIP4, tracking=tracking)], found, delay=delay)


def owners(both: Both, kind: str = "A", sources: Sequence[int] = SOURCES) -> list[str]:
    """Return the address that a packet of each flow is sent to."""
    there = {p.identity.id: str(p.backend.address) for p in both.generation.backends.values()}
    results = [both.send(tcp(kind, ip4(), sport=source)) for source in sources]
    return [there.get(result.backend or 0, "nobody") for result in results]


def opened(both: Both, wanted: Desired) -> list[str]:
    """Open flows to this roster; return where they went."""
    both.want(wanted)
    assert owners(both, "S") == owners(both)
    return owners(both)


AFTER = {
    "renamed": {"d": 1, "b": 2, "c": 3},
    "all renamed": {"x": 1, "y": 2, "z": 3},
    "exchanged": {"a": 2, "b": 1, "c": 3},
    "in a circle": {"a": 2, "b": 3, "c": 1},
    "numbered anew": {"b": 1, "c": 2, "d": 3},
}


@pytest.mark.parametrize("tracking", ["full", "transition"])
@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
@pytest.mark.parametrize("delay", [0, DELAY])
def test_renamed_servers_keep_their_flows(
    both: Both, tracking: Tracking, after: dict[str, int], delay: int
) -> None:
    """At once, and long after a deregistration delay has passed."""
    first = opened(both, want(tracking, delay, a=1, b=2, c=3))
    both.want(want(tracking, delay, **after))
    assert owners(both) == first
    both.want(want(tracking, delay, **after), DELAY + 1)
    assert owners(both) == first


def test_a_server_that_lost_its_name_drains(both: Both) -> None:
    """Its flows stay until the delay is over, as if its key had been deleted."""
    first = opened(both, want(a=1, b=2, c=3))
    both.want(want(a=2, b=3))
    assert owners(both) == first
    assert "10.1.0.1" not in owners(both, "S", range(50000, 50048))
    both.want(want(a=2, b=3), DELAY + 1)
    assert [o for o in owners(both) if o in first] == [
        o if o != "10.1.0.1" else n for o, n in zip(first, owners(both), strict=True)
    ]
    assert "10.1.0.1" not in owners(both)


def test_a_new_name_takes_over_from_one_that_drains(both: Both) -> None:
    """Then its flows have no delay any more."""
    first = opened(both, want(a=1, b=2, c=3))
    both.want(want(b=2, c=3))
    both.want(want(b=2, c=3, d=1), DELAY - 10)
    both.want(want(b=2, c=3, d=1), 2 * DELAY)
    assert owners(both) == first


@pytest.mark.parametrize("away", [{"protocol": "udp"}, {"port": 8080}, None])
def test_a_vip_that_returns_has_its_flows(both: Both, away: dict[str, object] | None) -> None:
    """It was of another protocol or port meanwhile, or not there; the table has moved since."""
    first = opened(both, want(a=1, b=2, c=3))
    before = both.generation
    service = before.vips["web4"].vip
    other = {} if away is None else {"web4": replace(service, **away)}  # type: ignore[arg-type]
    drained = [backend(n, f"10.1.0.{i}", state="drain") for i, n in enumerate("abc", 1)]
    more = [*drained, backend("d", "10.1.0.4")]
    both.want(replace(desired([service], more, delay=DELAY), vips=other))
    both.want(desired([replace(service, name="back")], more, delay=DELAY), 1800)
    assert owners(both) == first
    assert set(owners(both, "S", range(50000, 50012))) == {"10.1.0.4"}


@pytest.mark.parametrize("fails", ["before", "with it", "later"])
def test_a_failed_server_does_not_come_back_when_its_key_goes(both: Both, fails: str) -> None:
    """Its flows moved, and stay where they are for the whole of its delay."""
    first = opened(both, want(a=1, b=2, c=3))
    out = {BackendKey("web", "a"): Fitness(is_out=True)}
    fit: dict[BackendKey, Fitness] = {}
    both_there, left = want(a=1, b=2, c=3), want(b=2, c=3)
    moments = {"before": (out, out, out), "with it": (fit, out, out), "later": (fit, fit, out)}
    for wanted, fitness in zip((both_there, left, left), moments[fails], strict=True):
        both.clock += 1
        both.install(plan(wanted, both.generation, both.clock, fitness))
    moved = owners(both)
    assert "10.1.0.1" not in moved
    assert [m for m, f in zip(moved, first, strict=True) if f != "10.1.0.1"] == [
        f for f in first if f != "10.1.0.1"
    ]
    for pause in (1, DELAY - 10, DELAY):
        both.clock += pause
        both.install(plan(left, both.generation, both.clock, out))
        assert owners(both) == moved


@pytest.mark.parametrize("state", ["quarantine", "disabled"])
def test_a_quarantine_outlives_its_key(both: Both, state: BackendState) -> None:
    """No packet reaches the server between the two changes, nor afterwards."""
    opened(both, want(a=1, b=2, c=3))
    taken_out = want(a=1, b=2, c=3)
    key = BackendKey("web", "a")
    document = replace(taken_out.backends[key], state=state)
    both.want(replace(taken_out, backends=taken_out.backends | {key: document}))
    moved = owners(both)
    assert "10.1.0.1" not in moved
    for pause in (1, 100, DELAY):
        both.want(want(b=2, c=3), pause)
        assert owners(both) == moved
