# SPDX-License-Identifier: Apache-2.0
"""Where VIPs are in their map: at one of two places, kept if possible, or refused by name."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.packets.vip_map import address_at
from tidegate.dataplane.publish.entries import vip_key
from tidegate.dataplane.publish.vip_places import Places, key_name, placed, places
from tidegate.errors import DataplaneError
from tidegate.model.constants import VIP_PLACES

ICMP, ICMPV6, TCP = 1, 58, 6
PLACES4, PLACES6 = Places(8737, 14962), Places(30115, 5438)


def key(address: object, port: int = 80, protocol: int = TCP) -> bytes:
    return vip_key(ip_network(str(address)), port, protocol)


def at(first: int, second: int, number: int) -> bytes:
    """Return a key with these places, another one for each number."""
    return key(address_at(Places(first, second), 80, number))


def assert_places(found: dict[bytes, int], keys: set[bytes]) -> None:
    """Check that each key is at one of its two places, alone."""
    assert found.keys() == keys
    assert all(place in places(key) for key, place in found.items())
    assert len(set(found.values())) == len(keys)


def test_a_keys_places_are_fixed() -> None:
    """The program computes the same ones, over the life of many agents."""
    assert places(key("192.0.2.1")) == PLACES4
    assert places(key("2001:db8::1", 443, 17)) == PLACES6


def test_addresses_are_made_for_places() -> None:
    """The tests' own way back from places to an address."""
    assert places(at(3, 9, 1)) == places(at(3, 9, 2)) == (3, 9)
    assert at(3, 9, 1) != at(3, 9, 2)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("step", [1, 256, 65521])
def test_four_thousand_vips_have_places(version: int, step: int) -> None:
    """Each with an address of its own, and so with a second entry: nearly half of all places."""
    base = IPv4Address("198.18.0.0") if version == 4 else IPv6Address("2001:db8::")
    addresses = [base + i * step for i in range(4000)]
    keys = {key(address) for address in addresses}
    keys |= {key(address, 0, ICMP if version == 4 else ICMPV6) for address in addresses}
    assert len(keys) == 8000
    assert_places(placed(keys, {}), keys)


KEYS = st.builds(
    key, st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 65535), st.just(TCP)
)


@settings(deadline=None)
@given(st.sets(KEYS, max_size=60), st.sets(KEYS, max_size=60))
def test_what_stays_keeps_its_place(before: set[bytes], after: set[bytes]) -> None:
    """Among few keys nobody has to move; and the same calls give the same places."""
    first = placed(before, {})
    both = placed(before | after, first)
    left = placed(after, both)
    assert_places(both, before | after)
    assert_places(left, after)
    assert all(left[key] == both[key] for key in after)
    assert both == placed(sorted(before | after), dict(reversed(first.items())))
    moved = [key for key in before if both[key] != first[key]]
    assert len(moved) <= len(after)


def test_a_key_drives_another_to_its_other_place() -> None:
    """Of two chains the shorter one moves; who is not on it stays."""
    there = {at(1, 2, 1): 1, at(2, 3, 2): 2, at(5, 6, 3): 5, at(9, 9, 4): 9}
    fresh = at(1, 5, 5)
    found = placed([*there, fresh], there)
    assert found == {**there, at(5, 6, 3): 6, fresh: 5}


def test_a_long_chain_moves_as_a_whole() -> None:
    """The only free place is at its end."""
    there = {at(n, n + 1, n): n for n in range(1, 8)}
    fresh = at(1, 1, 99)
    assert placed([*there, fresh], there) == {
        fresh: 1,
        **{at(n, n + 1, n): n + 1 for n in range(1, 8)},
    }


def test_a_key_without_a_place_is_named() -> None:
    """With what to do: three entries for two places are one too many."""
    keys = [at(7, 8, number) for number in range(3)]
    assert_places(placed(keys[:2], {}), set(keys[:2]))
    with pytest.raises(DataplaneError, match=r"no room for VIP .* port 80 protocol 6") as refused:
        placed(keys, {})
    assert key_name(max(keys)) in str(refused.value)
    assert "another port or address" in str(refused.value)


def test_a_full_cycle_is_no_way_out() -> None:
    """A chain that comes back to itself ends; the other chain may still have a free place."""
    ring = {at(1, 2, 1): 1, at(2, 1, 2): 2}
    fresh = at(1, 40, 3)
    assert placed([*ring, fresh], ring)[fresh] == 40
    with pytest.raises(DataplaneError):
        placed([*ring, at(2, 1, 4)], ring)


def test_places_are_within_an_image() -> None:
    """The highest bits of a hash are the highest place."""
    assert max(places(at(VIP_PLACES - 1, VIP_PLACES - 1, 1))) == VIP_PLACES - 1
