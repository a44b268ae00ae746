# SPDX-License-Identifier: Apache-2.0
"""What a fleet makes of its hosts' verdicts, and how much that may do."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.health.limits import Ejection, Limits, eject, is_checker_broken
from tidegate.health.verdict import Effective, can_be_spared, opinion
from tidegate.model.health import Vote
from tidegate.model.values import BackendKey

B = [BackendKey("web", f"b{number}") for number in range(10)]


def votes(*hosts: str, since: int = 100) -> dict[str, dict[BackendKey, Vote]]:
    """Return votes of hosts h1, h2, …: a sign for each backend; `?` has not made up its mind."""
    return {
        f"h{number}": {
            B[place]: Vote(sign == "+", since + number)
            for place, sign in enumerate(text)
            if sign != "?"
        }
        for number, text in enumerate(hosts, start=1)
    }


def states(*hosts: str) -> str:
    """Return what the fleet thinks of each backend, as signs."""
    found = opinion(votes(*hosts)).backends
    return "".join({"healthy": "+", "unhealthy": "-"}[found[key].state] for key in sorted(found))


def test_the_majority_decides() -> None:
    """More than half of the voters make a backend unhealthy; half of them do not."""
    assert states("++++", "+++-", "+-+-") == "+++-"
    assert states("-+++++", "-+++++", "++++++", "++++++") == "++++++"
    assert states("-+++++", "-+++++", "-+++++", "++++++") == "-+++++"


def test_who_has_not_made_up_his_mind_does_not_vote() -> None:
    """One vote against none is a majority."""
    assert states("-+++", "?+++", "?+++") == "-+++"


def test_the_time_is_that_of_the_vote_that_decided() -> None:
    """With three voters the second one decides, also for the others' hosts."""
    found = opinion(votes("-+++", "-+++", "-+++", since=100)).backends
    assert found[B[0]] == Effective("unhealthy", 102, 0, 3)
    assert found[B[1]] == Effective("healthy", 102, 3, 0)


def test_a_blind_host_does_not_vote_backends_out() -> None:
    """A host that finds most of what others reach dead is named, and its votes do not count."""
    found = opinion(votes("++++++", "++++++", "------"))
    assert found.blind == {"h3"}
    assert {(e.state, e.healthy, e.unhealthy) for e in found.backends.values()} == {
        ("healthy", 2, 0)
    }


def test_half_the_hosts_blind_take_nothing_out() -> None:
    """Two of four hosts lose their way: every backend stays."""
    assert states("++++++", "++++++", "------", "------") == "++++++"


def test_one_dead_backend_of_many_makes_nobody_blind() -> None:
    """To see a single failure first is what a host is for."""
    assert opinion(votes("-+++++", "++++++", "++++++")).blind == frozenset()


def test_a_host_alone_decides_alone() -> None:
    """With nobody to compare with, a host's verdict is the fleet's."""
    found = opinion(votes("--++"))
    assert found.blind == frozenset()
    assert states("--++") == "--++"


@given(
    st.lists(st.text("+-?", min_size=6, max_size=6), min_size=1, max_size=7),
    st.randoms(use_true_random=False),
)
def test_all_hosts_come_to_the_same(hosts: list[str], shuffle: random.Random) -> None:
    """Neither the order of hosts nor that of backends matters."""
    cast = votes(*hosts)
    items = [(host, list(theirs.items())) for host, theirs in cast.items()]
    shuffle.shuffle(items)
    for _, theirs in items:
        shuffle.shuffle(theirs)
    assert opinion({host: dict(theirs) for host, theirs in items}) == opinion(cast)


def dead(*places: int, since: float = 100, step: int = 0) -> dict[BackendKey, Effective]:
    return {
        B[place]: Effective("unhealthy", since + step * number, 0, 1)
        for number, place in enumerate(places)
    }


def test_what_failed_is_taken_out() -> None:
    """Below the limits health acts at once, on members alone."""
    assert eject(B[:4], dead(1, 9), Limits(), 100) == Ejection(frozenset({B[1]}), {}, panic=False)


