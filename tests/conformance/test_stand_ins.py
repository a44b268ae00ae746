# SPDX-License-Identifier: Apache-2.0
"""Flows of backends that stand in for one that is out: they stay, whatever flags and tables do.

A re-hash chooses the stand-in while the table still names the one that is out, so nothing but a
mark or an entry says afterwards where such a flow is.
"""

from collections.abc import Iterable

import pytest

from support.documents.roster import VIP4, backend, desired, vip
from support.packets.both import Both
from support.packets.frames import ip4, tcp
from tidegate.model.document_types import Tracking
from tidegate.model.generation import Generation
from tidegate.model.values import BackendKey, Desired, Fitness
from tidegate.planner import plan

pytestmark = [pytest.mark.root, pytest.mark.parametrize("tracking", ["full", "transition"])]

PORTS = range(20000, 20060)
LATE = 400
"""Seconds after which every window is closed."""


def roster(tracking: Tracking, *, pool: str = "web", drains: str = "") -> Desired:
    servers = [
        backend(f"b{n}", state="drain" if f"b{n}" == drains else "active") for n in (1, 2, 3, 4)
    ]
    others = [backend(f"c{n}", f"10.2.0.{n}", pool="other") for n in (1, 2)]
    return desired([vip("web", VIP4, pool=pool, tracking=tracking)], [*servers, *others])


def flag(both: Both, *names: str) -> None:
    """Flag backends before their generation, as the agent does at once."""
    both.kernel.publisher.flag_unhealthy(BackendKey("web", name) for name in names)
    both.state.install(both.kernel.publisher.standing)


def publish(
    both: Both, wanted: Desired, *out: str, pool: str = "web", after: int = 1
) -> Generation:
    """Publish what follows when health has these backends out, and no others."""
    both.clock += after
    fitness = {BackendKey(pool, name): Fitness(is_out=True) for name in out}
    both.install(plan(wanted, both.kernel.publisher.standing, both.clock, fitness))
    return both.generation


def homes(
    both: Both, flags: str, ports: Iterable[int] = PORTS, seq: int = 7
) -> dict[int, str | None]:
    """Send a packet on each port, and return where it went."""
    return {port: both.backend(both.send(tcp(flags, ip4(), sport=port, seq=seq))) for port in ports}


def test_handshakes_of_a_failure_complete(both: Both, tracking: Tracking) -> None:
    """A SYN's stand-in keeps the flow when another fails, at the table, and at the recovery."""
    wanted = roster(tracking)
    publish(both, wanted)
    flag(both, "b1")
    first = homes(both, "S")
    assert "b1" not in first.values()
    flag(both, "b1", "b2")
    there = {port: home for port, home in first.items() if home != "b2"}
    assert homes(both, "A", list(there)[::2], seq=8).items() <= there.items()
    assert homes(both, "S", there) == there
    publish(both, wanted, "b1", "b2")
    assert homes(both, "A", there, seq=8) == there
    publish(both, wanted)
    publish(both, wanted, after=LATE)
    assert homes(both, "A", there, seq=9) == there


def test_who_went_to_a_stand_in_does_not_return(both: Both, tracking: Tracking) -> None:
    """When health takes its verdict back before a table was built: flows and handshakes stay."""
    wanted = roster(tracking)
    publish(both, wanted)
    before = homes(both, "S") | homes(both, "A", seq=8)
    flag(both, "b1")
    moved = [port for port, home in before.items() if home == "b1"]
    began = [port + 1000 for port in PORTS]
    there = homes(both, "A", moved, seq=9) | homes(both, "S", began)
    number = both.generation.number
    publish(both, wanted)
    assert both.generation.number > number
    assert homes(both, "A", moved, seq=10) | homes(both, "A", began, seq=8) == there
    publish(both, wanted, after=LATE)
    assert homes(both, "A", there, seq=11) == there


def test_a_syn_again_goes_to_its_mark(both: Both, tracking: Tracking) -> None:
    """Though the entry that it contested may take new flows again by then."""
    wanted = roster(tracking)
    publish(both, wanted, "b1")
    publish(both, wanted)
    before = homes(both, "S") | homes(both, "A", seq=8)
    publish(both, roster(tracking, drains="b2"))
    ports = [port for port, home in before.items() if home == "b2"]
    homes(both, "A", ports, seq=9)
    there = homes(both, "S", ports, seq=90000)
    assert ports
    assert "b2" not in there.values()
    publish(both, wanted)
    assert homes(both, "S", ports, seq=90000) == there
    assert homes(both, "A", ports, seq=90001) == there


def test_a_new_flow_does_not_follow_an_old_entry(both: Both, tracking: Tracking) -> None:
    """The mark names a backend that has failed since: the packet goes by the table, and stays."""
    publish(both, roster(tracking))
    publish(both, roster(tracking), "b1")
    before = homes(both, "S") | homes(both, "A", seq=8) | homes(both, "AF", seq=9)
    wanted = roster(tracking, pool="other")
    publish(both, wanted)
    first = homes(both, "S", seq=90000)
    assert set(first.values()) == {"c1", "c2"}
    publish(both, wanted, "c1", pool="other")
    moved = [port for port, home in first.items() if home == "c1"]
    assert set(homes(both, "A", moved, seq=90001).values()) == {"c2"}, before
    publish(both, wanted)
    assert set(homes(both, "A", moved, seq=90002).values()) == {"c2"}


def test_an_entry_of_a_failed_backend_is_replaced(both: Both, tracking: Tracking) -> None:
    """The slot has had another owner for long, which is where the flow goes, and stays."""
    wanted = roster(tracking)
    publish(both, wanted)
    before = homes(both, "S")
    publish(both, roster(tracking, drains="b1"))
    assert homes(both, "A", seq=8) == before
    publish(both, roster(tracking, drains="b1"), after=LATE)
    publish(both, roster(tracking, drains="b1"), "b1", after=LATE)
    there = homes(both, "A", seq=9)
    assert "b1" not in there.values()
    publish(both, roster(tracking, drains="b1"))
    assert homes(both, "A", seq=10) == there


@pytest.mark.parametrize("left", [1, 2, 20])
def test_who_serves_is_found_among_many(both: Both, tracking: Tracking, left: int) -> None:
    """Of 200 backends nearly all fail at once: no new flow is dropped at any moment."""
    names = [f"b{n}" for n in range(200)]
    servers = [backend(name, f"10.1.1.{n}") for n, name in enumerate(names)]
    wanted = desired([vip("web", VIP4, tracking=tracking)], servers)
    publish(both, wanted)
    serving = set(names[:left])
    flag(both, *names[left:])
    there = homes(both, "S")
    assert set(there.values()) <= serving
    assert homes(both, "A", seq=8) == there
    publish(both, wanted, *names[left:])
    assert homes(both, "A", seq=9) == there
    publish(both, wanted)
    assert None not in homes(both, "S", range(30000, 30060)).values()


def test_the_table_after_a_flag_does_without_who_is_out(both: Both, tracking: Tracking) -> None:
    """Others own the slots then, and nobody stands in any more."""
    wanted = roster(tracking)
    publish(both, wanted)
    flag(both, "b1")
    table = publish(both, wanted, "b1").pools["web"].table
    assert both.id_of("b1") not in table.current
    back = publish(both, wanted).pools["web"].table
    assert both.id_of("b1") in back.current
