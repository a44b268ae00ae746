# SPDX-License-Identifier: Apache-2.0
"""The journal without an agent: what its lines say again, what it keeps, what damage does."""

from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.documents.roster import backend, vip, web
from tidegate.agent.journal import files, line_format, replay
from tidegate.agent.journal.limits import Limits, Size, is_full, surplus
from tidegate.agent.journal.replay import Standing
from tidegate.dataplane.publish import ledger
from tidegate.model.generation import NOTHING, Generation, Table
from tidegate.model.values import Desired, Rejection, SourceRoute
from tidegate.planner import after_step, plan
from tidegate.planner.diff import difference

AT = "2026-01-31T12:00:00.000Z"
SEED = "an-aimed-flow-is-an-attack"


def since(before: Generation, after: Generation) -> ledger.Records:
    return ledger.following(after, before, ledger.records(before))


def step_of(
    before: Generation, after: Generation, now: int, at: str = AT
) -> line_format.GenerationLine:
    diff = difference(before, after)
    origin = line_format.Origin(at, now, line_format.Cause("time"), line_format.summary(diff))
    return line_format.generation_line(after, since(before, after), origin)


def journal_of(plans: Sequence[tuple[Generation, int]]) -> list[line_format.Line]:
    """Return a base of the first one, and a line for each other, through JSON and back."""
    made: list[line_format.Line] = [line_format.base_line(plans[0][0], AT)]
    made += [step_of(before, after, now) for (before, _), (after, now) in pairwise(plans)]
    return [line_format.decode(line_format.encode(line).rstrip()) for line in made]


def planned(steps: Sequence[tuple[Desired, int]]) -> list[tuple[Generation, int]]:
    """Return generations of documents at seconds, those alone that differ from the one before."""
    found: list[tuple[Generation, int]] = []
    previous = NOTHING
    for wanted, now in steps:
        following = plan(wanted, previous, now)
        if following.number != previous.number:
            found.append((following, now))
        previous = following
    return found


def assert_same(found: Generation, wanted: Generation) -> None:
    """Compare all that a packet, an operator or the next plan depends on."""
    assert (found.vips, found.backends, found.freed) == (
        wanted.vips,
        wanted.backends,
        wanted.freed,
    )
    assert (found.number, found.revision, found.digest) == (
        wanted.number,
        wanted.revision,
        wanted.digest,
    )
    assert found.pools.keys() == wanted.pools.keys()
    for name, placed in wanted.pools.items():
        again = found.pools[name]
        assert (again.identity, again.pool, again.digest) == (
            placed.identity,
            placed.pool,
            placed.digest,
        )
        assert_same_table(again.table, placed.table)


