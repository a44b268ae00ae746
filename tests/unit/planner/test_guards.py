# SPDX-License-Identifier: Apache-2.0
"""What one change may take away, and what lifts a guard."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from support.documents.roster import backend, desired, generations, vip, web
from tidegate.model.constants import TABLE_SIZE
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.steering import Guard
from tidegate.model.values import Backend, Desired, Fitness, Override, Rejection, SourceRoute
from tidegate.planner import confirm, plan
from tidegate.planner.diff import Diff, Move, difference
from tidegate.planner.guards import Limits, disruption_refusals, next_expiry, refusals

TEN = [backend(f"b{i}") for i in range(10)]
NOW = 1001
STANDARD = Limits()


def refused(
    wanted: Desired, before: Generation, limits: Limits = STANDARD, *overrides: Override
) -> tuple[Rejection, ...]:
    return refusals(wanted, before, limits, overrides, NOW)


def keys(found: tuple[Rejection, ...]) -> list[str]:
    return [rejection.key for rejection in found]


def lift(guard: Guard, pool: str | None = None, expires_at: int = NOW + 1) -> Override:
    return Override("o", guard, pool, expires_at)


def ten(first: int, **change: object) -> Desired:
    """Return the pool of ten with a change of its first backends; no change is no key."""
    changed = [replace(b, **change) for b in TEN[:first]] if change else []  # type: ignore[arg-type]
    return web(*changed, *TEN[first:])


CAUSES: dict[str, dict[str, object]] = {
    "the key is gone": {},
    "drain": {"state": "drain"},
    "disabled": {"state": "disabled"},
    "quarantine": {"state": "quarantine"},
    "weight 0": {"weight": 0},
    "a start in the future": {"starts_at": NOW + 60},
}


@pytest.mark.parametrize("cause", CAUSES)
def test_more_than_the_share_of_a_pool_is_refused_for_any_cause(cause: str) -> None:
    """Half of ten may go at once, six may not, and the sentence has the numbers."""
    (before,) = generations(web(*TEN))
    assert refused(ten(5, **CAUSES[cause]), before) == ()
    (rejection,) = refused(ten(6, **CAUSES[cause]), before)
    assert (rejection.key, rejection.stage) == ("pools/web/backends", "guard")
    assert "6 of 10 serving backends" in rejection.reason
    assert "(b0, b1, b2, …), more than 50 %" in rejection.reason


def test_one_of_several_may_always_go() -> None:
    """Also where the share is less than one backend; but not the last one."""
    none = Limits(backends_removed=0)
    two = web(backend("b1"), backend("b2"))
    (before,) = generations(two)
    assert refused(web(backend("b1")), before, none) == ()
    assert keys(refused(web(), before, none)) == ["pools/web/backends"]


@pytest.mark.parametrize("percent", [50, 100])
def test_a_pool_is_never_emptied_by_one_change(percent: int) -> None:
    """Not by deletion and not by states, though the share may be all."""
    limits = Limits(backends_removed=percent)
    for before in (generations(web(*TEN))[-1], generations(web(TEN[0]))[-1]):
        drained = [replace(b.backend, state="drain") for b in before.backends.values()]
        for wanted in (web(), web(*drained)):
            assert keys(refused(wanted, before, limits)) == ["pools/web/backends"]


def test_the_only_backend_may_give_way_to_another() -> None:
    """A pool of one whose server is replaced goes on serving."""
    (before,) = generations(web(backend("b1")))
    assert refused(web(backend("b2")), before) == ()
    assert refused(web(backend("b2", state="drain")), before) != ()


def test_replacing_more_than_the_share_is_refused() -> None:
    """As many may have come: ten wrong addresses are no better than none."""
    (before,) = generations(web(*TEN))
    new = [backend(f"b{i}") for i in range(20, 26)]
    assert keys(refused(web(*TEN[6:], *new), before)) == ["pools/web/backends"]


def test_a_pools_own_share_comes_before_the_agents() -> None:
    """It counts as the same change has it, so that a refusal can be mended in one place."""
    (before,) = generations(web(*TEN))
    wide = web(*TEN[6:], max_removed_percent=60)
    tight = web(*TEN[2:], max_removed_percent=10)
    assert refused(wide, before) == ()
    assert keys(refused(tight, before)) == ["pools/web/backends"]


def test_what_is_not_in_service_is_not_missed() -> None:
    """Backends that drained, or had no weight, may be deleted in any number."""
    idle = [replace(b, state="drain") for b in TEN[:5]] + [replace(b, weight=0) for b in TEN[5:9]]
    (before,) = generations(web(*idle, TEN[9]))
    assert refused(web(TEN[9]), before) == ()


def test_the_last_that_is_fit_does_not_go() -> None:
    """Who is out by health checks does not count as staying."""
    out = Fitness(is_out=True)
    wanted = web(*TEN)
    unfit = {b.key: out for b in TEN[1:]}
    before = plan(wanted, NOTHING, NOW - 1, unfit)
    assert keys(refused(web(*TEN[1:]), before)) == ["pools/web/backends"]
    assert refused(web(TEN[0]), before) == ()
    assert refused(web(*TEN[1:], backend("b77")), before) == ()


def test_recovery_is_never_refused() -> None:
    """Adding to a pool that serves nobody, or few, is no removal."""
    down = web(*(replace(b, state="quarantine") for b in TEN))
    (before,) = generations(down)
    assert refused(web(TEN[0]), before, Limits(0, 0)) == ()
    assert refused(web(*TEN), before, Limits(0, 0)) == ()
    assert refused(web(*TEN), NOTHING, Limits(0, 0)) == ()


def test_a_pool_that_no_vip_uses_may_go_at_once() -> None:
    """Nobody's packets go there."""
    both = desired([vip("a", "10.99.0.1")], [*TEN, backend("b1", pool="old")])
    (before,) = generations(both)
    assert refused(desired([vip("a", "10.99.0.1")], TEN), before) == ()


