# SPDX-License-Identifier: Apache-2.0
"""How the demo judges what it saw: its claims fail when they should."""

from dataclasses import replace

import pytest

from tidegate.lab.failure import VICTIM, Absence, Death
from tidegate.lab.latency import Delay
from tidegate.lab.load import Totals
from tidegate.lab.plan import LabSpec, vip4, vip6
from tidegate.lab.shares import compare
from tidegate.lab.traffic import Trouble
from tidegate.lab.verdict import Change, Observed

DEATH = Death(cut_at=100.0, quarantined_at=101.3, rate=120)
TROUBLE = Trouble(
    client="client1",
    how="reset",
    why="Connection reset by peer",
    target="10.99.0.1:80",
    kind="short",
    began=99.0,
    at=101.5,
    stage="second",
    backend=VICTIM,
)
SHARES = compare("vip", {"b1": 100, "b2": 300}, {"b1": 255, "b2": 745})
GOOD = Observed(
    shares=SHARES,
    first=Totals(opened=1000),
    main=Totals(opened=1500, downloads=48),
    troubles=[TROUBLE],
    changes=[Change("a change", number, 20.0) for number in range(2, 26)],
    generations=24,
    delays=[Delay(0.03, 0.01, 0.05)],
    absence=Absence(before=33, after=33, following=34, away=2.5, completed=200),
    death=DEATH,
    calm_resets=0,
    downloads=48,
)


def failing(observed: Observed) -> list[str]:
    """Return names of the claims that do not hold."""
    return [claim.name for claim in observed.claims() if not claim.holds]


def test_a_good_run_has_no_failing_claim() -> None:
    """A run in which only the dead backend's connections broke is accepted."""
    assert failing(GOOD) == []
    assert GOOD.as_json()["holds"] is True


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"shares": compare("vip", {"b1": 100, "b2": 300}, {"b1": 400, "b2": 600})}, "shares"),
        ({"changes": GOOD.changes[:19], "generations": 19}, "roster changes"),
        ({"generations": 23}, "generations that these made"),
        ({"main": Totals(opened=900, downloads=48)}, "connections opened"),
        ({"main": Totals(opened=1500, downloads=47)}, "downloads open at the end"),
        ({"calm_resets": 1}, "RSTs sent"),
        ({"absence": replace(GOOD.absence, after=34)}, "generation after the agent's SIGKILL"),
        ({"absence": replace(GOOD.absence, following=33)}, "generation of the next change"),
        ({"absence": replace(GOOD.absence, completed=49)}, "connections completed without"),
        ({"troubles": []}, "the dead backend's own"),
        ({"delays": [Delay(1.01, 0.9, 1.2)]}, "start of etcdctl put"),
    ],
)
def test_each_claim_can_fail(change: dict[str, object], claim: str) -> None:
    """One wrong observation fails the claim about it."""
    names = failing(replace(GOOD, **change))
    assert any(name.startswith(claim) for name in names)


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "b1"},
        {"at": 99.9},
        {"began": 101.4},
        {"backend": None, "began": 99.7},
        {"backend": None, "began": 101.4},
        {"how": "moved"},
    ],
    ids=["other", "before the cut", "after quarantine", "early", "late", "moved"],
)
@pytest.mark.parametrize("how", ["failed", "reset"])
def test_trouble_not_explained_by_the_dead_backend_fails_a_claim(
    change: dict[str, object], how: str
) -> None:
    """Another backend's connection, or one from outside the time of the death, is not excused."""
    trouble = replace(TROUBLE, **{"how": how, **change})
    assert not DEATH.of_victim(trouble)
    names = failing(replace(GOOD, troubles=[TROUBLE, trouble]))
    assert [name for name in names if name.startswith(trouble.how)] == names
    assert len(names) == 1


@pytest.mark.parametrize(
    "change",
    [{}, {"kind": "download"}, {"backend": None, "began": 100.5}, {"how": "failed"}],
)
def test_trouble_that_the_dead_backend_explains_is_counted_apart(
    change: dict[str, object],
) -> None:
    """Its own connections, and unanswered ones from the time of its death, fail no claim."""
    assert failing(replace(GOOD, troubles=[TROUBLE, replace(TROUBLE, **change)])) == []


def test_more_unanswered_connections_than_its_share_fail() -> None:
    """186 connections were begun in that time, of which 18 % and 4.5 deviations are 58."""
    unanswered = replace(TROUBLE, backend=None, began=100.5)
    assert DEATH.most_unanswered(100 / 550) == 58
    assert failing(replace(GOOD, troubles=[unanswered] * 58)) == []
    assert failing(replace(GOOD, troubles=[unanswered] * 59)) == [
        "of these, not answered by anybody yet"
    ]


def test_a_backend_without_a_weight_expects_nothing() -> None:
    """A stranger that got a connection is out of tolerance, however few."""
    shares = {share.backend: share for share in compare("vip", {"b1": 1}, {"b1": 999, "b9": 1})}
    assert not shares["b9"].holds


def test_no_connections_at_all_are_not_within_tolerance() -> None:
    """Shares of nothing prove nothing."""
    assert not any(share.holds for share in compare("vip", {"b1": 1, "b2": 1}, {}))


def test_the_stations_of_a_large_lab_do_not_share_addresses() -> None:
    """Every node of the largest lab has addresses of its own, and none is a VIP."""
    stations = LabSpec(backends=150, lbs=64).stations()
    addresses = [
        address
        for station in stations
        for host in (1, *station.hosts)
        for address in (station.address4(host), station.address6(host))
    ]
    assert len(set(addresses)) == len(addresses)
    assert not {vip4(1), vip6(1)} & set(addresses)
