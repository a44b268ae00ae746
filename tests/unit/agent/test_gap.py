# SPDX-License-Identifier: Apache-2.0
"""A loss of contact ends when every host's verdicts were read anew, and not after a while."""

from tidegate.agent.health.ballots import Confirmed
from tidegate.agent.health.gap import Gap
from tidegate.keyspace.status.verdicts import Confirmation

LOST, TTL, SETTLE = 1000.0, 15.0, 16.0


def confirmed(revision: int, began: float = LOST + 1) -> Confirmed:
    """Return a confirmation that its writer began at this second of its own clock."""
    return Confirmed(revision, LOST + 2, Confirmation(int(began * 1e9), TTL / 3))


def is_open(
    after: float, voters: str = "lb2 lb3", /, *, is_long: bool = True, **said: Confirmed
) -> bool:
    """Return whether a gap is open so long after contact was back, this host being lb1."""
    gap = Gap("lb1", SETTLE, TTL)
    gap.note(LOST, is_long=is_long)
    gap.judge(LOST + after, voters.split(), said)
    assert gap.is_long == (gap.is_open and is_long)
    return gap.is_open


ALL = {"lb1": confirmed(20), "lb2": confirmed(21), "lb3": confirmed(22)}


def test_it_closes_when_all_have_confirmed_since() -> None:
    """Each after this host's own confirmation, which it began after the loss."""
    assert not is_open(3, **ALL)


def test_a_host_that_has_not_confirmed_holds_it_open() -> None:
    """Its verdicts are from before; for how long it lasts does not matter."""
    old = {**ALL, "lb3": confirmed(19)}
    for after in (3, 16.5, 30, 44):
        assert is_open(after, **old)


def test_an_own_confirmation_from_before_says_nothing() -> None:
    """Those of all hosts may be later than it, and still from before the loss."""
    assert is_open(3, **{**ALL, "lb1": confirmed(20, LOST - 1)})
    assert is_open(3, **{**ALL, "lb1": confirmed(20, LOST + 9999)}), "from before a reboot"
    assert is_open(3, "", lb2=confirmed(21))


def test_no_verdict_of_the_dead_holds_it_open_for_ever() -> None:
    """After the time of three leases nothing of theirs is left, so somebody else wrote it."""
    assert is_open(44, lb1=confirmed(20), lb2=confirmed(3))
    assert not is_open(46, lb1=confirmed(20), lb2=confirmed(3))


def test_who_never_confirms_is_given_its_time() -> None:
    """A control system, or an agent of an older version."""
    assert is_open(3, "operator", lb1=confirmed(20))
    assert not is_open(17, "operator", lb1=confirmed(20))


def test_an_empty_store_closes_it_with_the_own_confirmation() -> None:
    """All verdicts had gone with their leases: those that come are new."""
    assert not is_open(3, "", lb1=confirmed(2))


def test_a_second_loss_opens_it_again() -> None:
    """A short one after a long one does not end what the long one asks for."""
    gap = Gap("lb1", SETTLE, TTL)
    gap.note(LOST, is_long=True)
    gap.note(LOST + 2, is_long=False)
    gap.judge(LOST + 3, ["lb2", "lb3"], ALL)
    assert (gap.is_open, gap.is_long) == (True, True)