def assert_same_table(found: Table, wanted: Table) -> None:
    for name in ("current", "fallback", "tracked"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    windows = [np.array(t.windows, np.int64)[t.window] for t in (found, wanted)]
    np.testing.assert_array_equal(*windows)


ROSTERS = st.lists(
    st.tuples(
        st.lists(
            st.tuples(
                st.integers(1, 5),
                st.sampled_from([0, 1, 100]),
                st.sampled_from(["active", "drain", "quarantine"]),
            ),
            max_size=5,
            unique_by=lambda item: item[0],
        ),
        st.integers(1, 40),
    ),
    min_size=2,
    max_size=10,
)


@settings(max_examples=40, deadline=None)
@given(ROSTERS)
def test_every_generation_can_be_made_again(
    rosters: list[tuple[list[tuple[int, int, str]], int]],
) -> None:
    """Ids, documents, weights, tables, fallbacks, windows, digests: all from the lines alone."""
    now, steps = 1000, []
    for roster, seconds in rosters:
        now += seconds
        servers = [backend(f"b{n}", weight=w, state=s) for n, w, s in roster]  # type: ignore[arg-type]
        steps.append((web(*servers, delay=20, window=30, slow_start=20), now))
    plans = planned(steps)
    there = journal_of(plans)
    for count, (generation, _) in enumerate(plans, start=1):

        def history(count: int = count) -> Iterator[Standing]:
            return replay.standings(there[:count])

        again = replay.rebuild(history, None)
        assert again is not None
        assert_same(again.generation, generation)


def test_a_step_of_the_clock_moves_windows_in_the_journal_too() -> None:
    """A window that lasts for as long as before ends at another second, and is made again so."""
    two, one = web(backend("b1"), backend("b2"), window=100), web(backend("b1"), window=100)
    first = plan(two, NOTHING, 1000)
    second = plan(one, first, 1010)
    third = plan(one, after_step(second, 5000), 6020)
    summary = line_format.summary(difference(second, third))
    origin = line_format.Origin(AT, 6020, line_format.Cause("time"), summary, stepped=5000)
    there = journal_of([(first, 1000), (second, 1010)])
    there.append(line_format.generation_line(third, since(second, third), origin))
    again = replay.rebuild(lambda: replay.standings(there), None)
    assert again is not None
    assert_same(again.generation, third)
    assert [each.closes_at for each in third.pools["web"].table.windows[1:]] == [6110]


def test_a_pool_with_routes_and_options_comes_back() -> None:
    """Records with bytes and nested values survive JSON."""
    vips = [
        vip("net", "203.0.113.0/24", source_routes=(SourceRoute(ip_network("10.0.0.0/8"), "web"),))
    ]
    wanted = Desired(
        7,
        {v.name: v for v in vips},
        web(backend("b1")).pools,
        {b.key: b for b in [backend("b1", quic_server_id=b"\0\xff")]},
    )
    plans = planned([(wanted, 1000)])
    again = replay.rebuild(lambda: replay.standings(journal_of(plans)), None)
    assert again is not None
    assert_same(again.generation, plans[0][0])


def test_the_seed_is_not_in_the_journal() -> None:
    """A fingerprint says whether a reader has the right one, and not what it is."""
    wanted = Desired(7, {}, {}, {}, hash_seed=SEED)
    line = line_format.base_line(plan(wanted, NOTHING, 1000), AT)
    assert SEED.encode() not in line_format.encode(line)
    assert line.seed == line_format.fingerprint(SEED) != line_format.fingerprint(SEED + "!")
    assert len(line.seed) == 8
    assert line_format.fingerprint(None) == ""


def test_a_window_from_before_the_beginning_is_recorded() -> None:
    """Until it has closed, the fallback of its pool's slots is unknown; a later change prolongs."""
    steps = [
        (web(backend("b1"), backend("b2"), window=100), 1000),
        (web(backend("b1"), backend("b2"), backend("b3"), window=100), 1010),
        (web(backend("b1"), window=100), 1050),
    ]
    plans = planned(steps)
    later = journal_of(plans[1:])
    table = replay.pool_table(replay.standings(later[:1]), "web")
    assert table is not None
    assert set(table.unknown_until.tolist()) == {1110}
    table = replay.pool_table(replay.standings(later), "web")
    assert table is not None
    was, now = (generation.pools["web"].table.current for generation, _ in plans[1:])
    assert set(table.unknown_until[was != now].tolist()) == {1150}
    assert set(table.unknown_until[was == now].tolist()) == {1110}


def test_a_file_that_goes_on_keeps_windows() -> None:
    """A new file's base of the same generation does not end windows of the file before."""
    plans = planned(
        [
            (web(backend("b1"), backend("b2"), window=100), 1000),
            (web(backend("b1"), window=100), 1010),
            (web(backend("b1"), backend("b3"), window=100), 1020),
        ]
    )
    there = [*journal_of(plans[:2]), *journal_of(plans[1:])]
    again = replay.rebuild(lambda: replay.standings(there), None)
    assert again is not None
    assert_same(again.generation, plans[-1][0])
    assert not again.unknown_until["web"].any()


def test_a_cause_names_keys_with_their_revisions() -> None:
    """What is new or written again, and what is gone; the rest is not there."""
    before, after = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 9, "d": 4}
    cause = line_format.keys_cause(before, after)
    assert [(change.key, change.mod_revision) for change in cause.keys] == [
        ("b", 9),
        ("d", 4),
        ("c", 0),
    ]
    many = line_format.keys_cause({}, dict.fromkeys(map(str, range(line_format.MOST_NAMES + 5)), 1))
    assert (len(many.keys), many.left_out) == (line_format.MOST_NAMES, 5)


