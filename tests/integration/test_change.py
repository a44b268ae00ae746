# SPDX-License-Identifier: Apache-2.0
"""The life of a change over a real data plane: failures half way, freezes, retries."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from support.agent.lifecycle import LifecycleHost
from support.documents.keyspaces import WEB, vip
from support.logs import logfmt
from tidegate.agent import reconciler
from tidegate.agent.journal import line_format, replay
from tidegate.dataplane.publish import publisher, tables
from tidegate.model.values import BackendKey

pytestmark = pytest.mark.root

MORE = WEB | {"pools/web/backends/b": {"address": "198.51.100.2"}, "vips/other": vip(last=2)}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[LifecycleHost]:
    built = LifecycleHost(tmp_path)
    yield built
    built.close()


def test_what_is_put_back_is_recorded_like_any_generation(host: LifecycleHost) -> None:
    """The journal can make it again, says why it is there, and goes on from it."""
    assert host.want(WEB, 1) == []
    good = host.plane.publisher.in_force
    host.refusals = 1
    (reason,) = host.want(MORE, 2)
    back = host.plane.publisher.in_force
    assert f"generation {back.number} is what was in force before" in reason
    assert (back.digest, back.number) == (good.digest, good.number + 2)
    assert [a.generation.number for a in host.applied] == [good.number, back.number]
    assert host.applied[-1].desired == host.applied[0].desired
    assert host.want(MORE, 2) == []  # the next attempt has no such failure
    there = host.journal()
    numbers = [line.number for line in there if isinstance(line, line_format.GenerationLine)]
    assert numbers == [good.number, back.number, back.number + 1]
    causes = [line.cause for line in there if isinstance(line, line_format.GenerationLine)]
    assert [cause.kind for cause in causes] == ["keys", "rollback", "keys"]
    assert causes[1].what == "put back, as publishing had failed half way"
    digests = [standing.line.digest for standing in replay.standings(there)]
    assert good.digest == back.digest == digests[-2]
    assert digests[-1] == host.plane.publisher.in_force.digest


def test_a_step_of_the_clock_counts_once_with_something_put_back(host: LifecycleHost) -> None:
    """Windows move with the clock in what is put back, and not again in what follows."""
    host.want(WEB, 1)
    host.want(MORE, 2)
    closes = host.plane.publisher.in_force.pools["web"].table.windows[-1].closes_at
    host.ahead += 3600
    host.refusals = 1
    host.want(WEB | {"pools/web/backends/c": {"address": "198.51.100.3"}}, 3)
    assert host.applied[-1].stepped == 3600
    passed = host.applied[-1].now - host.applied[1].now  # 3600 s, and what it took
    host.want(MORE | {"vips/more": vip(last=3)}, 4)
    assert host.applied[-1].stepped == 0
    windows = host.plane.publisher.in_force.pools["web"].table.windows
    assert windows[1].closes_at == closes + passed
    assert 3600 <= passed < 3660


def test_a_freeze_and_a_thaw_are_events_of_their_own(
    host: LifecycleHost, caplog: pytest.LogCaptureFixture
) -> None:
    """A reason is one field, whatever is in it; a thaw is no freeze."""
    reason = 'maintenance plan_ms=9 of the "switch"'
    host.want(WEB, 1)
    caplog.clear()
    host.want(MORE, 2, freeze=reason)
    assert host.plane.publisher.in_force.revision == 1
    host.want(MORE, 3)
    assert host.plane.publisher.in_force.revision == 3
    events = [record.getMessage().partition(" ") for record in caplog.records]
    found = {name: logfmt.read(fields) for name, _, fields in events}
    assert found["frozen"] == {"reason": reason}
    assert found["thawed"] == {"was": reason}
    assert [name for name, _, _ in events if name != "generation"] == ["frozen", "thawed"]


def test_a_frozen_host_with_nothing_in_force_takes_what_there_is(host: LifecycleHost) -> None:
    """Once: then it has something to keep."""
    host.want(WEB, 1, freeze="maintenance")
    assert host.plane.publisher.in_force.revision == 1
    host.want(MORE, 2, freeze="maintenance")
    assert host.plane.publisher.in_force.revision == 1


def test_what_could_not_be_published_is_due_again(host: LifecycleHost) -> None:
    """After a pause; until then time asks for nothing, and afterwards for no retry."""
    host.want(WEB, 1)
    host.refusals = 1
    before = time.monotonic()
    host.want(MORE, 2)
    due = host.changes.next_due()
    assert due is not None
    assert 4 < due - before < 10
    assert not host.changes.is_due(before)
    assert host.changes.is_due(due)
    assert host.reconcile() == []
    assert not host.changes.is_due(due)


def test_no_auxiliary_of_a_change_ends_it(
    host: LifecycleHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Journal, traces and log fail; the generation is in force, and each is named meanwhile."""
    beside = host.changes._beside

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        for owner, name in (
            (host.history, "applied"),
            (host.history, "refused"),
            (host.traces, "begin"),
            (host.traces, "received"),
            (host.changes._refusals, "write"),
        ):
            patch.setattr(owner, name, refuse)
        assert host.want(WEB, 2) == []
        assert host.plane.publisher.in_force.number == 1
        named = {problem.partition(":")[0] for problem in beside.problems}
        assert named == {"journal", "traces", "refusals"}
    assert host.want(MORE, 3) == []
    assert beside.problems == []


def test_what_nobody_expected_is_a_failed_change(
    host: LifecycleHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is raised, wherever: the agent goes on, what is in force stays, a retry is due."""
    assert host.want(WEB, 2) == []

    def refuse(*_: object, **__: object) -> NoReturn:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(reconciler, "plan", refuse)
        assert "an error in the agent, MemoryError" in host.want(MORE, 3)[0]
        assert host.changes.next_due() is not None
    with monkeypatch.context() as patch:
        patch.setattr(tables, "pin", refuse)
        assert host.reconcile() != []
    with monkeypatch.context() as patch:
        patch.setattr(publisher, "put_in_force", lambda *_: 1 // 0)
        assert "ZeroDivisionError" in host.reconcile()[0]
    while host.reconcile():
        assert host.changes.next_due() is not None
    in_force = host.plane.publisher.in_force
    assert BackendKey("web", "b") in in_force.backends
    assert host.plane.audit(deep=True) == []
