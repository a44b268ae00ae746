# SPDX-License-Identifier: Apache-2.0
"""Which next hop is taken, for which backends, and where a stacked device has its routes."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from support.documents.roster import backend, web
from tidegate.dataplane.network import devices
from tidegate.dataplane.network.devices import Device
from tidegate.dataplane.network.next_hops import Backends, Choice, backends_of, choose
from tidegate.model.generation import NOTHING
from tidegate.model.values import Address
from tidegate.planner import plan

B1, B2, B3 = (ip_address(f"203.0.113.{n}") for n in (1, 2, 3))
R1, R2, V6 = ip_address("10.0.0.1"), ip_address("10.0.0.2"), ip_address("fe80::1")


def chosen(
    hops: dict[Address, Address | None],
    default: Address | None = None,
    dead: tuple[Address, ...] = (),
) -> Choice:
    return choose(hops, lambda: default, lambda hop: hop not in dead)


@pytest.mark.parametrize(
    ("hops", "default", "dead", "choice"),
    [
        ({}, None, (), Choice(None)),
        ({}, R1, (), Choice(R1)),
        ({B1: R1, B2: R1}, R2, (), Choice(R1)),
        ({B1: R2, B2: R1, B3: R2}, None, (), Choice(R2, differing=(B2,))),
        ({B1: R2, B2: R1}, None, (), Choice(R1, differing=(B1,))),
        ({B1: V6, B2: R2}, None, (), Choice(R2, differing=(B1,))),
        ({B1: R2, B2: R1, B3: R2}, None, (R2,), Choice(R1, differing=(B1, B3))),
        ({B1: R2, B2: R2, B3: R1}, None, (R1, R2), Choice(R2, differing=(B3,))),
        ({B1: None, B2: R1}, None, (), Choice(R1, differing=(B1,))),
        ({B1: None, B2: None}, None, (), Choice(None)),
        ({B1: B1}, R1, (), Choice(B1)),
        ({B1: B1, B2: B2}, R1, (), Choice(R1, differing=(B1, B2))),
        ({B1: B1, B2: R2}, R1, (), Choice(R2, differing=(B1,))),
        ({B3: B3, B1: B1, B2: B2}, None, (), Choice(B1, unreached=(B2, B3))),
    ],
)
def test_one_next_hop_is_taken_for_all(
    hops: dict[Address, Address | None],
    default: Address | None,
    dead: tuple[Address, ...],
    choice: Choice,
) -> None:
    """That of most backends, the lowest among equals; one that answers before one that does not."""
    assert chosen(hops, default, dead) == choice
    backwards = dict(reversed(hops.items()))
    assert chosen(backwards, default, dead).hop == choice.hop


def test_backends_of_pools_that_serve_are_needed() -> None:
    """Those that drain too; not those of a pool that no VIP uses, and not what is disabled."""
    desired = web(backend("b1"), backend("b2", state="disabled"), backend("b3", state="drain"))
    generation = plan(desired, NOTHING, 1000)
    found = backends_of(generation)
    assert found.needed == {4}
    assert sorted(found.names.values()) == ["web/b1", "web/b2", "web/b3"]
    assert backends_of(replace(generation, vips={})).needed == frozenset()
    assert backends_of(plan(web(backend("b2", state="disabled")), NOTHING, 1)).needed == frozenset()


def test_a_sentence_names_a_few() -> None:
    """And counts the rest."""
    names = Backends({B1: "web/b1", B2: "web/b2", B3: "web/b3", R1: "web/b4", R2: "web/b5"})
    assert names.listed([B2]) == "web/b2 (203.0.113.2)"
    assert names.listed([*names.names]).endswith("web/b1 (203.0.113.1) and 2 more")


NIC1 = Device(2, "eth1", master=10, port_kind="bond")
NIC2 = Device(3, "eth2", master=10, port_kind="bond")
BOND = Device(10, "bond0", "bond", master=20, port_kind="bridge")
BRIDGE = Device(20, "br0", "bridge", master=30, port_kind="vrf")
VLAN = Device(40, "bond0.5", "vlan", lower=10)
VETH = Device(50, "veth0", "veth", lower=51)
VRF = Device(30, "red", "vrf", type=1)
ALL = (NIC1, NIC2, BOND, BRIDGE, VLAN, VETH, VRF)


def get(index: int) -> Device:
    return next(each for each in ALL if each.index == index)


@pytest.mark.parametrize(
    ("device", "home"),
    [(NIC1, BRIDGE), (BOND, BRIDGE), (BRIDGE, BRIDGE), (VLAN, VLAN), (VETH, VETH)],
)
def test_routes_live_on_the_topmost_device(device: Device, home: Device) -> None:
    """Up through bonds and bridges; a VRF's port keeps its neighbours, and its routes by table."""
    assert devices.home(device, get) == home


def test_a_program_on_a_bond_sees_its_ports() -> None:
    """Each port's index has the facts; a bridge's ports are not seen on the bridge."""
    assert devices.bond_ports(BOND, ALL) == (NIC1, NIC2)
    assert devices.bond_ports(BRIDGE, ALL) == ()
    assert devices.bond_ports(NIC1, ALL) == ()


def test_frames_come_through_what_is_below() -> None:
    """A bridge's ports, and theirs; a VLAN's device; nothing for a NIC or a veth."""
    assert devices.below(BRIDGE, ALL) == (BOND, NIC1, NIC2)
    assert devices.below(VLAN, ALL) == (BOND, NIC1, NIC2)
    assert devices.below(NIC1, ALL) == devices.below(VETH, ALL) == ()


@pytest.mark.parametrize(
    ("device", "sentence"),
    [(VRF, "name its ports"), (Device(9, "tun0", "tun", type=65534), "name the Ethernet device")],
)
def test_what_has_no_frames_is_refused(device: Device, sentence: str) -> None:
    """The reason says what to name instead."""
    assert sentence in devices.refusal(device)
    assert devices.refusal(NIC1) == ""
