# SPDX-License-Identifier: Apache-2.0
"""The rollout's driver on a real etcd: it can die after any step, at any moment."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from support.etcd.server import EtcdServer
from support.fleet.hosts import Hosts
from tidegate.model.rollout import ENDED, CriteriaDocument, RolloutDocument
from tidegate.rollout import orders
from tidegate.rollout.driver import Driver, current
from tidegate.rollout.fleet import KEYS, Seen, observe

HOSTS = {"lb1": '{"track":  "canary"}', "lb2": None, "lb3": '{"reason":"x"}'}
COMMAND = (sys.executable, "-m", "tidegate.cli.main", "rollout")


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture
def hosts(etcd: EtcdServer) -> Iterator[Hosts]:
    """Give three hosts in a fleet of the test's own, and a release to move to."""
    with Hosts(etcd, f"f{secrets.token_hex(4)}", dict(HOSTS)) as made:
        for release in ("old", "new"):
            made.put(f"config/{release}/pools/web", "{}")
        wait(lambda: len(made.store.read("status/").documents) == 3)
        yield made


def wait(holds: Callable[[], object], seconds: float = 20) -> None:
    """Return once something holds that can only be asked for again."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def document(**options: object) -> RolloutDocument:
    given = {
        "release": "new",
        "track": "rollout-new",
        "waves": ("canary", "100%"),
        "bake": 0,
        "abort_on": CriteriaDocument(nack=True),
        "driver": "first",
        "started_at": "2026-01-31T12:00:00Z",
        "changed_at": "2026-01-31T12:00:00Z",
        **options,
    }
    return RolloutDocument(**given)  # type: ignore[arg-type]


class Death(BaseException):
    """Ends a driver at once, as SIGKILL does: nothing of it runs afterwards."""


def driver(hosts: Hosts, name: str, dies_after: int = 1000) -> Driver:
    """Return a driver that dies when it has printed so many lines."""
    printed = 0

    def tell(_line: str) -> None:
        nonlocal printed
        printed += 1
        if printed >= dies_after:
            raise Death

    return Driver(hosts.store, name, tell, poll=0.02)


def resuming(name: str) -> Callable[[Seen], orders.Step]:
    return lambda seen: orders.resume(current(seen), seen, name, time.time())


def rollout(hosts: Hosts) -> RolloutDocument:
    return current(observe(hosts.store.read(*KEYS)))


DONE = {
    "hosts/lb1": HOSTS["lb1"],
    "hosts/lb3": HOSTS["lb3"],
    "tracks/stable": '{"release":"new"}',
    "tracks/canary": '{"release":"new"}',
}
BEFORE = {**DONE, "tracks/stable": '{"release": "old"}', "tracks/canary": '{"release": "old"}'}


@pytest.mark.parametrize("bad", [False, True], ids=["good", "bad"])
def test_a_driver_may_die_after_any_step(hosts: Hosts, bad: bool) -> None:
    """For each step, another driver goes on from where the first one died, to the same end."""
    died, dies_after = True, 0
    while died:
        dies_after += 1
        begin_again(hosts, bad=bad)
        first = driver(hosts, "first", dies_after)
        try:
            first.order(lambda seen: orders.start(document(), seen))
            end = first.run()
            died = False
        except Death:
            if rollout(hosts).state in ENDED:
                continue
            second = driver(hosts, "second")
            second.order(resuming("second"))
            end = second.run()
        assert end.why == "ended"
        assert end.document.state == ("failed" if bad else "done")
        assert hosts.everything() == (BEFORE if bad else DONE)
    assert dies_after > 8


def begin_again(hosts: Hosts, *, bad: bool) -> None:
    """All hosts are on the release of before; with the new one, lb3 is bad or not."""
    refusal = {"state": "degraded", "refusals": [{"reason": "no"}]}
    hosts.answers = {"lb3": refusal} if bad else {}
    for track in ("stable", "canary"):
        hosts.put(f"tracks/{track}", '{"release": "old"}')
    wait(
        lambda: all(
            b'"release": "old"' in status.value
            for status in hosts.store.read("status/").documents.values()
        )
    )


def test_a_driver_that_lost_stops_and_knows_to_whom(hosts: Hosts) -> None:
    """Two drivers never both make steps: the document names the one that may."""
    first = driver(hosts, "first")
    first.order(lambda seen: orders.start(document(bake=600), seen))
    second = driver(hosts, "second")
    second.order(resuming("second"))
    end = first.run()
    assert (end.why, end.document.driver) == ("taken over", "second")


def test_an_edit_at_the_moment_of_a_move_is_not_run_over(hosts: Hosts) -> None:
    """An operator writes a host's key between look and step: no step is made, and it pauses."""
    made = driver(hosts, "first")
    made.order(lambda seen: orders.start(document(waves=("100%",)), seen))
    look = made._observe

    def slow_look() -> Seen:
        seen = look()
        if seen.rollout and seen.rollout.state == "moving" and not seen.rollout.moved:
            hosts.put("hosts/lb2", '{"reason": "mine"}')
        return seen

    made._observe = slow_look  # type: ignore[method-assign]
    end = made.run()
    assert end.why == "paused"
    assert "hosts/lb2 was changed at revision" in end.document.reason
    assert hosts.value("hosts/lb2") == '{"reason": "mine"}'
    again = driver(hosts, "again")
    again.order(resuming("again"))
    assert again.run().document.state == "done"
    assert hosts.value("hosts/lb2") == '{"reason": "mine"}'


