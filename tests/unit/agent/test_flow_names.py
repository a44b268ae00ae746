# SPDX-License-Identifier: Apache-2.0
"""Names for ids over generations, and which change took a backend away."""

import itertools
from dataclasses import replace

from support.documents.roster import VIP4, backend, desired, vip
from tidegate.agent.traces import flow_names
from tidegate.agent.traces.flow_names import FlowNames
from tidegate.model.generation import NOTHING, Generation, Identity, PlacedVip
from tidegate.model.values import Backend, BackendKey
from tidegate.planner import plan


def generations(*rosters: list[Backend]) -> list[Generation]:
    """Return generations, one after another, far apart in time, so that nothing drains any more."""
    made, now = [NOTHING], 1000
    for backends in rosters:
        made.append(plan(desired([vip("web", VIP4)], backends), made[-1], now))
        now += 100_000
    return made[1:]


def following(made: list[Generation]) -> FlowNames:
    names = FlowNames(made[0], lambda _: None)
    for before, after in itertools.pairwise(made):
        names.follow(before, after)
    return names


def test_the_names_of_before_remain() -> None:
    """A flow may end long after its backend."""
    both, one = [backend("b1"), backend("b2", "fd01::2")], [backend("b1")]
    made = generations(both, one)
    naming = following(made).naming
    gone = made[0].backends[BackendKey("web", "b2")].identity
    assert naming.backends[gone] == BackendKey("web", "b2")
    assert naming.vips == {made[0].vips["web"].identity: "web"}


def test_the_generation_that_took_a_backend_away_is_found() -> None:
    """Quarantine does, drain does not."""
    b1 = backend("b1")
    b2, b3 = backend("b2", "fd01::2"), backend("b3", "fd01::3")
    made = generations(
        [b1, b2, b3],
        [b1, replace(b2, state="drain"), b3],
        [b1, replace(b2, state="quarantine"), b3],
        [b1, b2, b3],
    )
    lost = made[0].backends[BackendKey("web", "b2")].identity
    assert following(made).naming.left == {lost: made[2].number}


def test_what_is_remembered_is_bounded() -> None:
    """Of those that are gone, the latest stay."""
    known = {Identity(i, 1): str(i) for i in range(flow_names._MOST_GONE + 5)}
    vips = {"now": PlacedVip(Identity(1, 2), vip("now", VIP4))}
    joined = flow_names._joined(known, vips, living=1)
    assert len(joined) == flow_names._MOST_GONE + 1
    assert joined[Identity(1, 2)] == "now"
    assert Identity(4, 1) not in joined
    assert joined[Identity(1, 2)] == "now"


def test_a_rename_takes_no_backend_away() -> None:
    """Its identity has another name from then on."""
    made = generations([backend("b1"), backend("b2")], [backend("c1", "10.1.0.1"), backend("b2")])
    naming = following(made).naming
    assert naming.left == {}
    identity = made[0].backends[BackendKey("web", "b1")].identity
    assert naming.backends[identity] == BackendKey("web", "c1")
