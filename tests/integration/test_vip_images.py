# SPDX-License-Identifier: Apache-2.0
"""VIPs of one address come into force as a whole: what each of their two images holds, and when."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from support.crash.bench import Bench, contents
from support.documents.roster import backend, desired, generations, vip
from support.packets.vip_map import address_at
from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.publish import entries, vip_images
from tidegate.dataplane.publish.address_bits import host_bit, network_bits
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.dataplane.publish.steps import Step
from tidegate.dataplane.publish.vip_images import Held
from tidegate.dataplane.publish.vip_places import Places
from tidegate.model.generation import Generation
from tidegate.model.values import Desired
from tidegate.planner import plan

pytestmark = pytest.mark.root

B1 = backend("b1")
ONE = desired([vip("a", "192.0.2.1")], [B1])
TWO = desired([vip("a", "192.0.2.1"), vip("b", "192.0.2.2")], [B1])
TCP = 6


class Died(Exception):  # noqa: N818 - as a process does, not a refusal
    """The agent ended here."""


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    built = Bench()
    yield built
    built.close()


def key(address: str) -> bytes:
    return entries.vip_key(ip_network(address), 80, TCP)


def publish(publisher: Publisher, wanted: Desired) -> Generation:
    generation = plan(wanted, publisher.in_force, 2000)
    publisher.publish(generation, 0.0)
    return generation


def watched(bench: Bench, publisher: Publisher, wanted: Desired) -> list[tuple[Step, Held]]:
    """Publish; return what the maps hold at each step."""
    seen: list[tuple[Step, Held]] = []
    publisher.reached = lambda step: seen.append((step, vip_images.read(bench.maps)))
    publish(publisher, wanted)
    return seen


def test_a_change_writes_the_other_image_and_selects_it(bench: Bench) -> None:
    """The one in force is never written; what has no change in its VIPs selects nothing."""
    publisher = bench.start(generations(ONE)[-1])
    first = vip_images.read(bench.maps)
    seen = watched(bench, publisher, TWO)
    for step, held in seen:
        if held.selected == first.selected:
            assert held.images[held.selected].tobytes() == first.images[first.selected].tobytes()
            assert held.in_force == first.in_force, step
        else:
            assert held.in_force == entries.vips(publisher.in_force)
    steps = [step for step, held in seen if held.selected != first.selected]
    assert steps[0] is Step.VIPS_SELECTED
    selected = vip_images.read(bench.maps).selected
    publish(publisher, desired([*TWO.vips.values()], [B1, backend("b2")]))
    assert vip_images.read(bench.maps).selected == selected
    publish(publisher, ONE)
    assert vip_images.read(bench.maps).selected == first.selected
    publisher.close()


def test_few_places_differ_between_images(bench: Bench) -> None:
    """A VIP and its address are two places; a hundred others stay where they are."""
    many = [vip(f"v{n}", f"198.18.0.{n}") for n in range(1, 101)]
    publisher = bench.start(generations(desired(many, [B1]))[-1])
    publish(publisher, desired([*many, vip("more", "198.18.1.1")], [B1]))
    held = vip_images.read(bench.maps)
    assert len(vip_images.differing(*held.images)) <= 4
    publisher.close()


@pytest.mark.parametrize("step", [Step.VIPS_WRITTEN, Step.VIPS_SELECTED], ids=lambda s: s.name)
def test_a_crash_leaves_the_old_vips_or_the_new(bench: Bench, step: Step) -> None:
    """An image that is written and not selected is nobody's; the next start writes it again."""
    old = generations(ONE)[-1]
    publisher = bench.start(old)
    new = plan(TWO, old, 2000)

    def die(reached: Step) -> None:
        if reached is step:
            raise Died

    publisher.reached = die
    with pytest.raises(Died):
        publisher.publish(new, 0.0)
    in_force = old if step is Step.VIPS_WRITTEN else new
    assert vip_images.read(bench.maps).in_force == entries.vips(in_force)
    publisher.close()
    again = bench.publisher()
    again.adopt()
    publish(again, TWO)
    assert contents(bench.maps, bench.pins)["vips"] == entries.vips(again.in_force)
    assert again.audit(deep=True) == []
    again.close()


@pytest.mark.parametrize("way", ["to a network", "from a network"])
def test_a_vip_that_becomes_a_network_is_never_away(bench: Bench, way: str) -> None:
    """At each step one of the two is there, with its address bit; in the end only one."""
    other = vip("other", "198.51.100.0/24")
    plain = desired([vip("a", "192.0.2.1"), vip("gone", "192.0.2.9")], [B1])
    network = desired([vip("a", "192.0.2.0/24"), other], [B1])
    steps = (plain, network) if way == "to a network" else (network, plain)
    publisher = bench.start(generations(steps[0])[-1])
    prefix = entries.prefix_key(ip_network("192.0.2.0/24"), 80, TCP)
    seen: list[tuple[bool, bool, bool]] = []

    def look(_: Step) -> None:
        held = vip_images.read(bench.maps)
        there = maps.read_all("prefixes", bench.maps["prefixes"])
        exact, by_network = key("192.0.2.1") in held.in_force, prefix in there
        host, network = bits_of_a(held)
        seen.append((exact, by_network, host >= exact and network >= by_network))

    publisher.reached = look
    publish(publisher, steps[1])
    assert all((exact or by_network) and has_bit for exact, by_network, has_bit in seen)
    assert (True, True, True) in seen
    held = vip_images.read(bench.maps)
    assert held.in_force == entries.vips(publisher.in_force)
    assert publisher.audit(deep=True) == []
    publisher.close()


def bits_of_a(held: Held) -> tuple[bool, bool]:
    """Return the two bits at which a packet to 192.0.2.1 looks."""
    words = np.frombuffer(held.bits, layout.ADDRESS_BITS)[0]
    places = host_bit(ip_address("192.0.2.1")), int(network_bits(ip_network("192.0.2.0/24"))[0])
    host, network = (
        bool(int(words[name][bit >> 6]) >> (bit & 63) & 1)
        for name, bit in zip(("hosts", "networks"), places, strict=True)
    )
    return host, network


def test_a_change_without_room_for_both_is_made(bench: Bench) -> None:
    """Two VIPs for the places of two others, and a network at once: the VIPs change first."""
    four = [vip(f"x{n}", str(address_at(Places(21, 22), 80, n))) for n in range(4)]
    publisher = bench.start(generations(desired(four[:2], [B1]))[-1])
    seen = watched(bench, publisher, desired([*four[2:], vip("net", "198.18.0.0/24")], [B1]))
    sizes = {len(held.in_force) for _, held in seen}
    assert sizes == {4}
    assert vip_images.read(bench.maps).in_force == entries.vips(publisher.in_force)
    assert publisher.audit(deep=True) == []
    publisher.close()


def test_an_image_is_written_after_a_grace_period(bench: Bench) -> None:
    """A change of tables waits for one; without it the publisher points a slot where it points."""
    publisher = bench.start(generations(ONE)[-1])
    points: list[int] = []
    point = publisher.mirror.point

    def counted(new: dict[int, object]) -> None:
        points.append(len(new))
        point(new)  # type: ignore[arg-type]

    publisher.mirror.point = counted  # type: ignore[method-assign,assignment]
    publish(publisher, TWO)
    assert points == [0, 1]
    more = desired([vip("c", "192.0.2.3")], [B1, backend("b2")])
    points.clear()
    publish(publisher, more)
    assert points == [1]
    publisher.close()