def test_a_pool_of_a_source_route_is_guarded_too() -> None:
    """It is in use, so its backends do not vanish at once either."""
    canary = SourceRoute(ip_network("10.0.0.0/8"), "canary")
    service = vip("a", "10.99.0.1", source_routes=(canary,))
    (before,) = generations(desired([service], [backend("b1"), backend("b2", pool="canary")]))
    assert keys(refused(desired([service], [backend("b1")]), before)) == ["pools/canary/backends"]


def test_a_vip_does_not_move_to_a_pool_that_serves_nobody() -> None:
    """It would lose all its backends by one field of its own document."""
    (before,) = generations(desired([vip("a", "10.99.0.1")], TEN))
    empty = desired([vip("a", "10.99.0.1", pool="wbe")], TEN)
    (rejection,) = refused(empty, before)
    assert rejection.key == "vips/a"
    assert "wbe" in rejection.reason
    full = desired([vip("a", "10.99.0.1", pool="api")], [backend("b1", pool="api")])
    assert refused(full, before) == ()
    assert refused(empty, before, STANDARD, lift("removal", "wbe")) == ()


def test_an_emptied_prefix_is_refused() -> None:
    """All VIPs gone at once is an accident until somebody says that it is not."""
    (before,) = generations(web(backend("b1")))
    for percent in (50, 100):
        (rejection,) = refused(desired([], []), before, Limits(vips_removed=percent))
        assert rejection.key == "vips"
        assert "all 4 VIPs" in rejection.reason
    assert refused(desired([], []), NOTHING) == ()


def test_more_than_the_share_of_vips_is_refused() -> None:
    """A VIP is its address, port and protocol: another name is no loss, another address is one."""
    vips = [vip(f"v{i}", f"10.99.0.{i}") for i in range(1, 5)]
    (before,) = generations(desired(vips, TEN))
    assert refused(desired(vips[2:], TEN), before) == ()
    assert keys(refused(desired(vips[3:], TEN), before)) == ["vips"]
    assert refused(desired(vips[1:], TEN), before, Limits(vips_removed=0)) == ()
    renamed = [replace(v, name=f"x{v.name}") for v in vips]
    assert refused(desired(renamed, TEN), before) == ()
    moved = [replace(v, network=ip_network(f"10.98.0.{i}")) for i, v in enumerate(vips[:3])]
    assert keys(refused(desired([*moved, vips[3]], TEN), before)) == ["vips"]


