# SPDX-License-Identifier: Apache-2.0
"""Copies of a connection table: their places in a table of another size, and whom they yield to."""

import random
from typing import Any, NamedTuple

import numpy as np
import pytest

from support.documents.roster import backend, desired, generations, vip
from support.packets.frames import ip4, ip6, tcp, udp
from tidegate.dataplane.kernel import jiffies, layout
from tidegate.dataplane.takeover.candidates import candidates
from tidegate.dataplane.takeover.hashed import FLOW, FLOW_KEY, HashedTable
from tidegate.dataplane.takeover.placing import QUIET_TICKS, Copies, Moment, Placer
from tidegate.dataplane.takeover.siphash import siphash13
from tidegate.model.generation import Generation
from tidegate.model.tag import flow_salt, vip_tag
from tidegate.spec import hash as spec
from tidegate.spec.hash import flow_hash, tracking_key
from tidegate.spec.lines import (
    COPIED,
    ENDING,
    FINGERPRINT,
    SPOKE,
    Entry,
    Lines,
    state_of,
)
from tidegate.spec.packet import parse
from tidegate.spec.state import VipEntry

TICK = 1000
OTHER = 99
"""Id of a VIP that has no flows yet."""
KEYS = (0x0706050403020100, 0x0F0E0D0C0B0A0908)
SIZES = [(1, 1), (393_216, 786_432), (393_216, 294_912), (384, 3_000_001), (99_991, 7), (5, 5)]


