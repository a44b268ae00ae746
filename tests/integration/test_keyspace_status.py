# SPDX-License-Identifier: Apache-2.0
"""The status key on a real etcd: it appears, follows, and disappears with its writer."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.etcd.server import EtcdServer, Received
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.status.document import StatusDocument, decode, encode
from tidegate.keyspace.status.writer import StatusWriter

KEY = "/tidegate/f/status/lb1"
AGENT = Path(__file__).resolve().parents[2] / "agent"


def status(generation: int = 1) -> StatusDocument:
    return StatusDocument(
        version="0.1.0",
        host="lb1",
        release="live",
        revision=7,
        generation=generation,
        state="synced",
        started_at="2026-01-31T12:00:00Z",
    )


def read(etcd: EtcdServer) -> StatusDocument | None:
    value = etcd.ctl("get", "--print-value-only", KEY)
    return decode(value.encode()) if value else None


def until(condition: Callable[[], bool], timeout: float = 10.0) -> float:
    """Ask again and again, as a person at etcdctl would; return after how many seconds it held."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < timeout
        time.sleep(0.05)
    return time.monotonic() - begun


@pytest.fixture
def writer(etcd: EtcdServer) -> Iterator[StatusWriter]:
    settings = EtcdSettings(endpoints=(etcd.endpoint,), backoff_max=0.3, status_ttl=3)
    made = StatusWriter(settings, KEY)
    made.start()
    yield made
    made.stop()


def test_the_status_appears_follows_and_goes(etcd: EtcdServer, writer: StatusWriter) -> None:
    """It is written under a lease, follows what is submitted, and is deleted at a stop in order."""
    writer.submit(status(1))
    until(lambda: read(etcd) == status(1))
    assert '"lease":' in etcd.ctl("get", KEY, "-w", "json")
    writer.submit(status(2))
    until(lambda: read(etcd) == status(2))
    assert writer.stop()
    assert read(etcd) is None


def test_writes_are_few_and_the_last_one_counts(etcd: EtcdServer, writer: StatusWriter) -> None:
    """A busy agent makes about four writes a second, and never waits for one."""
    begun = time.monotonic()
    number = 0
    longest = 0.0
    while time.monotonic() - begun < 1.5:
        number += 1
        before = time.monotonic()
        writer.submit(status(number))
        longest = max(longest, time.monotonic() - before)
        time.sleep(0.001)
    until(lambda: read(etcd) == status(number))
    passed = time.monotonic() - begun
    version = msgspec.json.decode(etcd.ctl("get", KEY, "-w", "json"))["kvs"][0]["version"]
    assert 3 <= version <= passed / 0.25 + 2
    assert longest < 0.25


def test_the_lease_is_kept_alive(etcd: EtcdServer, writer: StatusWriter) -> None:
    """A status that does not change outlives its lease's time."""
    writer.submit(status())
    until(lambda: read(etcd) == status())
    deadline = time.monotonic() + 4.5
    while time.monotonic() < deadline:
        assert read(etcd) == status()
        time.sleep(0.25)  # a time has to pass: the lease's own


def test_a_lost_lease_is_replaced(etcd: EtcdServer, writer: StatusWriter) -> None:
    """When somebody revokes the lease, the status comes back by itself."""
    writer.submit(status())
    until(lambda: read(etcd) == status())
    lease = etcd.ctl("lease", "list").split()[-1]
    etcd.ctl("lease", "revoke", lease)
    assert read(etcd) is None
    until(lambda: read(etcd) == status())


def test_an_outage_does_not_block_and_the_latest_follows_it(etcd: EtcdServer) -> None:
    """While etcd is away `submit` returns at once; after it the latest document is there."""
    errors: Received[str] = Received()
    settings = EtcdSettings(endpoints=(etcd.endpoint,), backoff_max=0.3, status_ttl=3)
    writer = StatusWriter(settings, KEY, errors)
    etcd.kill()
    writer.start()
    try:
        for number in range(1, 50):
            begun = time.monotonic()
            writer.submit(status(number))
            assert time.monotonic() - begun < 0.25
        assert "could not get a lease" in errors.wait(lambda reason: reason != "")
        writer.submit(status(50))
        etcd.start()
        until(lambda: read(etcd) == status(50))
        assert errors.wait(lambda reason: reason == "") == ""
        etcd.kill()
        etcd.wipe()
        etcd.start()
        writer.submit(status(51))
        until(lambda: read(etcd) == status(51))
    finally:
        assert writer.stop()


def test_a_stop_while_etcd_is_frozen_is_bounded(etcd: EtcdServer, writer: StatusWriter) -> None:
    """The agent's exit does not wait for etcd."""
    writer.submit(status())
    until(lambda: read(etcd) == status())
    etcd.stop()
    try:
        begun = time.monotonic()
        assert writer.stop(timeout=1.0)
        assert time.monotonic() - begun < 2.0
    finally:
        etcd.cont()


