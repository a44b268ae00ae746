# SPDX-License-Identifier: Apache-2.0
"""From single probes to a backend's state."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tidegate.health.result import Result
from tidegate.health.standing import Rules, Standing, after, unknown

PASSED = Result("passed", "", 0.001)
FAILED = Result("timeout", "No answer within 1 s.", 1.0)
RULES = Rules(rise=2, fall=3, hold_down=10.0)


def run(text: str, rules: Rules = RULES, start: Standing | None = None) -> list[Standing]:
    """Return the standings after each probe of a text: `+` passed, `-` failed, one a second."""
    standings = [start or unknown(0.0)]
    for second, sign in enumerate(text, start=int(standings[0].since) + 1):
        result = PASSED if sign == "+" else FAILED
        standings.append(after(standings[-1], result, rules, float(second)))
    return standings[1:]


def test_a_new_backend_is_unknown_until_enough_probes_agree() -> None:
    """It becomes healthy with the second pass in a row, unhealthy with the third failure."""
    assert [s.state for s in run("+-+-++")] == ["initial"] * 5 + ["healthy"]
    assert [s.state for s in run("--+---")] == ["initial"] * 5 + ["unhealthy"]


def test_single_failures_do_not_matter() -> None:
    """Two failures between passes leave a healthy backend healthy, since the beginning."""
    standings = run("++" + "--+" * 20)
    assert {s.state for s in standings[1:]} == {"healthy"}
    assert {s.since for s in standings[1:]} == {2.0}


def test_a_failure_says_why_and_since_when() -> None:
    """State, code, the last error as a sentence, and the second at which it became unhealthy."""
    last = run("++---")[-1]
    assert (last.state, last.code, last.since) == ("unhealthy", "timeout", 5.0)
    assert last.reason == "3 checks in a row failed; the last: No answer within 1 s."
    refused = after(last, Result("refused", "Connection refused.", 0.0), RULES, 6.0)
    assert (refused.code, refused.since) == ("refused", 5.0)
    assert refused.reason == "The last check failed: Connection refused."


def test_the_first_return_is_quick_and_the_next_is_held_down() -> None:
    """One failure costs `rise` passes; after the second one it must pass for `hold_down`."""
    once = run("++---++")
    assert once[-1].state == "healthy"
    twice = run("++---++---" + "+" * 12)
    states = [s.state for s in twice[10:]]
    assert states == ["unhealthy"] * 10 + ["healthy"] * 2
    held = twice[15]
    assert held.code == "held-down"
    assert held.reason == "Checks pass; held down for 5 s more, since it failed 2 times lately."


def test_a_failure_while_held_down_starts_the_time_anew() -> None:
    """The time counts from the first pass after the last failure."""
    standings = run("++---++---" + "+++++-" + "+" * 12)
    assert [s.state for s in standings[16:]] == ["unhealthy"] * 10 + ["healthy"] * 2


def test_a_long_healthy_time_is_a_clean_slate() -> None:
    """After ten times the hold, old failures are forgotten."""
    standings = run("++---++---" + "+" * 12 + "+" * 101 + "---++")
    assert standings[-1].state == "healthy"


def test_the_hold_is_bounded() -> None:
    """However often it failed, a backend that passes for 32 times the hold is healthy."""
    worst = Standing("unhealthy", "timeout", "", 0.0, failures=1000)
    standings = run("+" * 321, start=worst)
    assert standings[-1].state == "healthy"
    assert standings[-2].state == "unhealthy"


@given(st.text("+-", max_size=200), st.integers(1, 5), st.integers(1, 5))
def test_states_change_only_after_enough_equal_results(text: str, rise: int, fall: int) -> None:
    """A change to healthy follows `rise` passes in a row, one to unhealthy `fall` failures."""
    rules = Rules(rise, fall, hold_down=3.0)
    standings = [unknown(0.0), *run(text, rules)]
    for place, (old, new) in enumerate(pairwise(standings), start=1):
        if old.state != new.state:
            count = rise if new.state == "healthy" else fall
            assert text[max(0, place - count) : place] == "+-"[new.state != "healthy"] * count
            assert new.since == float(place)
        else:
            assert new.since == old.since