class Command:
    """`tidegate rollout …` as a process."""

    def __init__(self, hosts: Hosts, *arguments: str) -> None:
        where = ("--endpoints", hosts.fleet.etcd.endpoints[0], "--fleet", hosts.fleet.name)
        # Who runs the tests in the background of a script has them ignore SIGINT.
        listening = ("env", "--default-signal=INT")
        self.process = subprocess.Popen(
            [*listening, *COMMAND, *arguments, *where],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def await_line(self, part: str) -> None:
        """Return once it has said something."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if part in line:
                return
        raise AssertionError(f"no {part!r}: {self.process.stderr and self.process.stderr.read()}")

    def end(self) -> tuple[int, str]:
        """Exit code, and all that it still says."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out + err

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)


def run(hosts: Hosts, *arguments: str) -> tuple[int, str]:
    return Command(hosts, *arguments).end()


START = ("start", "new", "--waves", "canary,100%", "--bake", "0")


def test_the_command_drives_a_rollout_to_its_end(hosts: Hosts) -> None:
    """Exit code 0, a line per step, and the status says the same afterwards."""
    code, said = run(hosts, *START)
    assert code == 0, said
    assert "wave 1 of 2 (canary): moved lb1" in said
    assert said.rstrip().endswith("done: new")
    assert hosts.everything() == DONE
    code, said = run(hosts, "status", "--json")
    assert (code, json.loads(said)["state"]) == (0, "done")


@pytest.mark.parametrize("line", ["rollout of", "(canary): moved", "baking", "put back:", "now at"])
def test_a_killed_command_is_resumed(hosts: Hosts, line: str) -> None:
    """SIGKILL at a moment of any phase: `resume` from another process ends it as if nothing was."""
    bad = line == "put back:"
    if bad:
        hosts.answers = {"lb3": {"state": "degraded", "refusals": [{"reason": "no"}]}}
    first = Command(hosts, *START[:-1], "1s")
    first.await_line(line)
    first.kill()
    first.end()
    if rollout(hosts).state not in ("done", "failed"):
        code, said = run(hosts, "resume")
        assert code == (5 if bad else 0), said
    assert hosts.everything() == (BEFORE if bad else DONE)