def test_in_a_panic_all_are_kept() -> None:
    """With fewer than half healthy nothing is taken out; with half of them it still is."""
    assert eject(B[:4], dead(0, 1), Limits(50), 100).out == {B[0], B[1]}
    assert eject(B[:4], dead(0, 1, 2), Limits(50), 100) == Ejection(frozenset(), {}, panic=True)


def test_the_last_one_is_always_kept() -> None:
    """Even without a panic threshold, a pool is never emptied by health."""
    assert eject(B[:1], dead(0), Limits(panic_percent=0), 100).panic
    assert eject(B[:3], dead(0, 1, 2), Limits(panic_percent=0), 100).panic


def test_velocity_takes_out_the_earliest_and_the_others_in_turn() -> None:
    """Two a minute: the third goes a minute after the first, the fifth a minute after the third."""
    health = dead(4, 3, 2, 1, 0, since=100, step=1)
    limits = Limits(panic_percent=0, most_per_minute=2)
    found = eject(B, health, limits, 104)
    assert found.out == {B[4], B[3]}
    assert found.waiting == {B[2]: 160, B[1]: 161, B[0]: 220}
    assert eject(B, health, limits, 161).out == {B[4], B[3], B[2], B[1]}
    assert eject(B, health, limits, 220).waiting == {}


@given(
    st.dictionaries(st.integers(0, 9), st.integers(0, 300), max_size=10),
    st.integers(1, 5),
    st.integers(0, 100),
    st.integers(0, 1000),
)
def test_no_minute_sees_more_than_the_limit(
    failed: dict[int, int], most: int, panic: int, now: int
) -> None:
    """Over all time, any 60 seconds have at most `most` ejections, and healthy ones stay."""
    health = {B[place]: Effective("unhealthy", since, 0, 1) for place, since in failed.items()}
    limits = Limits(panic, most)
    first = eject(B, health, limits, -1)
    moments = sorted(first.waiting.values())
    assert all(
        later - earlier >= 60 for earlier, later in zip(moments, moments[most:], strict=False)
    )
    found = eject(B, health, limits, now)
    assert found.out <= health.keys()
    assert all(now >= health[key].since for key in found.out)
    if found.panic:
        assert not found.out


@pytest.mark.parametrize(
    ("failed", "broken"),
    [
        ((100, 101, 102), True),
        ((100, 105, 110), False),
        ((100, 100, None), False),
        ((100,), False),
        ((), False),
    ],
)
def test_a_broken_checker_is_not_believed(
    failed: tuple[float | None, ...], *, broken: bool
) -> None:
    """All of two or more backends failing within one interval says more of the checks."""
    assert is_checker_broken(failed, 3.0) == broken


def test_who_is_out_is_not_brought_back_by_dates() -> None:
    """Whatever the times of its verdicts say, a dead backend that is out stays out."""
    for since in (-1e9, 100, 103, 1e9):
        found = eject(B[:4], dead(0, since=since), Limits(), 104, gone={B[0]})
        assert found.out == {B[0]}, since


def spared(*hosts: str) -> str:
    """Return the hosts that may leave their traffic to the others."""
    cast = votes(*hosts)
    blind = opinion(cast).blind
    return " ".join(host for host in cast if can_be_spared(host, cast, blind))


def test_a_blind_host_is_spared_if_most_hosts_see() -> None:
    """Not with two hosts, where one is half, and not for hosts that check something else."""
    assert spared("++++", "++++", "----") == "h3"
    assert spared("++++", "----") == ""
    assert spared("----????", "++++????", "????++++", "????++++") == ""


def test_no_fleet_is_spared_as_a_whole() -> None:
    """All find all dead, or each half the other half's dead: everybody stays."""
    assert spared("----", "----", "----") == ""
    assert spared("++++", "++++", "----", "----") == ""


@given(st.lists(st.text("+-?", min_size=6, max_size=6), min_size=1, max_size=7))
def test_those_that_are_spared_are_fewer_than_half(hosts: list[str]) -> None:
    """Of the hosts that judge anything in common with one of them; whatever they find."""
    cast = votes(*hosts)
    gone = set(spared(*hosts).split())
    for host in gone:
        peers = [name for name, each in cast.items() if cast[host].keys() & each.keys()]
        assert 2 * len(gone.intersection(peers)) < len(peers)
