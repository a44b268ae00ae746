# SPDX-License-Identifier: Apache-2.0
"""Names are not identity: an address of a pool keeps its id, an endpoint its VIP's identity."""

import random
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest

from support.crash.restart import restarted
from support.documents.roster import backend, desired, generations, vip, web
from tidegate.dataplane.publish import ledger
from tidegate.dataplane.publish.ledger import Kind, Place
from tidegate.model.constants import ID_COOLDOWN_SECONDS, MAX_VIPS
from tidegate.model.generation import NOTHING, Generation, Identity
from tidegate.model.values import Backend, BackendKey, Desired, Fitness, Vip
from tidegate.planner import guards, plan
from tidegate.planner.diff import difference
from tidegate.planner.guards import Limits

X, Y, Z, W = "10.1.0.1", "10.1.0.2", "fd01::3", "10.1.0.4"


def pool(_delay: int = 300, **servers: str) -> Desired:
    """Return a pool of backends by name, each with its address."""
    return web(*(backend(name, address) for name, address in servers.items()), delay=_delay)


def ids(generation: Generation) -> dict[str, Identity]:
    """Return the identity at each address."""
    return {str(p.backend.address): p.identity for p in generation.backends.values()}


def leaving(generation: Generation) -> dict[str, str]:
    """Return the addresses that drain, by the names under which they do."""
    return {
        key.name: str(p.backend.address)
        for key, p in generation.backends.items()
        if p.retire_at is not None
    }


START = {"a": X, "b": Y, "c": Z}


@pytest.mark.parametrize("delay", [0, 300])
@pytest.mark.parametrize(
    ("after", "left"),
    [
        ({"d": X, "b": Y, "c": Z}, {}),
        ({"d": X, "e": Y, "f": Z}, {}),
        ({"a": Y, "b": X, "c": Z}, {}),
        ({"a": Y, "b": Z, "c": X}, {}),
        ({"b": X, "c": Y, "d": Z}, {}),
        ({"a": Y, "b": Z}, {"@10.1.0.1": X}),
        ({"a": Y, "b": Z, "c": W}, {"@10.1.0.1": X}),
        ({"d": Y, "c": Z}, {"a": X}),
        ({"c": X, "a": W, "b": Y}, {"@fd01::3": Z}),
    ],
)
def test_an_address_keeps_its_id_under_any_name(
    after: dict[str, str], left: dict[str, str], delay: int
) -> None:
    """Renamed, exchanged, numbered anew, over a restart; who has no name left drains."""
    first = plan(pool(delay, **START), NOTHING, 1000)
    for before in (first, restarted(first)):
        second = plan(pool(delay, **after), before, 1001)
        known = ids(first)
        assert all(
            ids(second)[address] == known.get(address, ids(second)[address])
            for address in after.values()
        )
        assert leaving(second) == (left if delay else {})
        found = [p.identity.id for p in second.backends.values()]
        assert len(found) == len(set(found))
        assert second.digest == plan(pool(delay, **after), NOTHING, 1).digest
        assert restarted(second).backends == second.backends


def test_a_name_takes_its_id_to_an_address_that_is_new() -> None:
    """A server that moved is one update of a map, as long as nobody else has its address."""
    first, moved = generations(pool(a=X, b=Y), pool(a=W, b=Y))
    assert ids(moved)[W] == ids(first)[X]
    assert leaving(moved) == {}
    left_behind = plan(pool(a=W, d=X, b=Y), first, 1001)
    assert ids(left_behind)[X] == ids(first)[X]
    assert ids(left_behind)[W] not in ids(first).values()


def test_a_new_name_takes_over_from_one_that_drains() -> None:
    """At any moment of the delay, over restarts; afterwards it is another server."""
    first, gone = generations(pool(a=X, b=Y), pool(b=Y))
    back = plan(pool(d=X, b=Y), restarted(gone), 1300)
    assert ids(back) == ids(first)
    assert leaving(back) == {}
    assert back.backends[BackendKey("web", "d")].retire_at is None
    late = plan(pool(d=X, b=Y), plan(pool(b=Y), gone, 1301), 1302)
    assert ids(late)[X] != ids(first)[X]


