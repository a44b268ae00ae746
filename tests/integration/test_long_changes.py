# SPDX-License-Identifier: Apache-2.0
"""The dead are taken out beside a change that takes long, and stay out when it comes into force."""

import gc
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import pytest

from support.agent.lifecycle import LifecycleHost
from support.documents.keyspaces import Contents
from tidegate.agent.long_work import LongWork
from tidegate.dataplane.kernel import layout
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.model.values import BackendKey, Fitness

pytestmark = pytest.mark.root

T = TypeVar("T")
MANY = 20_000
DEAD = BackendKey("web", "a")


PLAN = 3
"""Which of a change's works it is: behind validating and guards."""


class Works(LongWork):
    """Counts what it does. Each work lasts until somebody has looked, however little it is."""

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.number = 0
        self._has_looked = threading.Event()
        self._is_watched = False

    def beside(self, meanwhile: Callable[[], None]) -> None:
        """Do this meanwhile."""

        def look() -> None:
            meanwhile()
            self._has_looked.set()

        self._is_watched = True
        super().beside(look)

    def run(self, work: Callable[[], T]) -> T:
        """Do it."""

        def patiently() -> T:
            result = work()
            assert not self._is_watched or self._has_looked.wait(20)
            return result

        self.number += 1
        self._has_looked.clear()
        return super().run(patiently)


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
    found = bpf.map_lookup(fd, id_.to_bytes(4, "little"), layout.BACKEND.itemsize)
    assert found is not None
    return int(np.frombuffer(found, layout.BACKEND)[0]["flags"])


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


POOLS, EACH = 1_000, 10


def wide(weight: int) -> Contents:
    """Return as many pools as an agent has room for, nearly, each with a VIP."""
    found: Contents = {}
    for pool in range(POOLS):
        found[f"pools/p{pool}"] = {}
        address = f"192.0.{2 + pool // 250}.{pool % 250 + 1}"
        vip = {"address": address, "port": 443, "protocol": "tcp", "pool": f"p{pool}"}
        found[f"vips/v{pool}"] = vip
        for n in range(EACH):
            at = pool * EACH + n
            backend = {"address": f"10.100.{at >> 8}.{at & 255}", "weight": 100 if n else weight}
            found[f"pools/p{pool}/backends/b{n}"] = backend
    return found


class Deaths:
    """Backends that die at random moments, and how long each had to wait for its flag, in s."""

    def __init__(self, host: LifecycleHost, chance: random.Random) -> None:
        self._host, self._chance = host, chance
        self._queue: queue.SimpleQueue[tuple[float, BackendKey]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._kill, daemon=True)
        self._fitness: dict[BackendKey, Fitness] = {}
        self.waited: dict[BackendKey, float] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.eject()

    def _kill(self) -> None:
        pools = self._chance.sample(range(POOLS), POOLS)
        while not self._ended.wait(self._chance.expovariate(8)) and pools:
            key = BackendKey(f"p{pools.pop()}", f"b{self._chance.randrange(EACH)}")
            self._queue.put((time.monotonic(), key))

    def eject(self) -> None:
        """Do what the loop does when it may: flag who has died, and look into the map."""
        died: dict[BackendKey, float] = {}
        with suppress(queue.Empty):
            while True:
                at, key = self._queue.get_nowait()
                died[key] = at
        if not died:
            return
        self._fitness = self._fitness | dict.fromkeys(died, Fitness(is_out=True))
        self._host.changes.flag_unhealthy(self._fitness)
        now = time.monotonic()
        for key, at in died.items():
            assert flags(self._host, key) == layout.QUARANTINED
            self.waited[key] = now - at


def test_a_thousand_pools_change_and_the_dead_are_out(host: LifecycleHost, works: Works) -> None:
    """Whoever dies at whatever moment of it, reading, planning, filling and swapping.

    On a quiet machine p99 is below 100 ms; here others may take the CPUs.
    """
    assert host.want(wide(100), 2) == []
    gc.collect()
    gc.freeze()  # as an agent does; what follows is not about the tests' own objects
    deaths = Deaths(host, random.Random(14))  # noqa: S311 - a test's own chance
    works.beside(deaths.eject)
    with deaths:
        assert host.want(wide(50), 3) == []
    gc.unfreeze()
    waited = sorted(deaths.waited.values())
    p99 = waited[int(len(waited) * 0.99)]
    print(  # noqa: T201 - the figures that the page on faults has
        f"{len(waited)} died; flagged after p50 {waited[len(waited) // 2] * 1e3:.0f} ms, "
        f"p99 {p99 * 1e3:.0f} ms, at most {waited[-1] * 1e3:.0f} ms"
    )
    assert len(waited) > 30
    assert p99 < 0.5
    in_force = host.plane.publisher.in_force
    for key in deaths.waited:
        assert flags(host, key) == layout.QUARANTINED
        assert not host.plane.publisher.standing.backends[key].reachable
    assert host.reconcile() == []
    assert host.plane.audit(deep=True) == []
    for key in deaths.waited:
        id_ = in_force.backends[key].identity.id
        assert id_ not in host.plane.publisher.in_force.pools[key.pool].table.current
        assert flags(host, key) == layout.QUARANTINED
