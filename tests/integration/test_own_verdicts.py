# SPDX-License-Identifier: Apache-2.0
"""A host's verdicts in a real etcd: confirmed, and put right when others change them."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.etcd.server import EtcdServer
from tidegate.agent.health.ballots import Ballots, Received
from tidegate.health.poll import Poll
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.watch import Watch
from tidegate.keyspace.status.document import StatusDocument
from tidegate.keyspace.status.writer import StatusWriter
from tidegate.model.values import Snapshot

STATUS = "/tidegate/f/status/lb1"
PREFIX = "/tidegate/f/health/"
OWN = f"{PREFIX}lb1/"
CONFIRMED = f"{OWN}@confirmed"
TTL = 3


def status(generation: int) -> StatusDocument:
    return StatusDocument(
        version="0.1.0",
        host="lb1",
        release="live",
        revision=7,
        generation=generation,
        state="synced",
        started_at="2026-01-31T12:00:00Z",
    )


class Host:
    """A writer, and a watch whose findings it is given as the agent's loop does."""

    def __init__(self, etcd: EtcdServer) -> None:
        settings = EtcdSettings(endpoints=(etcd.endpoint,), backoff_max=0.3, status_ttl=TTL)
        self.ballots = Ballots("lb1", PREFIX, Poll())
        self.writer = StatusWriter(settings, STATUS, confirmation=CONFIRMED)
        self.watch = Watch(settings, PREFIX, self._take)
        self.writer.submit(status(1))
        self.writer.submit_verdicts({f"{OWN}web/b{n}": b"%d" % n for n in range(150)})
        self.writer.start()
        self.watch.start()

    def _take(self, snapshot: Snapshot) -> None:
        self.ballots.take(snapshot, Received(time.monotonic(), 0.0))
        self.writer.compare(self.ballots.own_keys)

    def close(self) -> None:
        """End both."""
        assert self.watch.stop()
        assert self.writer.stop()


@pytest.fixture
def host(etcd: EtcdServer) -> Iterator[Host]:
    made = Host(etcd)
    wait(lambda: "lb1" in made.ballots.confirmed)
    wait(lambda: not made.writer.own_keys._is_first)  # what is there then is nobody's doing
    yield made
    made.close()


def wait(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    """Ask again and again, as a person at etcdctl would."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def entry(etcd: EtcdServer, key: str) -> dict[str, Any]:
    """Return a key as etcd has it; empty if it has not."""
    found = json.loads(etcd.ctl("get", key, "-w", "json")).get("kvs", [{}])[0]
    return {str(name): value for name, value in found.items()}


def text(etcd: EtcdServer, key: str) -> str:
    return etcd.ctl("get", "--print-value-only", key).strip()


def test_verdicts_are_confirmed_after_they_were_written(etcd: EtcdServer, host: Host) -> None:
    """Under the lease, later than any of them, and anew within the time of a lease."""
    first = entry(etcd, CONFIRMED)
    assert first["lease"] == entry(etcd, STATUS)["lease"] != 0
    newest = max(entry(etcd, f"{OWN}web/b{n}")["mod_revision"] for n in (0, 99, 100, 149))
    assert first["mod_revision"] > newest
    said = host.ballots.confirmed["lb1"].said
    wait(lambda: host.ballots.confirmed["lb1"].said.number > said.number, timeout=3 * TTL)
    assert said.every == TTL / 3


def test_a_confirmation_goes_with_the_last_verdict(etcd: EtcdServer, host: Host) -> None:
    """A host without checks has nothing to confirm, and nobody waits for it."""
    host.writer.submit_verdicts({})
    wait(lambda: not entry(etcd, CONFIRMED))
    wait(lambda: "lb1" not in host.ballots.confirmed)
    assert host.writer.own_keys.overwritten == 0


def test_etcd_that_comes_back_gets_a_confirmation_at_once(etcd: EtcdServer, host: Host) -> None:
    """A later one than all that was there, though no verdict has changed."""
    before = host.ballots.confirmed["lb1"].said.number
    etcd.restart()
    back = time.monotonic_ns()
    wait(lambda: host.ballots.confirmed["lb1"].said.number > max(before, back))


@pytest.mark.parametrize("under_lease", [False, True])
def test_what_others_write_is_put_right(etcd: EtcdServer, host: Host, *, under_lease: bool) -> None:
    """Another value, the same under no lease or another, a deletion, and a key too many."""
    lease = etcd.ctl("lease", "grant", "600").split()[1]
    flag = [f"--lease={lease}"] if under_lease else []
    own = entry(etcd, STATUS)["lease"]
    key, same, gone, added = (f"{OWN}web/{name}" for name in ("b1", "b2", "b3", "x"))
    etcd.ctl("put", key, "junk", *flag)
    etcd.ctl("put", same, "2", *flag)
    etcd.ctl("del", gone)
    etcd.ctl("put", added, "junk", *flag)
    wait(lambda: host.writer.own_keys.overwritten >= 4)
    wait(lambda: [text(etcd, each) for each in (key, same, gone)] == ["1", "2", "3"])
    wait(lambda: entry(etcd, same)["lease"] == own)
    wait(lambda: not entry(etcd, added))
    assert OWN in host.writer.own_keys.problem


def test_two_who_fight_leave_etcd_alone(etcd: EtcdServer, host: Host) -> None:
    """Somebody writes 100 times over a key: the host answers a few times, and wins in the end."""
    key = f"{OWN}web/b1"
    began = time.monotonic()
    before = entry(etcd, key)["version"]
    for number in range(100):
        etcd.ctl("put", key, f"junk {number}")
    took = time.monotonic() - began
    answers = entry(etcd, key)["version"] - before - 100
    assert answers <= 2 + took, (answers, took)
    wait(lambda: text(etcd, key) == "1", timeout=60)
    assert host.writer.own_keys.overwritten >= 1


def test_a_busy_status_is_no_foreign_hand(etcd: EtcdServer, host: Host) -> None:
    """A host that writes status and verdicts all the time finds nothing but its own."""
    for number in range(2, 30):
        host.writer.submit(status(number))
        host.writer.submit_verdicts({f"{OWN}web/b{n}": b"%d" % (n + number) for n in range(50)})
        time.sleep(0.1)  # a time has to pass: many writes, many readings
    wait(lambda: text(etcd, f"{OWN}web/b49") == str(49 + 29))
    number = host.ballots.confirmed["lb1"].said.number
    wait(lambda: host.ballots.confirmed["lb1"].said.number > number)
    assert host.writer.own_keys.overwritten == 0


def test_a_lost_lease_is_no_foreign_hand(etcd: EtcdServer, host: Host) -> None:
    """All keys of the host have gone, and come back; nobody is blamed for it."""
    lease = entry(etcd, STATUS)["lease"]
    etcd.ctl("lease", "revoke", f"{lease:x}")
    wait(lambda: text(etcd, f"{OWN}web/b149") == "149" and bool(entry(etcd, CONFIRMED)))
    assert entry(etcd, STATUS)["lease"] != lease
    number = host.ballots.confirmed["lb1"].said.number
    wait(lambda: host.ballots.confirmed["lb1"].said.number > number)
    assert (host.writer.own_keys.overwritten, host.writer.own_keys.problem) == (0, "")