def test_a_name_that_takes_over_leaves_its_server_to_drain() -> None:
    """It is the server behind the name that has left the pool."""
    _, gone = generations(pool(a=X, b=Y), pool(a=X))
    after = plan(pool(a=Y), gone, 1002)
    assert ids(after) == ids(gone)
    assert leaving(after) == {"@10.1.0.1": X}
    again = plan(pool(a=Y, b=X), after, 1003)
    assert (ids(again), leaving(again)) == (ids(gone), {})
    assert plan(pool(a=Y), after, 1302).backends.keys() == {BackendKey("web", "a")}


def test_one_address_in_two_pools_is_two_backends() -> None:
    """Pools have tables and checks of their own."""
    before = desired([], [backend("a", X), backend("a", Y, pool="api")])
    after = desired([], [backend("a", Y), backend("a", X, pool="api")])
    first, second = generations(before, after)
    assert [p.identity for _, p in sorted(first.backends.items())] == [
        p.identity for _, p in sorted(second.backends.items())
    ]


def test_two_names_with_one_address_have_two_ids() -> None:
    """Documents that have it are refused; those of an older agent are still served."""
    first = plan(pool(a=X, b=X), NOTHING, 1000)
    assert len({p.identity for p in first.backends.values()}) == 2
    assert plan(pool(a=X, b=X), first, 1001).number == first.number
    one = plan(pool(b=X), first, 1001)
    assert leaving(one) == {"a": X}


def test_a_rename_moves_no_slot_of_others_than_it_must() -> None:
    """The guard over tables knows that another name has another permutation."""
    chance = random.Random(5)  # noqa: S311 - reproducible, not secret
    names = {f"s{n}": f"10.1.1.{n}" for n in range(1, 40)}
    before = plan(pool(**names), NOTHING, 1000)
    for second in range(8):
        shuffled = list(names.values())
        if second % 2:
            chance.shuffle(shuffled)
            names = dict(zip(names, shuffled, strict=True))
        else:
            names = {f"r{second}-{n}": address for n, address in enumerate(shuffled)}
        after = plan(pool(**names), before, 1001 + second)
        diff = difference(before, after)
        assert guards.disruption_refusals(diff, 1, (), 1001) == ()
        assert guards.refusals(pool(**names), before, Limits(), (), 1001) == ()
        moved = before.pools["web"].table.current != after.pools["web"].table.current
        assert np.array_equal(
            after.pools["web"].table.fallback[moved],
            np.where(
                before.pools["web"].table.window > 0,
                before.pools["web"].table.fallback,
                before.pools["web"].table.current,
            )[moved],
        )
        before = after


TCP, UDP = vip("shop", "192.0.2.1", 443), vip("shop", "192.0.2.1", 443, "udp")


def vips(*found: Vip) -> Desired:
    return desired(list(found), [backend("b1")])


OTHERS = {
    "another protocol": UDP,
    "another port": replace(TCP, port=444),
    "any port": replace(TCP, port=0),
    "another address": vip("shop", "192.0.2.2", 443),
    "the other family": vip("shop", "2001:db8::1", 443),
    "a network": vip("shop", "192.0.2.0/24", 443),
}


@pytest.mark.parametrize("other", [*OTHERS.values(), None], ids=[*OTHERS, "gone"])
@pytest.mark.parametrize("has_restarts", [False, True])
def test_an_endpoint_that_returns_has_its_identity(
    other: Vip | None, *, has_restarts: bool
) -> None:
    """Away and back within the cooldown of ids; what was there meanwhile is another VIP."""

    def start(generation: Generation) -> Generation:
        return restarted(generation) if has_restarts else generation

    first = plan(vips(TCP), NOTHING, 1000)
    away = plan(vips(*filter(None, [other])), start(first), 1001)
    for placed in away.vips.values():
        assert placed.identity.id != first.vips["shop"].identity.id
        assert not placed.moved
    back = plan(vips(TCP), start(away), 1000 + ID_COOLDOWN_SECONDS)
    assert back.vips["shop"].identity == first.vips["shop"].identity
    assert back.vips["shop"].moved
    assert back.digest == first.digest
    late = plan(vips(TCP), start(away), 1001 + ID_COOLDOWN_SECONDS)
    assert late.vips["shop"].identity != first.vips["shop"].identity
    assert not late.vips["shop"].moved