def test_the_status_of_a_killed_writer_disappears(etcd: EtcdServer) -> None:
    """A process that dies by SIGKILL leaves a lease that runs out."""
    code = f"""
import sys, msgspec
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.status.document import decode
from tidegate.keyspace.status.writer import StatusWriter
writer = StatusWriter(EtcdSettings(endpoints=({etcd.endpoint!r},), status_ttl=3), {KEY!r})
writer.start()
writer.submit(decode({msgspec.json.encode(status())!r}))
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(AGENT)},
        stdin=subprocess.PIPE,
    )
    try:
        until(lambda: read(etcd) == status())
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert read(etcd) == status()
        # etcd looks for leases to expire twice a second, and a fresh leader extends them.
        assert until(lambda: read(etcd) is None, timeout=12.0) > 1.0
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def test_no_secret_is_shown() -> None:
    """A connection's text has its endpoints and nothing else."""
    connection = Etcd(EtcdSettings(user="tide", password_file="/nonexistent"))  # noqa: S106 - a path
    try:
        assert repr(connection) == "Etcd(127.0.0.1:2379)"
    finally:
        connection.close()


def verdicts(etcd: EtcdServer) -> dict[str, str]:
    lines = etcd.ctl("get", "--prefix", "/tidegate/f/health/lb1/").splitlines()
    return dict(zip(lines[::2], lines[1::2], strict=True))


def judged(count: int, value: bytes = b"1") -> dict[str, bytes]:
    return {f"/tidegate/f/health/lb1/web/b{number}": value for number in range(count)}


def test_verdicts_follow_what_was_given_last(etcd: EtcdServer, writer: StatusWriter) -> None:
    """Hundreds are written under the same lease, and those that are not given again go."""
    writer.submit(status(1))
    writer.submit_verdicts(judged(250))
    until(lambda: len(verdicts(etcd)) == 250)
    assert '"lease":' in etcd.ctl("get", "/tidegate/f/health/lb1/web/b7", "-w", "json")
    writer.submit_verdicts({**judged(2), **judged(1, b"2")})
    until(lambda: [*verdicts(etcd).values()] == ["2", "1"])
    assert read(etcd) == status(1)
    assert writer.stop()
    assert verdicts(etcd) == {}


def test_only_verdicts_that_changed_are_written(etcd: EtcdServer, writer: StatusWriter) -> None:
    """One transition of many backends is one write, not all of them."""
    writer.submit_verdicts(judged(50))
    until(lambda: len(verdicts(etcd)) == 50)
    writer.submit_verdicts({**judged(50), **judged(1, b"2")})
    until(lambda: "2" in verdicts(etcd).values())
    found = json.loads(etcd.ctl("get", "--prefix", "/tidegate/f/health/", "-w", "json"))
    assert sorted(int(kv["version"]) for kv in found["kvs"])[-2:] == [1, 2]


def test_verdicts_return_with_a_new_lease(etcd: EtcdServer, writer: StatusWriter) -> None:
    """When etcd forgot the lease, all verdicts are written again."""
    writer.submit(status(1))
    writer.submit_verdicts(judged(3))
    until(lambda: len(verdicts(etcd)) == 3)
    lease = etcd.ctl("lease", "list").split()[-1]
    etcd.ctl("lease", "revoke", lease)
    until(lambda: len(verdicts(etcd)) == 3 and read(etcd) == status(1))


def of_host(instance: str, generation: int = 1) -> StatusDocument:
    return msgspec.structs.replace(status(generation), instance=instance)


@contextmanager
def running(etcd: EtcdServer, **options: Any) -> Iterator[StatusWriter]:
    """Give a writer of its own, as another agent has it."""
    chosen = {"backoff_max": 0.3, "fatal_retry": 0.3, "status_ttl": 3} | options
    made = StatusWriter(EtcdSettings(endpoints=(etcd.endpoint,), **chosen), KEY)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def test_a_second_host_of_a_name_writes_nothing_and_says_so(etcd: EtcdServer) -> None:
    """Neither status nor verdicts; when the first one goes, the second has the name."""
    verdict = {"/tidegate/f/health/lb1/web/b1": b"{}"}
    with running(etcd) as first, running(etcd) as second:
        first.submit(of_host("boot-a/1"))
        until(lambda: read(etcd) == of_host("boot-a/1"))
        second.submit(of_host("boot-b/1"))
        second.submit_verdicts(verdict)
        until(lambda: "another host has the name lb1 (instance boot-a/1" in second.problem)
        assert first.problem == ""
        first.submit(of_host("boot-a/1", 2))
        until(lambda: read(etcd) == of_host("boot-a/1", 2))
        assert etcd.ctl("get", "--keys-only", "--prefix", "/tidegate/f/health/") == ""
        assert first.stop()
        until(lambda: read(etcd) == of_host("boot-b/1"))
        until(lambda: second.problem == "")
        until(lambda: etcd.ctl("get", "--keys-only", "--prefix", "/tidegate/f/health/") != "")


