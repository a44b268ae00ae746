# SPDX-License-Identifier: Apache-2.0
"""Lines of the connection table, as the specification has them: places, and who makes room."""

import random

import pytest

from tidegate.spec.lines import (
    CONTESTED,
    ENDING,
    LAST_PLACES,
    LINE_ENTRIES,
    SPOKE,
    Lines,
    fingerprint_of,
    mark_state,
    state_of,
)

PAIR = 2 * LINE_ENTRIES
NOW = 1000
VIP, OTHER = 7, 8


def full(*states: tuple[int, int]) -> Lines:
    """Return a table of one pair whose places have these ticks and flags, then busy flows."""
    lines = Lines(1)
    busy = [(NOW, SPOKE)] * (PAIR - len(states))
    for place, (tick, flags) in enumerate([*states, *busy]):
        lines.put(place, place + 1, 1, 1, state_of(tick, VIP, flags))
    return lines


def test_a_key_has_the_ten_places_of_a_pair() -> None:
    """Those of the home line come first, and either line may be the home."""
    chance, lines = random.Random(1), Lines(3)  # noqa: S311 - a workload, not a secret
    homes = set()
    for _ in range(200):
        places = list(lines.places(chance.getrandbits(64)))
        pair = places[0] // PAIR
        assert sorted(places) == list(range(PAIR * pair, PAIR * (pair + 1)))
        homes.add(places[0])
    assert homes == {LINE_ENTRIES * line for line in range(6)}


def test_an_entry_is_found_by_its_key() -> None:
    """In either line; a key whose lower bits are all zero has a fingerprint too."""
    lines = Lines(4)
    for key in (0, 1 << 40 | 3, 5, 0xABCDEF << 41 | 9):
        assert lines.find(key) is None
        place = lines.room(key, NOW, VIP)
        assert place is not None
        lines.put(place, key, 257, 9, state_of(NOW, VIP, 0))
        assert lines.find(key) == place
        assert lines.entries[place].incarnation == 1
    assert fingerprint_of(0) == 1


def test_a_state_has_its_parts() -> None:
    """Tick, VIP and flags come back as they were."""
    lines = Lines(1)
    lines.put(0, 1, 1, 1, state_of(65_535, 4_095, SPOKE | CONTESTED))
    entry = lines.entries[0]
    assert (entry.tick, entry.vip, entry.flags) == (65_535, 4_095, SPOKE | CONTESTED)


@pytest.mark.parametrize(
    ("states", "room"),
    [
        ([(NOW, SPOKE)], None),
        ([(NOW - 900, SPOKE)], None),
        ([(NOW - 900, SPOKE), (NOW, 0)], 1),
        ([(NOW - 900, 0), (NOW, ENDING | SPOKE)], 1),
        ([(NOW - 1, 0), (NOW - 2, 0), (NOW - 2, 0)], 1),
        ([(NOW - 1, ENDING), (NOW - 5, ENDING)], 1),
    ],
)
def test_who_makes_room_in_a_full_pair(states: list[tuple[int, int]], room: int | None) -> None:
    """Who is ending, or spoke once; nobody else, however silent; the longest quiet first."""
    for vip in (VIP, OTHER):
        assert full(*states).room(0, NOW, vip) == room


def test_an_empty_place_comes_before_all() -> None:
    """Even before a flow that is ending."""
    lines = full((NOW - 900, ENDING))
    del lines.entries[6]
    assert lines.room(0, NOW, OTHER) == 6


def shared(counts: dict[int, int], flags: int = SPOKE) -> Lines:
    """Return a table of one pair in which VIPs have so many places each."""
    lines = Lines(1)
    vips = [vip for vip, count in counts.items() for _ in range(count)]
    for place, vip in enumerate(vips):
        lines.put(place, place + 1, 1, 1, state_of(NOW - place, vip, flags))
    return lines


@pytest.mark.parametrize(
    ("counts", "most"),
    [
        ({}, 7),
        ({OTHER: 7}, 2),
        ({OTHER: 7, 9: 2}, 1),
        ({OTHER: 4}, 3),
        ({OTHER: 3, 9: 3}, 2),
        ({OTHER: 5, 9: 5}, 0),
        ({VIP: 10}, 10),
    ],
)
def test_a_vip_takes_so_many_places_of_a_pair(counts: dict[int, int], most: int) -> None:
    """Of the last three it gets one while it has fewer than are left, whatever it is sent."""
    lines = shared(counts)
    for key in range(100, 200):
        place = lines.room(key, NOW, VIP)
        if place is not None:
            lines.put(place, key, 1, 1, state_of(NOW, VIP, SPOKE))
    assert sum(entry.vip == VIP for entry in lines.entries.values()) == most


def test_above_its_share_a_vips_own_flow_makes_room() -> None:
    """Not the empty place, nor one of another VIP that would make room for a third."""
    lines = shared({VIP: 7, OTHER: 1})
    lines.put(7, 8, 1, 1, state_of(NOW - 900, OTHER, 0))
    assert lines.room(0, NOW, VIP) is None
    lines.put(3, 4, 1, 1, state_of(NOW, VIP, 0))
    assert lines.room(0, NOW, VIP) == 3
    assert lines.room(0, NOW, OTHER) == 8


def test_flows_that_spoke_once_are_within_the_share() -> None:
    """Or they could speak again when they have filled the pair."""
    lines = shared({OTHER: 2})
    for key in range(100, 120):
        place = lines.room(key, NOW, VIP)
        assert place is not None
        lines.put(place, key, 1, 1, state_of(NOW, VIP, 0))
    assert sum(entry.vip == VIP for entry in lines.entries.values()) == 8 - LAST_PLACES


def test_a_mark_takes_an_empty_place_or_the_oldest() -> None:
    """And none whose handshake may be under way: 3 moments, also of a CPU that is ahead."""
    lines = Lines(1)
    for number in range(PAIR):
        place = lines.mark_room(number, 60)
        assert place not in lines.entries
        lines.put(place or 0, number + 1, 1, 1, mark_state(number, 60))
    for moment, room in ((58, None), (62, None), (63, 0), (5, 0)):
        assert lines.mark_room(1, moment) == room
    lines.put(4, 99, 1, 1, mark_state(1 << 32 - 1, 57))
    assert lines.mark_room(1, 63) == 4
    assert (lines.entries[4].sequence, lines.entries[4].moment) == (1 << 32 - 1, 57)


def test_a_lot_draws_every_place() -> None:
    """Which one follows from the key, so that program and specification draw the same."""
    assert {Lines(1).mark_lot(key) for key in range(1 << 16)} == set(range(PAIR))
