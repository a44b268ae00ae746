# SPDX-License-Identifier: Apache-2.0
"""A host's own findings and the fleet's verdicts together, as snapshots and states of a watch come.

Nothing here listens: what probes find and what etcd has is handed over as the engine and the watch
do.
"""

import time
from collections.abc import Iterator

import pytest

from support.documents.roster import backend, desired, vip
from tidegate.agent.health.fleet import FleetHealth
from tidegate.health.result import Result
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.watch_loop import Phase, WatchState
from tidegate.keyspace.status import verdicts
from tidegate.keyspace.status.verdicts import Confirmation
from tidegate.model.checks import Check, Health
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import BackendKey, Document, Fitness, Snapshot
from tidegate.planner import plan

NAMES = ("b1", "b2", "b3", "b4")
B = [BackendKey("web", name) for name in NAMES]
OUT = Fitness(is_out=True)
HEALTH = Health(check=Check(type="tcp", interval=60, timeout=1, rise=1, fall=1))


class Host:
    """The host lb1 of a fleet of two, with what is in its etcd."""

    def __init__(self) -> None:
        self.wakes = 0
        settings = EtcdSettings(endpoints=("127.0.0.1:1",))
        self.health = FleetHealth(settings, "f", "lb1", self._wake, allow_exec=False)
        self.generation = plan(self._wanted(), NOTHING, 1000)
        self.documents: dict[str, Document] = {}
        self.revision = 10
        self.health.checks.follow(self.generation)
        for key in B:
            self.finds(key, is_dead=False)
            self.put(f"lb2/web/{key.name}", "healthy")
        self.confirm("lb1")
        self.confirm("lb2")
        self.read()
        assert self.judge() == {}

    def _wanted(self) -> object:
        backends = [backend(name) for name in NAMES]
        return desired([vip("a", "127.0.0.1", 80)], backends, health=HEALTH)

    def _wake(self) -> None:
        self.wakes += 1

    def finds(self, key: BackendKey, *, is_dead: bool) -> None:
        """Have a probe end."""
        result = Result("timeout", "No answer.", 1.0) if is_dead else Result("passed", "", 0.01)
        self.health.checks._take(key, result)

    def put(self, key: str, state: str) -> None:
        """Write a verdict."""
        text = verdicts.encode(state, "external", "", time.time(), has_recovered=False)  # type: ignore[arg-type]
        self._put(key, text)

    def confirm(self, host: str) -> None:
        """Have a host say that its verdicts are up to date."""
        said = Confirmation(time.monotonic_ns(), 5.0)
        self._put(f"{host}/@confirmed", verdicts.encode_confirmation(said))

    def _put(self, key: str, text: bytes) -> None:
        self.revision += 1
        self.documents = {**self.documents, key: Document(text, self.revision)}

    def read(self) -> None:
        """Have the watch deliver what is there."""
        self.health._deliver(Snapshot(self.revision, self.documents))

    def phase(self, phase: Phase) -> None:
        """Have the watch's state change."""
        self.health._note_state(WatchState(phase, "", time.monotonic()))

    def judge(self, *, is_alone: bool = False) -> dict[BackendKey, Fitness]:
        """Judge, bring it into force, and return what the planner gets."""
        self.health.judge(self.generation, woken=True, is_alone=is_alone)
        assert self.health.fitness is not None
        fitness = dict(self.health.fitness)
        self.generation = self._planned(fitness)
        return fitness

    def _planned(self, fitness: dict[BackendKey, Fitness]) -> Generation:
        return plan(self._wanted(), self.generation, 1001, fitness)  # type: ignore[arg-type]

    def close(self) -> None:
        """End its thread."""
        self.health.start()
        self.health.stop()


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


def b1_dies(host: Host) -> None:
    """Both hosts find b1 dead."""
    host.finds(B[0], is_dead=True)
    host.put("lb2/web/b1", "unhealthy")
    host.read()
    assert host.judge() == {B[0]: OUT}


def test_own_findings_are_those_of_own_probes(host: Host) -> None:
    """What is below the own key says nothing to the host, but to whoever writes it."""
    b1_dies(host)
    for state in ("healthy", "junk"):
        host.put("lb1/web/b1", state)
        host.read()
        assert host.judge() == {B[0]: OUT}
        assert host.health.own_keys.keys["/tidegate/f/health/lb1/web/b1"] == host.revision
    assert host.health.status().unreadable == 0, "it is written anew"


def test_an_old_store_brings_nobody_back_until_all_confirm(host: Host) -> None:
    """Its verdicts of the other host say healthy, and half of the votes are enough for that."""
    old, revision = host.documents, host.revision
    b1_dies(host)
    host.phase("reconnecting")
    assert host.judge() == {B[0]: OUT}
    host.documents, host.revision = old, revision
    host.phase("connected")
    host.read()
    assert host.judge() == {B[0]: OUT}
    host.confirm("lb1")
    host.read()
    assert host.judge() == {B[0]: OUT}
    host.put("lb2/web/b1", "unhealthy")
    host.confirm("lb2")
    host.read()
    assert host.judge() == {B[0]: OUT}
    host.put("lb2/web/b1", "healthy")  # now it is its word, and one of two is not the majority
    host.read()
    assert host.judge() == {}


def test_a_store_that_goes_back_is_a_gap_of_its_own(host: Host) -> None:
    """Also if no stream broke: a lower revision is another history."""
    old, revision = host.documents, host.revision
    b1_dies(host)
    host.documents, host.revision = old, revision
    host.read()
    assert host.judge() == {B[0]: OUT}


def test_a_host_alone_goes_on_alone_until_all_confirm(host: Host) -> None:
    """It takes out what only itself finds dead, and lets in what only itself finds alive."""
    host.finds(B[1], is_dead=True)
    assert host.judge() == {}, "one of two"
    assert host.judge(is_alone=True) == {B[1]: OUT}
    host.read()
    assert host.judge() == {B[1]: OUT}, "etcd is back, with the verdicts from before"
    for name in ("lb1", "lb2"):
        host.confirm(name)
        host.read()
        expected = {B[1]: OUT} if name == "lb1" else {}
        assert host.judge() == expected


def test_a_confirmation_asks_for_no_judgement(host: Host) -> None:
    """It is noted when each host spoke last, and nothing is computed."""
    host.health.judge(host.generation, woken=True, is_alone=False)
    for _ in range(3):
        host.confirm("lb2")
        host.read()
        assert not host.health.judge(host.generation, woken=True, is_alone=False)


def test_who_does_not_confirm_is_named(host: Host) -> None:
    """For three times as long as it says; its votes still count, as its lease lives."""
    said = verdicts.encode_confirmation(Confirmation(1, 0.001))
    host._put("lb2/@confirmed", said)
    host.read()
    host.judge()
    deadline = time.monotonic() + 10
    while host.health.status().unconfirmed != ("lb2",):
        assert time.monotonic() < deadline
    host.confirm("lb2")
    host.read()
    host.judge()
    assert host.health.status().unconfirmed == ()