@pytest.mark.parametrize("words", [1, 2, 3, 5])
def test_the_hash_over_arrays_is_the_specifications(words: int) -> None:
    """For random keys and words."""
    drawn = random.Random(words)  # noqa: S311 - no secret
    keys = drawn.getrandbits(64), drawn.getrandbits(64)
    flows = [[drawn.getrandbits(64) for _ in range(words)] for _ in range(200)]
    arrays = [np.array([flow[i] for flow in flows], np.uint64) for i in range(words)]
    assert siphash13(keys, arrays).tolist() == [spec.siphash13(keys, flow) for flow in flows]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_the_true_pair_is_among_the_candidates(old: int, new: int) -> None:
    """For random keys and those at the edges of pairs; and there are no more than can be."""
    drawn = random.Random(old)  # noqa: S311 - no secret
    halves = [drawn.getrandbits(32) for _ in range(2000)]
    edges = [-((-p << 32) // old) for p in range(0, old, max(1, old // 500))]
    halves += [h for edge in edges for h in (edge, edge - 1) if 0 <= h < 1 << 32]
    before = np.array([h * old >> 32 for h in halves], np.uint64)
    found = candidates(before, old, new)
    true = np.array([h * new >> 32 for h in halves], np.uint64)
    assert (found.first <= true).all()
    assert (true <= found.last).all()
    assert (found.last - found.first).max() <= -(-new // old)


def table(*entries: tuple[int, int]) -> np.ndarray:
    """Return a table of one pair with these owners and states, from its first place on."""
    lines = np.zeros(2, layout.LINE)
    for place, (owner, state) in enumerate(entries):
        lines["owners"][place // 5, place % 5] = owner
        lines["states"][place // 5, place % 5] = state
    return lines


def owner(flow: int, backend_id: int = 1) -> int:
    return flow << 24 | 1 << 16 | backend_id


def copies(*entries: tuple[int, int]) -> Copies:
    """Return copies for the first pair."""
    return Copies(
        np.zeros(len(entries), np.int64),
        np.array([each[0] for each in entries], np.uint64),
        np.array([each[1] | COPIED for each in entries], np.uint32),
    )


def live(age: int = 0, flags: int = SPOKE) -> int:
    return state_of(TICK - age, 7, flags)


def held(lines: np.ndarray) -> dict[int, int]:
    """Return the state of each owner."""
    owners = lines["owners"].ravel().tolist()
    return {o: s for o, s in zip(owners, lines["states"].ravel().tolist(), strict=True) if o}


def test_copies_take_empty_places_first() -> None:
    """What is there stays as long as there is room."""
    lines = table((owner(1), live(flags=ENDING)), (owner(2), live()))
    placer = Placer(lines)
    placer.place(copies(*((owner(flow), live()) for flow in range(3, 11))), TICK)
    assert held(lines).keys() == {owner(flow) for flow in range(1, 11)}
    assert (placer.tally.placed, placer.tally.crowded) == (8, 0)


def test_copies_push_out_what_makes_room_in_order() -> None:
    """What is ending, then what spoke once, then what was quiet for long; never what lives."""
    makes_room = [
        (owner(1), live(flags=0)),
        (owner(2), live(QUIET_TICKS)),
        (owner(3), live(flags=ENDING | SPOKE)),
    ]
    lives = [(owner(flow), live(QUIET_TICKS - 1)) for flow in range(4, 11)]
    for gone in range(1, 5):
        lines = table(*makes_room, *lives)
        placer = Placer(lines)
        placer.place(copies(*((owner(20 + flow), live()) for flow in range(gone))), TICK)
        left = {owner(flow) for flow in (3, 1, 2)[gone:]} | {each[0] for each in lives}
        assert held(lines).keys() == left | {owner(20 + flow) for flow in range(min(gone, 3))}
        assert placer.tally.crowded == gone


def test_the_place_is_the_specifications() -> None:
    """A single copy of a live flow goes where its VIP's first flow in the pair would."""
    drawn = random.Random(3)  # noqa: S311 - no secret
    for _ in range(200):
        entries = [
            (owner(flow), live(drawn.choice((0, 3, 64, 90)), drawn.choice((0, 1, 2, 3))))
            for flow in range(1, drawn.choice((5, 11)))
        ]
        lines, wanted = table(*entries), Lines(1)
        for place, (each, state) in enumerate(entries):
            wanted.entries[place] = Entry(each >> 24, 1, 1, state)
        Placer(lines).place(copies((owner(99), live())), TICK)
        place = wanted.room(99, TICK, OTHER)
        now = np.flatnonzero(lines["owners"].ravel() == owner(99)).tolist()
        assert now == ([] if place is None else [place])


def test_of_too_many_the_liveliest_are_copied() -> None:
    """Whatever order and however many parts they come in."""
    drawn = random.Random(5)  # noqa: S311 - no secret
    states = [live(flags=ENDING | SPOKE)] * 3 + [live(flags=0)] * 3 + [live()] * 8
    flows = [(owner(i + 1), state) for i, state in enumerate(states)]
    for _ in range(20):
        drawn.shuffle(flows)
        lines, at = table(), drawn.randrange(len(flows))
        placer = Placer(lines)
        for part in (flows[:at], flows[at:]):
            placer.place(copies(*part), TICK)
        kept = held(lines)
        assert len(kept) == 10
        assert kept.keys() >= {each for each, state in flows if state == live()}
        assert not any(state & ENDING for state in kept.values())
        assert placer.tally.crowded == len(flows) - 10


def test_a_later_pass_touches_copies_alone() -> None:
    """A copy follows what it is a copy of; what a packet has written or seen stays."""
    lines = table((owner(1), live(5) | COPIED), (owner(2), live(5)), (owner(3, 9), live(5)))
    later = copies((owner(1, 8), live(1)), (owner(2), live(1)), (owner(3), live(1)))
    Placer(lines).place(later, TICK)
    assert held(lines) == {
        owner(1, 8): live(1) | COPIED,
        owner(2): live(5),
        owner(3, 9): live(5),
    }


def test_a_flow_that_was_copied_twice_is_one_again() -> None:
    """Two copies of it that meet in one pair take one place, and the livelier one counts."""
    lines = table()
    Placer(lines).place(copies((owner(1), live(70)), (owner(2), live()), (owner(1), live())), TICK)
    assert held(lines) == {owner(1): live() | COPIED, owner(2): live() | COPIED}
    assert np.count_nonzero(lines["owners"]) == 2


def services() -> Generation:
    vips = [
        vip("four", "192.0.2.1"),
        vip("six", "2001:db8::1", 0, "udp"),
        vip("sticky", "192.0.2.2", hash="source"),
        vip("net", "198.18.0.0/24"),
    ]
    return generations(desired(vips, [backend("b1"), backend("b2")]))[-1]


NOW = Moment(ns=10_000_000_000_000, jiffies=(1 << 32) + 123_456)


class OldFlow(NamedTuple):
    """A flow as the version before had it, and the key that it has now."""

    row: tuple[tuple[Any, ...], tuple[int, ...]]
    key: int


def old_flow(generation: Generation, name: str, sport: int, age: float = 0) -> OldFlow:
    """Return a client's flow to a VIP, which went to backend 258 in its 513th use."""
    placed = generation.vips[name]
    service, to = placed.vip, str(placed.vip.address)
    ip = ip6("2001:db8:1::7", to) if service.network.version == 6 else ip4("198.51.100.7", to)
    port = service.port or 999
    is_udp = service.protocol == "udp"
    packet = parse(
        udp(ip, sport=sport, dport=port) if is_udp else tcp("A", ip, sport=sport, dport=port)
    )
    assert packet is not None
    entry = VipEntry(placed.identity, 1, vip_tag(service), flow_salt(placed.identity), service)
    key = tracking_key(KEYS, packet, entry, flow_hash(KEYS, packet, entry))
    ports = (int.from_bytes(raw, "little") for raw in (packet.source_port, packet.port))
    digest = 0xABCDE000 if service.is_network else 0
    old = (packet.source, placed.identity.id | digest, *ports)
    seen = NOW.ns - int(age * 1e9)
    return OldFlow((old, (258, 513, placed.identity.incarnation, 0, 1, seen)), key)


def rekeyed(table: HashedTable, *flows: OldFlow) -> Copies:
    keys = np.array([flow.row[0] for flow in flows], FLOW_KEY)
    return table._rekeyed(keys, np.array([flow.row[1] for flow in flows], FLOW), NOW)


@pytest.mark.parametrize("name", ["four", "six", "sticky"])
def test_flows_of_the_version_before_get_their_key(name: str) -> None:
    """Of both families, with any port, and where the slot follows from the source alone."""
    generation = services()
    flows = [old_flow(generation, name, 1024 + i) for i in range(50)]
    found = rekeyed(HashedTable(-1, generation, KEYS, 1000), *flows)
    assert found.pairs.tolist() == [(flow.key >> 32) * 1000 >> 32 for flow in flows]
    assert found.owners.tolist() == [
        (flow.key & FINGERPRINT) << 24 | 1 << 16 | 258 for flow in flows
    ]
    id_ = generation.vips[name].identity.id
    tick = jiffies.clock().tick(NOW.jiffies)
    assert set(found.states.tolist()) == {state_of(tick, id_, SPOKE | COPIED)}


def test_ages_become_ticks_by_the_clock_of_the_kernel() -> None:
    """Also of what is older than ticks can say."""
    generation, clock = services(), jiffies.clock()
    ages = [0, 1, 3.9, 60, 4500, 9999]
    flows = [old_flow(generation, "four", 1024 + i, age) for i, age in enumerate(ages)]
    states = rekeyed(HashedTable(-1, generation, KEYS, 1000), *flows).states
    wanted = [clock.tick(NOW.jiffies - int(age * clock.hz)) for age in ages]
    assert (states >> 16).tolist() == wanted


def test_flows_without_a_whole_key_are_counted() -> None:
    """Those of networks; those of a VIP that is gone, or of another use of its id, are none."""
    generation = services()
    net, good = old_flow(generation, "net", 1), old_flow(generation, "four", 2)
    other_use = OldFlow((good.row[0], (258, 513, 77, 0, 1, NOW.ns)), good.key)
    table = HashedTable(-1, generation, KEYS, 1000)
    assert len(rekeyed(table, net, good, other_use, net).pairs) == 1
    assert (table.flows, table.networks) == (1, 2)
