# SPDX-License-Identifier: Apache-2.0
"""Random histories on the real program, by books that know nothing of the specification."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fuzz.history import histories
from fuzz.history_books import Books, Flow, Kind
from fuzz.history_roster import Roster, Server

pytestmark = pytest.mark.root

PROMISED = 200_000
EVENTS = {"publications", "restarts", "crashes", "early flags", "losses", "changes of the CPU"}


def test_no_promise_is_broken() -> None:
    """Whatever happens to backends, agents and tables; other histories each day."""
    report = histories(PROMISED, int(datetime.now(UTC).strftime("%Y%m%d")))
    sys.stdout.write(f"{report}\n")
    assert not report.broken, report
    assert report.promised >= PROMISED
    # Exceptions are few, and nothing that shows something is left out.
    assert sum(report.free.values()) < report.packets / 5, report
    assert min(report.kinds.values()) > PROMISED / 200, report
    assert len(report.kinds) == 9
    assert report.events.keys() == EVENTS, report


def test_a_lost_table_is_noticed() -> None:
    """When the books are not told of it, flows move for no reason that they know."""
    report = histories(40_000, 1, declare_losses=False)
    assert report.broken["it moved [full]"] > 0
    assert "are lost\n" in report.told[0]


def test_a_planner_that_forgets_flags_is_noticed() -> None:
    """It leaves slots unmarked for which others stood in while their owner was flagged."""
    report = histories(80_000, 3, planned_over=lambda publisher: publisher.in_force)
    assert report.broken["it moved [full]"] + report.broken["it moved [transition]"] > 0


def test_a_seed_gives_the_same_history() -> None:
    """A run can be done again, so what is found can be looked at."""
    first, second = histories(3000, 7), histories(3000, 7)
    assert (first.kinds, first.events, first.free) == (second.kinds, second.events, second.free)


@pytest.fixture
def books() -> Books:
    """Give books in which one view of a roster holds."""
    roster = Roster(random.Random(1), renames=False)  # noqa: S311 - reproducible, not secret
    found = Books(roster)
    found.views = [roster.view()]
    return found


def flow(books: Books, home: Server | None) -> Flow:
    return Flow(
        "full4", b"", is_tcp=True, state="open" if home else "none", home=home, spoke_at=1000
    )


def servers(books: Books, pool: str) -> list[Server]:
    return [server for server in books.views[0].servers if server.pool == pool]


def test_a_flow_that_goes_on_is_no_violation(books: Books) -> None:
    """A SYN to any server of the pool, and then to the same."""
    home, found = servers(books, "web")[1], flow(books, None)
    books.begin(found)
    for kind in ("SYN", "SYN again", "ACK", "data", "FIN", "ACK"):
        assert books.judge(found, kind, home.address.packed) is None  # type: ignore[arg-type]
    assert (found.home, found.state) == (home, "fin")


def drained(server: Server) -> None:
    server.state = "drain"


def out(server: Server) -> None:
    server.has_failed = True


def nothing(server: Server) -> None:
    """Leave the server as it is."""


@pytest.mark.parametrize(
    ("kind", "change", "pool", "promise"),
    [
        ("data", nothing, "web", "it moved"),
        ("SYN again", nothing, "web", "a SYN that was sent again went elsewhere"),
        ("SYN", drained, "web", "a SYN went to a server that takes no new flows"),
        ("data", nothing, "api", "it went to another pool"),
        ("SYN", nothing, "api", "it went to another pool"),
        ("data", out, "web", "it went to an old address, or to a server that is gone or out"),
        ("data", nothing, "", "it was not forwarded"),
        ("SYN", nothing, "", "it was not forwarded"),
    ],
)
def test_the_books_know_each_promise(
    books: Books, kind: Kind, change: Callable[[Server], None], pool: str, promise: str
) -> None:
    """A packet that breaks one is told by its name."""
    home = servers(books, "web")[0]
    found, target = flow(books, home), servers(books, pool or "web")[1]
    change(target)
    books.views = [books._roster.view()]  # documents change without a publication
    if kind == "SYN":
        books.begin(found)
    broken = books.judge(found, kind, target.address.packed if pool else None)
    assert broken is not None
    assert broken.promise == promise


def test_the_command_says_what_it_did() -> None:
    """Seed, rate and counts, and exit code 0."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.run", "--history", "--packets", "2000", "--seed", "5"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("seed 5: ")
    assert "  BROKEN: none" in done.stdout
