# SPDX-License-Identifier: Apache-2.0
"""The pool of last resort: when it serves, for whom, and what guards and health make of it."""

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from support.documents.keyspaces import WEB, Contents, check, refused
from support.documents.roster import backend, desired, generations, vip
from tidegate.agent.health.fitness import Moment, judge
from tidegate.health.verdict import Effective, Opinion
from tidegate.model.checks import Check, Health
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Backend, Desired, Fitness, Override, SourceRoute
from tidegate.planner import guards, next_moment, plan
from tidegate.planner.diff import difference

SHOP = vip("shop", "10.99.0.1", sorry_pool="sorry")
OTHER = vip("other", "10.99.0.2")
PAGE = backend("b9", pool="sorry")
B1, B2 = backend("b1"), backend("b2")


def want(*backends: Backend, page: Backend | None = PAGE, **options: Any) -> Desired:
    """Return the VIP shop with a sorry pool, and one without."""
    there = [*backends, page] if page else list(backends)
    return desired([SHOP, OTHER], there, **options)


NOBODY = {
    "no backends": (),
    "all disabled": (replace(B1, state="disabled"), replace(B2, state="disabled")),
    "all quarantined": (replace(B1, state="quarantine"),),
    "all drained": (replace(B1, state="drain"), replace(B2, state="drain")),
    "no weight": (replace(B1, weight=0),),
    "not yet": (replace(B1, starts_at=2000),),
}


@pytest.mark.parametrize("case", NOBODY)
def test_it_serves_while_nobody_of_the_pool_takes_new_flows(case: str) -> None:
    """Whatever the cause; it is a change of the VIP alone, and back as soon as one does."""
    before, during, after = generations(want(B1), want(*NOBODY[case]), want(B1, B2))
    placed = [g.vips["shop"].serving("web") for g in (before, during, after)]
    assert placed == ["web", "sorry", "web"]
    assert [g.on_sorry_pool for g in (before, during, after)] == [(), ("shop",), ()]
    assert during.vips["other"].serving("web") == "web"
    assert during.vips["shop"].identity == before.vips["shop"].identity
    assert difference(before, during).vips.changed == ("shop",)
    assert "sorry" not in difference(before, during).moves


def test_one_that_serves_is_enough() -> None:
    """However small its share."""
    (found,) = generations(want(replace(B1, weight=1), replace(B2, state="disabled")))
    assert found.on_sorry_pool == ()


def test_it_does_not_serve_if_it_has_nobody_itself() -> None:
    """Nothing would be won, and flows of a drained pool would lose their fallback."""
    for page in (None, replace(PAGE, state="disabled")):
        (found,) = generations(want(replace(B1, state="drain"), page=page))
        assert found.on_sorry_pool == ()


def test_clients_with_a_pool_of_their_own_get_it_too() -> None:
    """Each pool of a VIP by itself: the others go on."""
    routes = (SourceRoute(ip_network("198.51.100.0/24"), "canary"),)
    shop = replace(SHOP, source_routes=routes)
    canary = backend("b5", pool="canary", state="disabled")
    (found,) = generations(desired([shop], [B1, canary, PAGE]))
    placed = found.vips["shop"]
    assert (placed.serving("web"), placed.serving("canary")) == ("web", "sorry")


def test_time_alone_may_end_it() -> None:
    """A backend that starts later is waited for."""
    wanted = want(replace(B1, starts_at=2000))
    (found,) = generations(wanted)
    assert next_moment(found) == 2000
    assert plan(wanted, found, 2000).on_sorry_pool == ()


def test_hosts_agree_whatever_they_went_through() -> None:
    """The digest has it, and it follows from weights alone."""
    out = want(replace(B1, state="disabled"))
    *_, by_way = generations(want(B1), want(B1, B2), out)
    (at_once,) = generations(out)
    assert by_way.digest == at_once.digest
    other_page = desired([replace(SHOP, sorry_pool=None), OTHER], [*out.backends.values()])
    assert generations(other_page)[0].digest != at_once.digest


def on_sorry() -> Generation:
    return generations(want(B1, B2), want(replace(B1, state="disabled")))[-1]


def refusals(wanted: Desired, before: Generation, *lifted: Override) -> list[str]:
    found = guards.refusals(wanted, before, guards.Limits(), lifted, 1001)
    return [rejection.key for rejection in found]