def test_a_restarted_host_has_its_name_at_once(etcd: EtcdServer) -> None:
    """The lease of the agent that died has a long time to run, and the new one writes its own."""
    settings = EtcdSettings(endpoints=(etcd.endpoint,), status_ttl=600)
    dead = Etcd(settings)
    dead.put(KEY.encode(), encode(of_host("boot-a/1")), dead.grant(600))
    with running(etcd, status_ttl=600) as again:
        again.submit(of_host("boot-a/1", 2))
        assert until(lambda: read(etcd) == of_host("boot-a/1", 2)) < 2.0
        assert again.problem == ""
    dead.close()


def test_a_rebooted_host_waits_for_its_own_lease_in_silence(etcd: EtcdServer) -> None:
    """What it was before the reboot goes with its lease, and is no other host."""
    dead = Etcd(EtcdSettings(endpoints=(etcd.endpoint,)))
    dead.put(KEY.encode(), encode(of_host("boot-a/1")), dead.grant(2))
    with running(etcd) as again:
        again.submit(of_host("boot-b/1"))
        problems: set[str] = set()

        def is_written() -> bool:
            problems.add(again.problem)
            return read(etcd) == of_host("boot-b/1")

        until(is_written)
        assert problems == {""}
    dead.close()


@pytest.mark.parametrize("left", [b"", b"nonsense", b"\xff", b'{"host": "lb1"}', b"[]"])
def test_what_is_no_status_holds_no_name(etcd: EtcdServer, left: bytes) -> None:
    """Somebody's bytes, or the status of an agent from before there were instances."""
    etcd.ctl("put", KEY, stdin=left) if left else etcd.ctl("put", KEY, "")
    with running(etcd) as writer:
        writer.submit(of_host("boot-a/1"))
        wanted = encode(of_host("boot-a/1"))
        until(lambda: etcd.ctl("get", "--print-value-only", KEY).encode().strip() == wanted)


def test_a_key_that_others_change_is_taken_back_or_left(etcd: EtcdServer) -> None:
    """A hand that deletes or overwrites it is corrected; another host's is respected."""
    with running(etcd) as writer:
        writer.submit(of_host("boot-a/1"))
        until(lambda: read(etcd) == of_host("boot-a/1"))
        etcd.ctl("del", KEY)
        writer.submit(of_host("boot-a/1", 2))
        until(lambda: read(etcd) == of_host("boot-a/1", 2))
        etcd.ctl("put", KEY, encode(of_host("boot-c/9")).decode())
        writer.submit(of_host("boot-a/1", 3))
        until(lambda: "boot-c/9" in writer.problem)
        assert read(etcd) == of_host("boot-c/9")


def test_auth_switched_on_ends_a_status_that_cannot_follow(etcd: EtcdServer) -> None:
    """The key goes with its lease, the reason is there, and all comes back with the permission."""
    with running(etcd) as writer:
        writer.submit(of_host("boot-a/1"))
        until(lambda: read(etcd) == of_host("boot-a/1"))
        etcd.ctl("user", "add", "root:r00t")
        etcd.ctl("user", "grant-role", "root", "root")
        etcd.ctl("auth", "enable")
        root = ("--user", "root:r00t")
        until(lambda: "set etcd.user and etcd.password_file" in writer.problem)
        until(lambda: etcd.ctl(*root, "get", "--print-value-only", KEY) == "")
        writer.submit(of_host("boot-a/1", 2))
        etcd.ctl(*root, "auth", "disable")
        until(lambda: read(etcd) == of_host("boot-a/1", 2))
        until(lambda: writer.problem == "")


def test_a_writer_whose_source_hangs_runs_out(etcd: EtcdServer) -> None:
    """Its keys go with their lease though the writer lives, and return when the source goes on."""
    hang = ""
    settings = EtcdSettings(endpoints=(etcd.endpoint,), backoff_max=0.3, status_ttl=3)
    writer = StatusWriter(settings, KEY, hang=lambda: hang)
    writer.start()
    writer.submit(status(1))
    until(lambda: read(etcd) is not None)
    hang = "The agent's loop has made no progress for 4 s."
    until(lambda: read(etcd) is None, timeout=12)
    hang = ""
    until(lambda: read(etcd) == status(1))
    writer.stop()
