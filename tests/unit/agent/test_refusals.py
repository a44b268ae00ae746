# SPDX-License-Identifier: Apache-2.0
"""What the agent's log has of refusals."""

import logging

import pytest

from tidegate.agent.refusals import LINES, PERIOD, REMEMBERED, RefusalLog
from tidegate.model.values import Rejection


def refusal(key: str, revision: int = 1, reason: str = "It is wrong.") -> Rejection:
    return Rejection(key, "port", reason, "schema", revision)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages since the last call."""
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return messages


@pytest.fixture
def refusals(caplog: pytest.LogCaptureFixture) -> RefusalLog:
    caplog.set_level(logging.INFO)
    return RefusalLog()


def test_a_refusal_is_logged_once(refusals: RefusalLog, caplog: pytest.LogCaptureFixture) -> None:
    """A fault that stays, or is written again, is no news; another fault of the same key is."""
    refusals.write([refusal("vips/a")], 0.0)
    assert logged(caplog) == ['refused key=vips/a field=port stage=schema reason="It is wrong."']
    refusals.write([refusal("vips/a", revision=2)], 1.0)
    refusals.write([], 2.0)
    refusals.write([refusal("vips/a", revision=4)], 3.0)
    assert logged(caplog) == []
    refusals.write([refusal("vips/a", 5, "It is otherwise wrong.")], 4.0)
    assert len(logged(caplog)) == 1


def test_a_refusal_that_comes_back_later_is_logged_again(
    refusals: RefusalLog, caplog: pytest.LogCaptureFixture
) -> None:
    """It has to have been away for a while; one that was there all the time has not."""
    for second in range(0, 3 * int(REMEMBERED), 10):
        refusals.write([refusal("vips/a")], float(second))
    assert len(logged(caplog)) == 1
    refusals.write([], 3 * REMEMBERED)
    refusals.write([], 5 * REMEMBERED)
    refusals.write([refusal("vips/a")], 5 * REMEMBERED + 1)
    assert len(logged(caplog)) == 1


def test_a_storm_of_refusals_is_counted(
    refusals: RefusalLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Only so many lines are written in a period, and memory is that of what is refused."""
    storm = [refusal(f"vips/v{n}") for n in range(1000)]
    refusals.write(storm, 0.0)
    messages = logged(caplog)
    assert len(messages) == LINES + 1
    assert messages[-1].startswith(f"refused_more count={1000 - LINES} ")
    refusals.write([*storm, refusal("vips/w")], 1.0)
    assert logged(caplog) == ['refused_more count=1 reason="too many; the status lists them"']
    refusals.write([*storm, refusal("vips/w"), refusal("vips/x")], PERIOD)
    assert logged(caplog) == ['refused key=vips/x field=port stage=schema reason="It is wrong."']
    refusals.write([], PERIOD + REMEMBERED)
    assert refusals._last == {}
