# SPDX-License-Identifier: Apache-2.0
"""The dead are taken out beside a change that takes long, and stay out when it comes into force."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from support.agent.lifecycle import LifecycleHost
from support.documents.keyspaces import Contents
from tidegate.agent.long_work import LongWork
from tidegate.dataplane.kernel import layout, maps
from tidegate.model.values import BackendKey, Fitness

pytestmark = pytest.mark.root

T = TypeVar("T")
MANY = 20_000
DEAD = BackendKey("web", "a")


PLAN = 3
"""Which of a change's works it is: behind validating and guards."""


class Works(LongWork):
    """Counts what it does."""

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.number = 0

    def run(self, work: Callable[[], T]) -> T:
        """Do it."""
        self.number += 1
        return super().run(work)


@pytest.fixture
def works() -> Works:
    return Works()


@pytest.fixture
def host(tmp_path: Path, works: Works) -> Iterator[LifecycleHost]:
    found = LifecycleHost(tmp_path, long_work=works)
    yield found
    found.close()


def contents(weight: int) -> Contents:
    """Return a service of two backends, and other pools with many of a weight."""
    found: Contents = {f"pools/big{n}": {} for n in range(20)}
    for n in range(MANY):
        address = f"10.{100 + (n >> 16)}.{n >> 8 & 255}.{n & 255}"
        found[f"pools/big{n % 20}/backends/b{n}"] = {"address": address, "weight": weight}
    found["pools/web"] = {}
    for n, name in enumerate("abc"):
        found[f"pools/web/backends/{name}"] = {"address": f"10.99.0.{n + 1}"}
    vip = {"address": "192.0.2.1", "port": 443, "protocol": "tcp"}
    found["vips/shop"] = vip | {"pool": "web"}
    found["vips/big"] = vip | {"port": 444, "pool": "big1"}
    return found


def flags(host: LifecycleHost, key: BackendKey) -> int:
    """Return the flags of a backend's entry in the kernel."""
    id_ = host.plane.publisher.in_force.backends[key].identity.id
    fd = host.plane.publisher.mirror.fds["backends"]
    return int(maps.read_array(fd, layout.BACKEND, id_ + 1)[id_]["flags"])


def test_the_dead_are_out_before_a_long_change_is(host: LifecycleHost, works: Works) -> None:
    """At the next look, while it is planned; the plan, which knew it alive, keeps it out.

    The change after that, which is due at once, builds the table without it.
    """
    assert host.want(contents(100), 2) == []
    flagged: list[int] = []
    works.number = 0

    def meanwhile() -> None:
        if works.number == PLAN and not flagged:
            host.changes.flag_unhealthy({DEAD: Fitness(is_out=True)})
            flagged.append(flags(host, DEAD))

    works.beside(meanwhile)
    assert host.want(contents(50), 3) == []
    assert flagged == [layout.QUARANTINED]
    in_force = host.plane.publisher.in_force
    assert in_force.backends[BackendKey("big1", "b1")].weight == 50
    assert flags(host, DEAD) == layout.QUARANTINED
    assert not in_force.backends[DEAD].reachable
    id_ = in_force.backends[DEAD].identity.id
    assert id_ in in_force.pools["web"].table.current
    assert host.reconcile() == []
    assert id_ not in host.plane.publisher.in_force.pools["web"].table.current
    assert flags(host, DEAD) == layout.QUARANTINED


def test_a_flag_beside_a_plan_of_no_change_is_a_change(host: LifecycleHost, works: Works) -> None:
    """What was planned would change nothing; it is planned again, without who is out."""
    assert host.want(contents(100), 2) == []
    number = host.plane.publisher.in_force.number
    done: list[bool] = []
    works.number = 0

    def meanwhile() -> None:
        if works.number == PLAN and not done:
            done.append(host.changes.flag_unhealthy({DEAD: Fitness(is_out=True)}))

    works.beside(meanwhile)
    assert host.want(contents(100), 3) == []
    assert done == [True]
    assert flags(host, DEAD) == layout.QUARANTINED
    in_force = host.plane.publisher.in_force
    assert in_force.number > number
    assert in_force.backends[DEAD].identity.id not in in_force.pools["web"].table.current


def test_who_recovers_beside_a_change_comes_back_with_the_next(
    host: LifecycleHost, works: Works
) -> None:
    """A flag that was set and revoked within one plan is gone after the change that follows."""
    assert host.want(contents(100), 2) == []
    fitness = [{DEAD: Fitness(is_out=True)}, {DEAD: Fitness()}]

    def meanwhile() -> None:
        if fitness:
            host.changes.flag_unhealthy(fitness.pop(0))

    works.beside(meanwhile)
    assert host.want(contents(50), 3) == []
    assert not fitness
    assert host.reconcile() == []
    in_force = host.plane.publisher.in_force
    assert in_force.backends[DEAD].reachable
    assert flags(host, DEAD) == 0
    assert in_force.backends[DEAD].identity.id in in_force.pools["web"].table.current
