# SPDX-License-Identifier: Apache-2.0
"""Whom the lists of stand-ins name, and from which moment on."""

from dataclasses import replace

import numpy as np

from support.documents.roster import VIP4, backend, desired, generations, vip
from tidegate.dataplane.kernel import layout
from tidegate.dataplane.publish.desired import desired_maps
from tidegate.dataplane.publish.entries import Contents
from tidegate.dataplane.publish.stand_ins import meanwhile, of_pools
from tidegate.model.generation import Generation
from tidegate.model.values import BackendKey, Desired, Fitness
from tidegate.planner import plan


def roster(count: int, *, out: tuple[str, ...] = ()) -> Desired:
    servers = [
        backend(f"b{n}", f"10.1.0.{n + 1}", state="drain" if f"b{n}" in out else "active")
        for n in range(count)
    ]
    return desired([vip("web", VIP4)], [*servers, backend("c1", "10.2.0.1", pool="other")])


def stand_ins(generation: Generation) -> Contents:
    """Return the lists of all pools."""
    return of_pools(generation, generation.pools)


def names(generation: Generation, pool: str = "web") -> list[str]:
    """Return the list of a pool by name."""
    value = stand_ins(generation)[key(generation, pool)]
    by_id = {placed.identity.id: name.name for name, placed in generation.backends.items()}
    return [by_id[int(id_)] for id_ in np.frombuffer(value, "<u4")]


def key(generation: Generation, pool: str = "web") -> bytes:
    return generation.pools[pool].identity.id.to_bytes(4, "little")


def entries_of(generation: Generation) -> np.ndarray:
    found = np.zeros(1 + max(p.identity.id for p in generation.backends.values()), layout.BACKEND)
    for placed in generation.backends.values():
        found[placed.identity.id]["incarnation"] = placed.identity.incarnation
        found[placed.identity.id]["flags"] = not placed.reachable
    return found


def test_a_list_has_backends_that_take_new_flows() -> None:
    """Nobody who drains, or of another pool; few are listed again and again."""
    listed = names(generations(roster(4, out=("b1",)))[-1])
    assert set(listed) == {"b0", "b2", "b3"}
    assert len(listed) == layout.STAND_INS
    assert listed[:3] * 5 == listed[:15]


def test_a_list_does_not_depend_on_ids() -> None:
    """Two hosts whose ids differ list the same backends in the same order."""
    one = generations(roster(40))[-1]
    other = generations(roster(3), roster(40))[-1]
    assert names(one) == names(other)
    assert len(set(names(one))) == layout.STAND_INS


def test_a_pool_of_nobody_has_no_list() -> None:
    """And the lists of others stay as they are."""
    generation = generations(roster(2, out=("b0", "b1")))[-1]
    assert list(stand_ins(generation)) == [key(generation, "other")]


def test_what_did_not_change_is_taken_over() -> None:
    """A list is built anew for a pool of which something changed, and for no other."""
    one, two = generations(roster(3), roster(4))
    known = {key(one): b"kept", key(one, "other"): b"kept"}
    last = replace(desired_maps(one), maps={**desired_maps(one).maps, "stand_ins": known})
    found = desired_maps(two, last).maps["stand_ins"]
    assert found == stand_ins(two) | {key(two, "other"): b"kept"}
    gone = replace(two, pools={"web": two.pools["web"]})
    assert list(desired_maps(gone, last).maps["stand_ins"]) == [key(two)]


def test_meanwhile_those_stand_in_who_serve_before_and_after() -> None:
    """Not who comes back and waits for the table, and not who is about to go."""
    wanted = roster(3)
    first = generations(wanted)[-1]
    before = plan(wanted, first, 1001, {BackendKey("web", "b0"): Fitness(is_out=True)})
    after = plan(wanted, before, 1002, {BackendKey("web", "b1"): Fitness(is_out=True)})
    lists = meanwhile(after, stand_ins(after), entries_of(before))
    by_id = {placed.identity.id: name.name for name, placed in after.backends.items()}
    assert {by_id[int(i)] for i in np.frombuffer(lists[key(after)], "<u4")} == {"b2"}
