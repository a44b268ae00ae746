# SPDX-License-Identifier: Apache-2.0
"""Work beside which the loop goes on."""

import threading
import time
from itertools import pairwise

import pytest

from tidegate.agent.long_work import LongWork
from tidegate.agent.pulse import Pulse


def busy(until: threading.Event) -> str:
    """Use a CPU until it is told to end."""
    while not until.is_set():
        sum(range(1000))
    return threading.current_thread().name


def test_the_loop_goes_on_beside_work() -> None:
    """On its own thread, again and again, and each time it leaves a mark of progress."""
    end, marks, turns = threading.Event(), [], []
    work = LongWork(lambda: marks.append(time.monotonic()))

    def meanwhile() -> None:
        turns.append(threading.current_thread() is threading.main_thread())
        if len(turns) == 5:
            end.set()

    work.beside(meanwhile)
    assert work.run(lambda: busy(end)) == "long-work"
    assert len(turns) >= 5
    assert all(turns)
    assert marks


def test_what_work_raises_is_raised() -> None:
    """As if it had been done here."""
    with pytest.raises(ZeroDivisionError):
        LongWork(lambda: None).run(lambda: 1 // 0)


def test_work_that_makes_no_progress_leaves_no_mark() -> None:
    """It waits for something that does not come: the loop counts as hung, as it is."""
    end, marks, turns = threading.Event(), [], []
    work = LongWork(lambda: marks.append(1))

    def meanwhile() -> None:
        turns.append(len(marks))
        if len(turns) == 10:
            end.set()

    work.beside(meanwhile)
    work.run(end.wait)
    assert turns[-1] - turns[2] == 0


def test_work_that_never_ends_counts_as_hung() -> None:
    """Though it uses a CPU: there is an end to the patience."""
    end, marks = threading.Event(), []
    work = LongWork(lambda: marks.append(1), longest=0.1)
    began = time.monotonic()

    def meanwhile() -> None:
        if time.monotonic() - began > 0.4:
            end.set()

    work.beside(meanwhile)
    work.run(lambda: busy(end))
    assert len(marks) <= 6


def test_progress_takes_nothing_of_what_is_allowed() -> None:
    """A compiler was given a minute; a mark in between does not end that."""
    now = [100.0]
    pulse = Pulse(10, clock=lambda: now[0])
    pulse.beat(60)
    now[0] += 5
    pulse.progress()
    now[0] += 60
    assert pulse.hang() == ""
    now[0] += 6
    assert pulse.hang()


def test_a_host_without_threads_still_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop does the work itself, and nothing beside it: that is late, and not never."""

    def refuse(_self: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    work = LongWork(lambda: None)
    assert work.run(lambda: threading.current_thread().name) == threading.main_thread().name


def test_steps_are_progress_and_leave_room() -> None:
    """Each of many steps leaves a mark; what there is to do is done some fifty times a second."""
    marks, looks = [], []
    work = LongWork(lambda: marks.append(1))
    work.beside(lambda: looks.append(time.monotonic()))
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        work.between()
    assert len(marks) > 100
    assert 2 <= len(looks) <= 16
    assert all(b - a >= 0.019 for a, b in pairwise(looks))
