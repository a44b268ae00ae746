# SPDX-License-Identifier: Apache-2.0
"""What maps have to hold for a generation: the same whether an earlier intent helped or not."""

from dataclasses import replace
from ipaddress import ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from support.documents.roster import backend, desired, vip
from tidegate.dataplane.publish.desired import NOTHING_DESIRED, desired_maps
from tidegate.model.generation import NOTHING, Identity
from tidegate.model.values import Backend, Desired, SourceRoute, Vip
from tidegate.planner import plan

POOLS = st.sampled_from(["p", "q", "r"])
VIPS = st.builds(
    lambda name, last, pool, route, deny: vip(
        name,
        f"192.0.2.{last}" if last else "203.0.113.0/24",
        pool=pool,
        source_routes=(SourceRoute(ip_network("10.0.0.0/8"), route),) if route else (),
        deny=(ip_network("10.1.0.0/16"),) if deny else (),
    ),
    st.sampled_from("abc"),
    st.integers(0, 3),
    POOLS,
    st.none() | POOLS,
    st.booleans(),
)
BACKENDS = st.builds(
    lambda name, pool, weight, server: backend(
        name, pool=pool, weight=weight, quic_server_id=bytes([server]) if server else b""
    ),
    st.sampled_from(["b1", "b2", "b3"]),
    POOLS,
    st.sampled_from([0, 1, 100]),
    st.integers(0, 2),
)


def roster(vips: list[Vip], backends: list[Backend]) -> Desired:
    """Draw documents in which no name and no address occurs twice."""
    by_place = {one.network: one for one in {one.name: one for one in vips}.values()}
    by_key = {one.key: one for one in backends}
    return desired(list(by_place.values()), list(by_key.values()), delay=2)


ROSTERS = st.builds(roster, st.lists(VIPS, max_size=3), st.lists(BACKENDS, max_size=5))


@settings(deadline=None, max_examples=40)  # it builds tables
@given(st.lists(ROSTERS, min_size=1, max_size=5), st.lists(st.integers(0, 3), min_size=5))
def test_an_earlier_intent_changes_nothing(steps: list[Desired], pauses: list[int]) -> None:
    """Over any rosters and pauses: with the last intent, with an older one, and without any.

    Documents that stay are the same objects from step to step, as they are in an agent.
    """
    generation, last, oldest, now = NOTHING, NOTHING_DESIRED, NOTHING_DESIRED, 1000
    before: dict[object, object] = {}
    for step, pause in zip(steps, pauses, strict=False):
        shared = [
            {key: before.setdefault((key, value), value) for key, value in found.items()}
            for found in (step.vips, step.pools, step.backends)
        ]
        wanted = replace(step, vips=shared[0], pools=shared[1], backends=shared[2])
        now += pause
        generation = plan(wanted, generation, now)
        fresh = desired_maps(generation)
        assert desired_maps(generation, last) == fresh
        assert desired_maps(generation, oldest) == fresh
        last = fresh
        oldest = fresh if oldest is NOTHING_DESIRED else oldest


def test_pools_under_other_ids_are_noticed() -> None:
    """The VIPs may be the very same: their records and entries name pools by id."""
    route = SourceRoute(ip_network("10.0.0.0/8"), "q")
    wanted = desired([vip("a", "192.0.2.1", pool="p", source_routes=(route,))], [])
    generation = plan(wanted, NOTHING, 1000)
    moved = {
        name: replace(placed, identity=Identity(placed.identity.id + 7, 1))
        for name, placed in generation.pools.items()
    }
    other = replace(generation, pools=moved)
    assert (
        desired_maps(other, desired_maps(generation))
        == desired_maps(other)
        != desired_maps(generation)
    )
