# SPDX-License-Identifier: Apache-2.0
"""What a host thinks of its backends, with real sockets on loopback."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from support.documents.roster import backend, desired, vip
from support.etcd.server import Received, free_port
from tidegate.health.checker import Checker
from tidegate.health.standing import Standing
from tidegate.model.checks import Check, Health
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import BackendKey
from tidegate.planner import plan

pytestmark = pytest.mark.root  # marked sockets

B1 = BackendKey("web", "b1")


class Watched:
    """A checker, and every standing that it has announced."""

    def __init__(self) -> None:
        self.seen: Received[dict[BackendKey, Standing]] = Received()
        self.checker = Checker(lambda: self.seen(dict(self.checker.standings())))
        self.checker.start()

    def state(self, state: str, key: BackendKey = B1) -> Standing:
        """Wait until a backend is announced in this state."""
        found = self.seen.wait(lambda all_: key in all_ and all_[key].state == state)
        return found[key]


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    assert made.checker.stop()


def generation(vip_port: int, *names: str, **options: Any) -> Generation:
    """Backends behind a VIP on loopback, whose mark leads nowhere there: what listens answers."""
    check = Check(type="tcp", interval=0.1, timeout=0.1, rise=2, fall=2, **options)
    health = Health(check=check, hold_down=0)
    backends = [backend(name) for name in names or ("b1",)]
    return plan(desired([vip("a", "127.0.0.1", vip_port)], backends, health=health), NOTHING, 1000)


def test_a_backend_comes_fails_and_returns(watched: Watched) -> None:
    """Initial, unhealthy with its reason, and healthy when something listens."""
    port = free_port()
    watched.checker.follow(generation(port))
    assert watched.state("initial").code == "checking"
    failed = watched.state("unhealthy")
    assert (failed.code, failed.reason) == (
        "refused",
        "2 checks in a row failed; the last: Connection refused.",
    )
    watched.seen.items.clear()
    with socket.create_server(("127.0.0.1", port)):
        assert watched.state("healthy").since > failed.since
    assert watched.checker.counts.failed >= 2


def test_a_new_generation_keeps_what_is_known(watched: Watched) -> None:
    """A backend more does not make the host forget the others; one less is forgotten."""
    port = free_port()
    watched.checker.follow(generation(port))
    before = watched.state("unhealthy")
    watched.checker.follow(generation(port, "b1", "b2"))
    standings = watched.checker.standings()
    assert standings[B1].since == before.since
    assert standings[BackendKey("web", "b2")].state == "initial"
    watched.checker.follow(generation(port, "b2"))
    assert set(watched.checker.standings()) == {BackendKey("web", "b2")}


def test_a_check_without_a_way_says_so(watched: Watched) -> None:
    """It is unused, with the reason, and counts neither way."""
    watched.checker.follow(generation(free_port(), port=free_port()))
    found = watched.state("unused")
    assert found.code == "no-check"
    assert "No VIP has the address" in found.reason
