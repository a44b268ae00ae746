# SPDX-License-Identifier: Apache-2.0
"""More documents than there is room for: each that is too many is refused for itself."""

import pytest

from support.documents.keyspaces import Contents, refused, snapshot, vip
from tidegate.keyspace.documents.capacity import Claim, Places, Room, beyond
from tidegate.keyspace.documents.validate import Validation, validate
from tidegate.model.constants import MAX_BACKENDS, MAX_NETWORK_VIPS, MAX_POOLS, MAX_ROUTES, MAX_VIPS
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import EMPTY, BackendKey, Desired
from tidegate.planner import plan


def check(contents: Contents, last: Desired = EMPTY, there: Generation = NOTHING) -> Validation:
    return validate(snapshot(contents), last, places=Places(there))


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


def test_places_of_what_leaves_are_not_given_twice() -> None:
    """All pools are taken, one goes, another comes: it waits a turn, and a quarantine does not."""
    server: Contents = {"pools/p1/backends/b1": {"address": "198.51.100.1"}}
    many: Contents = {f"pools/p{n}": {} for n in range(MAX_POOLS - 1)} | server
    first = plan(check(many).desired, NOTHING, 1000)
    server["pools/p1/backends/b1"]["state"] = "quarantine"
    wanted = {key: value for key, value in many.items() if key != "pools/p7"}
    wanted |= server | {"pools/new": {}}
    found = check(wanted, check(many).desired, first)
    assert refused(found) == [("pools/new", "", "build")]
    assert "1 that were deleted have not left yet" in found.rejections[0].reason
    second = plan(found.desired, first, 1001)
    assert not second.backends[BackendKey("p1", "b1")].reachable
    again = check(wanted, found.desired, second)
    assert refused(again) == []
    assert "new" in plan(again.desired, second, 1002).pools


def test_backends_that_drain_keep_their_places() -> None:
    """40,000 make way for as many others: those that find no id come in when the old have left."""

    def servers(names: str) -> Contents:
        return {
            f"pools/web/backends/{names}{n}": {"address": f"10.{ord(names)}.{n >> 8}.{n & 255}"}
            for n in range(40_000)
        }

    pool: Contents = {"pools/web": {"deregistration_delay": 60}}
    first = plan(check(pool | servers("a")).desired, NOTHING, 1000)
    wanted = pool | servers("b")
    found = check(wanted, EMPTY, first)
    assert {stage for _, _, stage in refused(found)} == {"build"}
    assert len(found.desired.backends) == MAX_BACKENDS - 1 - 40_000
    second = plan(found.desired, first, 1001)
    assert len(check(wanted, found.desired, second).desired.backends) == MAX_BACKENDS - 1 - 40_000
    third = plan(found.desired, second, 1100)
    assert refused(check(wanted, found.desired, third)) == []


def test_a_vip_makes_way_for_another_in_two_changes() -> None:
    """All VIPs are taken, one goes, another comes: everything else of that change is in force."""
    many: Contents = {"pools/web": {}} | {
        f"vips/v{n}": vip() | {"address": f"10.9.{n >> 8}.{n & 255}"} for n in range(MAX_VIPS - 1)
    }
    first = plan(check(many).desired, NOTHING, 1000)
    wanted = {key: value for key, value in many.items() if key != "vips/v7"}
    wanted |= {"vips/new": vip() | {"address": "10.10.0.1"}}
    found = check(wanted, check(many).desired, first)
    assert refused(found) == [("vips/new", "", "build")]
    second = plan(found.desired, first, 1001)
    again = check(wanted, found.desired, second)
    assert "new" in plan(again.desired, second, 1002).vips


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