def test_pause_resume_and_abort(hosts: Hosts) -> None:
    """A pause ends the driver and leaves hosts where they are; an abort puts them back."""
    first = Command(hosts, *START[:-1], "10m")
    first.await_line("baking")
    assert run(hosts, "pause")[0] == 0
    code, said = first.end()
    assert code == 6
    assert "tidegate rollout resume" in said
    assert "rollout-new" in (hosts.value("hosts/lb1") or "")
    assert "paused" in run(hosts, "status")[1]
    second = Command(hosts, "resume")
    second.await_line("baking")
    code, said = run(hosts, "abort")
    assert code == 0, said
    assert second.end()[0] == 6
    assert hosts.everything() == BEFORE
    assert rollout(hosts).state == "aborted"


def test_an_interrupt_pauses_and_says_how_to_go_on(hosts: Hosts) -> None:
    """Ctrl-C: exit code 130, hosts stay, and the hint names the commands."""
    first = Command(hosts, *START[:-1], "10m")
    first.await_line("baking")
    first.kill(signal.SIGINT)
    code, said = first.end()
    assert code == 130
    assert "`tidegate rollout resume` continues" in said
    assert rollout(hosts).paused


def test_a_status_tells_whether_anybody_drives(etcd: EtcdServer, hosts: Hosts) -> None:
    """A driver keeps a key under a lease; when the lease runs out, the status says what to do."""
    first = Command(hosts, *START[:-1], "10m")
    first.await_line("baking")
    assert json.loads(run(hosts, "status", "--json")[1])["is_driven"]
    first.kill()
    first.end()
    key = f"/tidegate/{hosts.fleet.name}/rollout-driver"
    lease = json.loads(etcd.ctl("-w", "json", "get", key))["kvs"][0]["lease"]
    etcd.ctl("lease", "revoke", f"{lease:x}")  # as etcd does when nobody renews it
    assert not json.loads(run(hosts, "status", "--json")[1])["is_driven"]
    assert "that process has ended" in run(hosts, "status")[1]
    assert run(hosts, "abort")[0] == 0
    assert json.loads(run(hosts, "status", "--json")[1])["is_driven"]  # nothing is left to do
    assert etcd.ctl("get", key) == ""


def test_a_restart_of_etcd_does_not_end_a_rollout(etcd: EtcdServer, hosts: Hosts) -> None:
    """The driver waits for etcd, and goes on where it was."""
    first = Command(hosts, *START[:-1], "3s")
    first.await_line("baking")
    etcd.restart()
    code, said = first.end()
    assert code == 0, said
    assert hosts.everything() == DONE


def test_a_dry_run_begins_nothing(hosts: Hosts) -> None:
    """It says what the waves would be, with the same checks."""
    code, said = run(hosts, *START, "--dry-run")
    assert code == 0
    assert "  canary: lb1\n  100%: lb2, lb3\n" in said
    assert hosts.everything() == BEFORE
    assert run(hosts, "start", "new", "--waves", "lab,100%", "--dry-run")[0] == 2


def test_a_release_with_faults_is_not_begun(hosts: Hosts) -> None:
    """Exit code 3 with the faults; without the criterion nack it is the operator's affair."""
    hosts.put("config/new/vips/a", '{"address": "nowhere"}')
    code, said = run(hosts, *START)
    assert code == 3
    assert "vips/a" in said
    assert run(hosts, *START, "--abort-on", "vanished")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("start", "empty"), "has no documents"),
        (("start", "new", "--waves", "canary"), "the last wave must be 100%"),
        (("start", "new", "--abort-on", "luck"), "luck"),
        (("status",), "there is no rollout"),
        (("pause",), "there is no rollout"),
        (("resume",), "there is no rollout"),
        (("abort",), "there is no rollout"),
    ],
)
def test_what_cannot_be_done_is_said(hosts: Hosts, arguments: tuple[str, ...], part: str) -> None:
    """Exit code 2 and a sentence."""
    code, said = run(hosts, *arguments)
    assert code == 2
    assert part in said
    assert "Traceback" not in said
