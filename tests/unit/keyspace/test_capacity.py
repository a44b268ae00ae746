# SPDX-License-Identifier: Apache-2.0
"""More documents than there is room for: each that is too many is refused for itself."""

import pytest

from support.documents.keyspaces import Contents, refused, snapshot, vip
from tidegate.keyspace.documents.capacity import Claim, Room, beyond
from tidegate.keyspace.documents.validate import Validation, validate
from tidegate.model.constants import MAX_NETWORK_VIPS, MAX_POOLS, MAX_ROUTES, MAX_VIPS
from tidegate.model.values import EMPTY, Desired


def check(contents: Contents, last: Desired = EMPTY) -> Validation:
    return validate(snapshot(contents), last)


def test_a_pool_too_many_is_refused_alone() -> None:
    """The last one created; a change of another document comes into force with it."""
    pools: Contents = {f"pools/p{n}": {} for n in range(MAX_POOLS)}
    found = check(pools)
    assert refused(found) == [(f"pools/p{MAX_POOLS - 1}", "", "reference")]
    assert f"room for {MAX_POOLS - 1} pools" in found.rejections[0].reason
    first = {"pools/a": {}} | pools
    again = check(first, found.desired)
    assert sorted(key for key, _, _ in refused(again)) == ["pools/a", f"pools/p{MAX_POOLS - 1}"]
    assert again.desired.pools == found.desired.pools


def networks(count: int) -> Contents:
    return {f"vips/n{n}": vip() | {"address": f"10.{n >> 8}.{n & 255}.0/24"} for n in range(count)}


@pytest.mark.parametrize(
    ("documents", "limit"),
    [
        (networks(MAX_NETWORK_VIPS + 2), MAX_NETWORK_VIPS),
        (
            {
                f"vips/v{n}": vip() | {"address": f"10.9.{n >> 8}.{n & 255}"}
                for n in range(MAX_VIPS + 1)
            },
            MAX_VIPS - 1,
        ),
    ],
    ids=["networks", "VIPs"],
)
def test_vips_too_many_are_refused_alone(documents: Contents, limit: int) -> None:
    """Two too many are two refusals; the others are in force."""
    found = check({"pools/web": {}} | documents)
    assert len(found.desired.vips) == limit
    assert len(found.rejections) == len(documents) - limit
    assert found.rejections[0].key.startswith("vips/")


def test_routes_too_many_are_refused_with_their_vip() -> None:
    """Of a VIP in force the last value stays, with the routes that it had."""
    denied = [f"198.{n >> 8}.{n & 255}.0/24" for n in range(100)]
    full = {
        f"vips/v{n}": vip() | {"address": f"10.9.0.{n}", "deny": denied}
        for n in range(MAX_ROUTES // 100)
    }
    small = {"vips/small": vip() | {"address": "10.9.1.1", "deny": denied[:90]}}
    first = check({"pools/web": {}} | full | small)
    assert first.rejections == ()
    grown = {"vips/small": vip(last=9) | {"address": "10.9.1.1", "deny": denied[:93]}}
    found = check({"pools/web": {}} | full | grown, first.desired)
    assert refused(found) == [("vips/small", "", "reference")]
    assert found.desired.vips == first.desired.vips


def test_who_takes_no_more_than_before_has_room() -> None:
    """Whatever others want, and though the limit was lowered since."""
    claims = {"a": Claim(3, 5, 9), "b": Claim(4, 4, 8), "c": Claim(1, 0, 1), "d": Claim(1, 0, 2)}
    assert beyond(Room(8, "x"), claims.items()) == ["d"]
    assert beyond(Room(6, "x"), claims.items()) == ["c", "d"]
    assert beyond(Room(8, "x"), {"a": Claim(7, 5, 1), "b": Claim(2, 1, 2)}.items()) == ["b"]