LIMITS = Limits(80, 8000)


@pytest.mark.parametrize(
    ("size", "full"),
    [(Size(9, 10), False), (Size(10, 10), True), (Size(1, 1000), True), (Size(0, 9999), False)],
)
def test_a_file_is_an_eighth_of_what_is_kept(size: Size, *, full: bool) -> None:
    """In generations or in bytes; one that has none but its base is never full."""
    assert is_full(size, LIMITS) is full


@pytest.mark.parametrize(
    ("sizes", "coming", "gone"),
    [
        ([], 100, 0),
        ([Size(80, 100)], 100, 0),
        ([Size(10, 100), Size(70, 100), Size(9, 100)], 100, 0),
        ([Size(10, 100), Size(70, 100), Size(10, 100)], 100, 1),
        ([Size(10, 3000), Size(10, 3000), Size(10, 1000)], 2000, 1),
        ([Size(10, 3000), Size(10, 3000), Size(10, 1000)], 4500, 2),
        ([Size(10, 9000)], 2000, 0),
    ],
)
def test_the_oldest_files_go_when_enough_is_left(sizes: list[Size], coming: int, gone: int) -> None:
    """Or when there is too much; the last one is written to and stays."""
    assert surplus(sizes, coming, LIMITS) == gone


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Return a file with a base and three generations."""
    plans = planned(
        [
            (web(*map(backend, names)), 1000 + i)
            for i, names in enumerate([["b1"], ["b1", "b2"], ["b2"], ["b3"]])
        ]
    )
    text = b"".join(line_format.encode(line) for line in journal_of(plans))
    path = tmp_path / "00000001.jsonl"
    files.Appender.create(path, text).close()
    return path


def test_a_torn_last_line_is_left_out_and_cut_off(written: Path) -> None:
    """Wherever a crash has cut it."""
    text = written.read_bytes()
    last = text.rindex(b"\n", 0, -1) + 1
    for end in (last + 1, last + 40, len(text) - 1):
        written.write_bytes(text[:end])
        found = files.read(written)
        assert (found.size, found.fault) == (Size(2, last), "")
        files.Appender(written, found.size.bytes).close()
        assert written.read_bytes() == text[:last]


def test_damage_in_the_middle_ends_a_file_and_is_named(written: Path) -> None:
    """What follows it would be built on what is not there."""
    text = written.read_bytes().split(b"\n")
    text[2] = b"x" + text[2]
    written.write_bytes(b"\n".join(text))
    found = files.read(written)
    assert len(found.lines) == 2
    assert "00000001.jsonl:3" in found.fault


def test_a_file_without_its_beginning_says_nothing(written: Path) -> None:
    """A difference to something unknown is not taken for a state."""
    written.write_bytes(written.read_bytes().split(b"\n", 1)[1])
    found = files.read(written)
    assert found.lines == []
    assert "does not begin" in found.fault


def test_refusals_keep_their_reasons() -> None:
    """As the status has them."""
    rejection = Rejection("vips/a", "port", "port is 70000", "schema", 12)
    line = line_format.decode(
        line_format.encode(line_format.refusal_line([rejection], AT, 3, 12)).rstrip()
    )
    assert isinstance(line, line_format.RefusalLine)
    (refusal,) = line.refusals
    assert (refusal.key, refusal.field, refusal.reason) == ("vips/a", "port", "port is 70000")