def test_the_switch_removes_nothing() -> None:
    """Neither the way there nor the way back is the guards' business, as backends are."""
    out = want(replace(B1, state="disabled"), replace(B2, state="disabled"))
    (before,) = generations(want(B1, B2))
    assert refusals(out, before) == ["pools/web/backends"]
    assert refusals(out, before, Override("o", "removal", "web", 2000)) == []
    assert refusals(want(B1, B2), plan(out, before, 1001)) == []


def test_a_sorry_pool_that_serves_is_not_taken_away() -> None:
    """Neither its backends nor the VIP's word of it, unless somebody serves in its place."""
    disabled = replace(B1, state="disabled")
    assert refusals(want(disabled, page=None), on_sorry()) == ["pools/sorry/backends"]
    without = desired([replace(SHOP, sorry_pool=None), OTHER], [disabled, PAGE])
    assert refusals(without, on_sorry()) == ["vips/shop"]
    assert refusals(without, on_sorry(), Override("o", "removal", None, 2000)) == []
    better = desired([replace(SHOP, sorry_pool=None), OTHER], [B1, PAGE])
    assert refusals(better, on_sorry()) == []


def shop(**options: object) -> Contents:
    document: dict[str, object] = {**WEB["vips/shop"]}  # type: ignore[dict-item]
    return {**WEB, "pools/sorry": {}, "vips/shop": document | options}


def test_the_documents_sorry_pool_arrives() -> None:
    """None unless it is named."""
    assert check(shop(sorry_pool="sorry")).desired.vips["shop"].sorry_pool == "sorry"
    assert check(shop()).desired.vips["shop"].sorry_pool is None


@pytest.mark.parametrize(
    ("name", "stage", "says"),
    [
        ("web", "schema", "sorry_pool is the pool that it stands in for"),
        ("nowhere", "reference", "sorry_pool is 'nowhere', which does not exist"),
        ("no/name", "schema", "sorry_pool"),
    ],
)
def test_a_sorry_pool_is_another_pool_that_exists(name: str, stage: str, says: str) -> None:
    """Refused with the field and a reason."""
    validation = check(shop(sorry_pool=name))
    assert refused(validation) == [("vips/shop", "sorry_pool", stage)]
    assert says in validation.rejections[0].reason.replace('"', "'")


def test_a_deleted_sorry_pool_stays_while_a_vip_names_it() -> None:
    """As any other pool that is in use."""
    good = check(shop(sorry_pool="sorry")).desired
    without = {key: value for key, value in shop(sorry_pool="sorry").items() if "sorry" not in key}
    validation = check(without, good)
    assert validation.desired == replace(good, revision=1000)
    assert refused(validation) == [("pools/sorry", "", "reference")]


def dead(generation: Generation, pool: str = "web") -> Opinion:
    """Return the opinion of a fleet that finds all backends of a pool dead, all others alive."""
    states = {
        key: Effective("unhealthy" if key.pool == pool else "healthy", 900, 1, 0, False)  # noqa: FBT003
        for key in generation.backends
    }
    return Opinion(states, frozenset())


def checked(panic_percent: int, page: Backend | None = PAGE) -> Generation:
    health = Health(check=Check(type="tcp", interval=2), panic_percent=panic_percent)
    return plan(want(B1, B2, page=page, health=health), NOTHING, 1000)


def test_a_panic_keeps_the_pool_so_it_serves_itself() -> None:
    """The checks are not believed, so nobody is out, and the sorry pool waits."""
    generation = checked(50)
    found = judge(generation, {}, dead(generation), Moment(1000))
    assert (found.fitness, found.panics) == ({}, ("web",))


def shared(generation: Generation, *, with_other: bool) -> Generation:
    vips = {n: p for n, p in generation.vips.items() if with_other or n != "other"}
    return replace(generation, vips=vips)


def test_without_a_panic_share_all_may_be_out_if_it_serves() -> None:
    """Every VIP of the pool must have one that serves; and a sorry pool itself is never emptied."""
    generation = shared(checked(0), with_other=False)
    found = judge(generation, {}, dead(generation), Moment(1000))
    assert set(found.fitness) == {B1.key, B2.key}
    out = {key: Fitness(is_out=True) for key in found.fitness}
    wanted = desired([SHOP], [B1, B2, PAGE])
    assert plan(wanted, generation, 1001, out).on_sorry_pool == ("shop",)
    assert judge(generation, {}, dead(generation, "sorry"), Moment(1000)).panics == ("sorry",)
    for kept in (checked(0), shared(checked(0, page=None), with_other=False)):
        assert judge(kept, {}, dead(kept), Moment(1000)).panics == ("web",)
