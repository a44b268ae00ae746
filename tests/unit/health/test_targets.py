# SPDX-License-Identifier: Apache-2.0
"""What a generation wants probed, and through which VIP."""

from ipaddress import ip_address
from typing import Any

import pytest

from support.documents.roster import VIP4, VIP6, backend, desired, vip, web
from tidegate.health.handshakes import Handshake
from tidegate.health.standing import Rules
from tidegate.health.targets import Plan, Probe, targets
from tidegate.health.tcp import Destination
from tidegate.model.checks import Check, Health
from tidegate.model.generation import NOTHING
from tidegate.model.values import BackendKey, Desired
from tidegate.planner import plan
from tidegate.spec.healthcheck import mark_of

B1, B2 = BackendKey("web", "b1"), BackendKey("web", "b2")


def checked(**options: Any) -> dict[str, Health]:
    """Return options of a pool with this check."""
    return {"health": Health(check=Check(**options))}


def wanted(what: Desired, *, allow_exec: bool = False) -> Plan:
    return targets(plan(what, NOTHING, 1000), allow_exec=allow_exec)


def to(found: Plan, key: BackendKey = B1) -> Destination:
    made = found.targets[key].probe
    assert isinstance(made, Probe | Handshake)
    return made.destination if isinstance(made, Probe) else made.to


def test_a_backend_is_probed_once_through_the_first_vip() -> None:
    """Four VIPs share the pool; each backend has one probe, with its own mark."""
    found = wanted(web(backend("b1"), backend("b2"), **checked(type="tcp")))
    assert set(found.targets) == {B1, B2}
    assert to(found) == Destination(VIP4, 80, mark_of(1))
    assert to(found, B2) == Destination(VIP4, 80, mark_of(2))


def test_the_protocol_of_the_check_chooses_the_vip() -> None:
    """A datagram goes to a UDP VIP: what is for no VIP would not take the tunnel."""
    found = wanted(web(backend("b1"), **checked(type="dns", query="www.example")))
    assert to(found).port == 53
    only_tcp = desired([vip("a", VIP4)], [backend("b1")], **checked(type="udp"))
    assert wanted(only_tcp).unprobed == {
        B1: "No VIP of protocol udp uses the pool web, so its check has no way."
    }


def test_a_port_of_its_own_must_be_a_vips() -> None:
    """Port 8080 is probed where some VIP of the address has it, whatever its pool."""
    other = vip("admin", VIP4, 8080, pool="admin")
    check = checked(type="tcp", port=8080)
    with_it = desired([vip("a", VIP4), other], [backend("b1")], **check)
    assert to(wanted(with_it)).port == 8080
    without = wanted(desired([vip("a", VIP4)], [backend("b1")], **check))
    assert "No VIP has the address of a and port 8080" in without.unprobed[B1]


def test_a_vip_with_any_port_wants_the_check_to_name_one() -> None:
    """There is no port 0 to connect to."""
    any_port = [vip("a", VIP4, 0)]
    found = wanted(desired(any_port, [backend("b1")], **checked(type="tcp")))
    assert "must name one" in found.unprobed[B1]
    named = wanted(desired(any_port, [backend("b1")], **checked(type="tcp", port=22)))
    assert to(named).port == 22


def test_a_network_is_probed_at_its_first_address() -> None:
    """Any address of a VIP that is a network leads to the same backends."""
    found = wanted(desired([vip("a", "10.99.1.0/24")], [backend("b1")], **checked(type="tcp")))
    assert to(found).address == "10.99.1.0"


@pytest.mark.parametrize(("address", "source"), [(VIP4, "10.0.0.9"), (VIP6, "fd00::9")])
def test_the_source_is_of_the_vips_family(address: str, source: str) -> None:
    """Of two sources the one that can reach the VIP is used."""
    check = checked(type="tcp", source4="10.0.0.9", source6="fd00::9")
    found = wanted(desired([vip("a", address)], [backend("b1")], **check))
    assert to(found).source == source


def test_programs_are_run_only_where_the_agent_allows_it() -> None:
    """A document alone must not be able to run anything on a load balancer."""
    what = web(backend("b1"), **checked(type="exec", command=("/bin/true",)))
    assert "health.allow_exec" in wanted(what).unprobed[B1]
    assert set(wanted(what, allow_exec=True).targets) == {B1}


def test_pools_without_a_check_get_no_probes() -> None:
    """Nothing is probed for nobody's sake."""
    assert wanted(web(backend("b1"))) == Plan({}, {}, {})
    external = {"health": Health(mode="external")}
    assert wanted(web(backend("b1"), **external)) == Plan({}, {}, {})


def test_a_backend_that_leaves_is_probed_until_it_is_gone() -> None:
    """It has flows for as long as it drains, and they must leave it if it fails."""
    check = checked(type="tcp")
    before = plan(web(backend("b1"), backend("b2"), **check), NOTHING, 1000)
    after = plan(web(backend("b1"), **check), before, 1001)
    assert set(targets(after, allow_exec=False).targets) == {B1, B2}
    retired = plan(web(backend("b1"), **check), after, 1301)
    assert set(targets(retired, allow_exec=False).targets) == {B1}


def test_failed_backends_are_still_probed() -> None:
    """Drain and quarantine do not end probing: what failed must be seen to come back."""
    states = web(
        backend("b1", state="quarantine"), backend("b2", state="drain"), **checked(type="tcp")
    )
    assert set(wanted(states).targets) == {B1, B2}


def test_what_stays_the_same_is_equal() -> None:
    """Targets are values, so that another backend's change does not disturb a probe's moments."""
    check = {"health": Health(check=Check(type="http", interval=5, rise=1), hold_down=7)}
    one = wanted(web(backend("b1"), **check))
    two = wanted(web(backend("b1"), backend("b2"), **check))
    assert one.targets[B1] == two.targets[B1]
    assert (one.targets[B1].interval, one.targets[B1].jitter) == (5, 0.1)
    assert one.rules[B1] == Rules(1, 3, 7.0)
    moved = wanted(web(backend("b1"), **checked(type="tcp", interval=5)))
    assert moved.targets[B1] != one.targets[B1]


def test_an_address_of_a_backend_is_no_matter() -> None:
    """The mark leads to the backend, whatever its address; a probe to a new one goes on in time."""
    here = wanted(web(backend("b1"), **checked(type="tcp")))
    there = wanted(web(backend("b1", str(ip_address("10.9.9.9"))), **checked(type="tcp")))
    assert here == there