def test_a_vip_keeps_its_identity_under_another_name() -> None:
    """In one change, or after a while without it; two that change names keep theirs."""
    first = plan(vips(TCP, replace(UDP, name="quic")), NOTHING, 1000)
    renamed = plan(vips(replace(TCP, name="quic"), replace(UDP, name="store")), first, 1001)
    assert renamed.vips["quic"].identity == first.vips["shop"].identity
    assert renamed.vips["store"].identity == first.vips["quic"].identity
    assert not renamed.vips["quic"].moved
    assert renamed.freed.vips == {}
    assert restarted(renamed).vips == renamed.vips
    away = plan(vips(), renamed, 1002)
    back = plan(vips(replace(TCP, name="x"), replace(UDP, name="a")), restarted(away), 1003)
    assert back.vips["x"].identity == first.vips["shop"].identity
    assert back.vips["a"].identity == first.vips["quic"].identity


def test_a_renamed_vip_with_another_pool_has_moved() -> None:
    """Its flows have entries of the other pool, whatever it was called."""
    first = plan(vips(TCP), NOTHING, 1000)
    other = desired(
        [vip("store", "192.0.2.1", 443, pool="api")], [backend("b1"), backend("b2", pool="api")]
    )
    after = plan(other, first, 1001)
    assert after.vips["store"].identity == first.vips["shop"].identity
    assert after.vips["store"].moved


def test_without_free_ids_a_vip_has_its_own_once_more() -> None:
    """All VIPs may still move at once: those without an id get the next use of theirs."""
    many = [vip(f"v{n}", "192.0.2.1", n) for n in range(1, MAX_VIPS)]
    first = plan(vips(*many), NOTHING, 1000)
    moved = plan(vips(*(replace(v, protocol="udp") for v in many)), first, 1001)
    assert {p.identity.id for p in moved.vips.values()} == set(range(1, MAX_VIPS))
    assert {p.identity.incarnation for p in moved.vips.values()} == {2}


@pytest.mark.parametrize("order", [1, -1])
def test_a_crash_between_two_records_loses_no_identity(order: int) -> None:
    """A name in two records stands for both, and the next plan knows them by what they serve."""
    before = desired([TCP, replace(UDP, name="quic")], [backend("a", X), backend("b", Y)])
    swapped = desired(
        [replace(TCP, name="quic"), UDP],
        [backend("a", Y), backend("b", X)],
    )
    first = plan(before, NOTHING, 1000)
    second = plan(swapped, first, 1001)
    old, new = ledger.records(first), ledger.records(second)
    for kind in (Kind.VIP, Kind.BACKEND):
        places = sorted((p for p in new if p.kind is kind), reverse=order < 0)
        torn: dict[Place, Any] = {**old, places[0]: new[places[0]]}
        found = ledger.contents(torn)
        assert len(found.vips) == len(found.backends) == 2
        base = replace(first, vips=found.vips, backends=found.backends)
        after = plan(swapped, base, 1002)
        assert {n: p.identity for n, p in after.vips.items()} == {
            n: p.identity for n, p in second.vips.items()
        }
        assert ids(after) == ids(second)


def _quic(name: str, address: str) -> Backend:
    return backend(name, address, quic_server_id=b"\x01")


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_of_two_that_drain_the_first_name_has_the_server_id(order: tuple[str, str]) -> None:
    """In whatever order they came and went; one that can be reached comes first."""
    servers = {"a": _quic("a", X), "b": _quic("b", Y)}
    other = backend("z", W)
    step = plan(web(servers[order[0]], other), NOTHING, 1000)
    step = plan(web(servers[order[1]], other), step, 1001)
    step = plan(web(other), step, 1002)
    found = step.server_ids("web")[b"\x01"]
    assert found.backend.name == "a"
    assert restarted(step).server_ids("web")[b"\x01"] == found
    key = BackendKey("web", "a")
    out = plan(web(other), step, 1003, {key: Fitness(is_out=True)})
    assert out.server_ids("web")[b"\x01"].backend.name == "b"


def test_addresses_compare_by_value() -> None:
    """Two spellings of one IPv6 address are one server."""
    first = plan(pool(a="fd01:0:0::3"), NOTHING, 1000)
    after = plan(pool(b=str(ip_address("fd01::3"))), first, 1001)
    assert ids(after) == ids(first)