def test_an_override_lifts_its_pools_guard_until_it_expires() -> None:
    """Another guard's, another pool's and an expired one change nothing."""
    (before,) = generations(web(*TEN))
    nobody = web()
    for good in (lift("removal"), lift("removal", "web")):
        assert refused(nobody, before, STANDARD, good) == ()
    for bad in (
        lift("vips"),
        lift("disruption", "web"),
        lift("removal", "api"),
        lift("removal", "web", NOW),
    ):
        assert refused(nobody, before, STANDARD, bad) != ()
    no_vips = desired([], TEN)
    assert refused(no_vips, before, STANDARD, lift("removal")) != ()
    assert refused(no_vips, before, STANDARD, lift("vips")) == ()


def test_a_refusal_says_how_to_lift_it() -> None:
    """With the command and with the key; and it stays the same while nothing else changes."""
    (before,) = generations(web(*TEN))
    (rejection,) = refused(web(), before)
    assert "tidegate override removal --pool web --for 10m" in rejection.reason
    assert (
        'put overrides/removal-web with {"guard": "removal", "pool": "web", '
        '"expires_at": "YYYY-MM-DDThh:mm:ssZ"}' in rejection.reason
    )
    assert refusals(web(), before, STANDARD, (), NOW + 100) == (rejection,)


def test_the_suggested_key_is_a_name_also_for_the_longest_pool() -> None:
    """63 characters that do not end in a dot."""
    pool = "p" * 54 + "." + "q" * 8
    (before,) = generations(desired([vip("a", "10.99.0.1", pool=pool)], [backend("b1", pool=pool)]))
    wanted = desired([vip("a", "10.99.0.1", pool=pool)], [])
    (rejection,) = refused(wanted, before)
    assert f"put overrides/removal-{'p' * 54} with" in rejection.reason


def test_time_alone_is_not_held_up() -> None:
    """A clock that was set back puts a backend before its start; no document asked for that."""
    starting: list[Backend] = [replace(b, starts_at=NOW + 10) for b in TEN]
    before = plan(web(*starting), NOTHING, NOW + 20)
    assert refused(web(*starting), before) == ()
    assert refused(web(), before) != ()


def test_a_table_that_moves_more_than_its_bound_is_refused() -> None:
    """For that pool, unless an override lifts it; at the bound it is not."""
    diff = Diff(moves={"web": Move(301, 100, 300), "api": Move(300, 100, 300)})
    (rejection,) = disruption_refusals(diff, 7, (), NOW)
    assert (rejection.key, rejection.stage, rejection.revision) == ("pools/web", "guard", 7)
    assert f"301 of {TABLE_SIZE} slots" in rejection.reason
    assert "300 at most" in rejection.reason
    assert disruption_refusals(diff, 7, (lift("disruption", "web"),), NOW) == ()
    assert disruption_refusals(diff, 7, (lift("disruption", "api"),), NOW) == (rejection,)


def test_a_table_built_otherwise_is_refused_a_torn_one_replaced() -> None:
    """What a crash left behind has no bound: it must not stay for the sake of a guard."""
    roster = web(*TEN)
    (before,) = generations(roster)
    pool = before.pools["web"]
    turned = replace(pool.table, current=pool.table.current[::-1].copy())
    foreign = replace(before, pools={"web": replace(pool, table=turned)})
    (after,) = generations(roster)
    assert disruption_refusals(difference(foreign, after), 1, (), NOW) != ()
    torn = confirm(foreign)
    mended = plan(roster, torn, NOW)
    assert difference(torn, mended).moves["web"].bound == TABLE_SIZE
    assert disruption_refusals(difference(torn, mended), 1, (), NOW) == ()


def test_the_next_expiry_is_the_first_that_is_still_to_come() -> None:
    """What has expired is over."""
    overrides = [lift("vips", None, at) for at in (900, 1500, 1200)]
    assert next_expiry(overrides, 1000) == 1200
    assert next_expiry(overrides, 1200) == 1500
    assert next_expiry(overrides, 1500) is None
