# SPDX-License-Identifier: Apache-2.0
"""From the moments of a change to its spans: nothing is missing, and nothing is there twice."""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tidegate.telemetry.changes import (
    MOST_PARTS,
    MOST_REFUSALS,
    Change,
    Joined,
    Mark,
    Refusal,
    durations,
    spans,
)
from tidegate.telemetry.names import changes as names
from tidegate.telemetry.span import Context, Link, Span

ROOT, WRITER, OTHER = Context(1, 2), Context(1, 9), Context(7, 8)
WORK = ("validate", "guard", "plan", "disruption", "program", "entries")
TABLE = ("fill", "read_back", "fill")
LAST = ("swap", "vips", "record", "journal")
CONCURRENT = {"acknowledge", "first_packet"}

pauses = st.integers(-5, 1000)
"""ns; below 0 is a clock that is set back."""


@st.composite
def changes(draw: st.DrawFn) -> Change:
    stages = [*WORK, *(TABLE * draw(st.integers(0, 12))), *LAST]
    stages = stages[: draw(st.integers(0, len(stages)))]
    if draw(st.booleans()):
        stages += [draw(st.sampled_from(["build", "publish"]))]
    at = began = 10_000
    marks = []
    for stage in stages:
        at += draw(pauses)
        marks.append(Mark(stage, at))
    refused = st.builds(
        Refusal,
        st.sampled_from(["validate", "guard", "publish"]),
        st.just("schema"),
        st.text(),
        st.text(),
        st.text(min_size=1),
        st.integers(1),
    )
    return Change(
        context=ROOT,
        parent=draw(st.sampled_from([None, WRITER])),
        received=draw(st.none() | st.integers(9_000, 11_000)),
        began=began,
        marks=tuple(marks),
        outcome="applied",
        refusals=draw(st.lists(refused, max_size=20)),
        joined=(Joined(OTHER, 9_500, 3, ("k",), 1),) * draw(st.integers(0, 2)),
        acknowledged=draw(st.none() | st.integers(9_000, 90_000)),
        first_packet=draw(st.none() | st.integers(9_000, 90_000)),
    )


def short(span: Span) -> str:
    return span.name.removeprefix(names.PREFIX)


@given(changes())
def test_spans_fill_the_root_without_gaps_or_overlaps(change: Change) -> None:
    """Stages follow each other; only what goes on after the work may be at the same time."""
    root, *others = list(spans(change))
    assert (root.name, root.parent) == ("tidegate.change", change.parent)
    mine = [span for span in others if span.context.trace_id == ROOT.trace_id]
    within = {span.context: span for span in [root, *mine]}
    assert len(within) == len(mine) + 1
    for span in mine:
        assert span.parent is not None
        parent = within[span.parent]
        assert parent.began <= span.began <= span.ended <= parent.ended
    stages = [s for s in mine if s.parent == ROOT and short(s) not in CONCURRENT]
    for before, after in pairwise(stages):
        assert before.ended == after.began
    if stages:
        assert stages[0].began == root.began
    ends = {s.ended for s in mine if s.parent == ROOT} | {change.began}
    assert root.ended == max(ends)
    for stage in stages:
        parts = [s for s in mine if s.parent == stage.context and short(s) == "read_back"]
        assert all(a.ended <= b.began for a, b in pairwise(parts))


@given(changes())
def test_nothing_is_emitted_that_the_registry_lacks(change: Change) -> None:
    """Names of spans, their attributes, and that what links is said to."""
    known = {each.name: each for each in names.SPANS}
    for span in spans(change):
        kind = known[span.name]
        assert set(span.attributes) <= {attribute.key for attribute in kind.attributes}
        assert not span.links or kind.links


@given(changes())
def test_seconds_add_up_to_the_total(change: Change) -> None:
    """What a histogram of stages has is what the spans have; reading back is not in filling."""
    found = durations(change)
    total = found.pop("total")
    worked = sum(seconds for name, seconds in found.items() if name not in CONCURRENT)
    assert abs(worked - total) < 1e-9
    assert all(seconds >= -1e-12 for seconds in found.values())


@given(changes())
def test_a_trace_is_bounded(change: Change) -> None:
    """However many tables are filled and documents refused."""
    found = Counter((span.parent, span.name) for span in spans(change))
    assert all(
        count <= MOST_REFUSALS for (_, name), count in found.items() if name == names.REFUSAL.name
    )
    assert all(count <= MOST_PARTS for (_, name), count in found.items() if name == names.PART.name)


def change(**fields: object) -> Change:
    marks = [Mark(stage, 1000 + 10 * i) for i, stage in enumerate((*WORK, *TABLE, *LAST), 1)]
    given_ = {"context": ROOT, "began": 1000, "marks": tuple(marks), "outcome": "applied"}
    return Change(**{**given_, **fields})  # type: ignore[arg-type]


def test_a_refusal_is_an_error_where_it_happened() -> None:
    """The stage and the document's own span have the reason, and the root if all was refused."""
    refusal = Refusal("guard", "guard", "", "", "all VIPs would go.", 5)
    refused = change(
        marks=(Mark("validate", 1010), Mark("guard", 1020)),
        outcome="refused",
        error="all VIPs would go.",
        error_type="guard",
        refusals=[refusal],
    )
    found = {short(span): span for span in spans(refused)}
    assert list(found) == ["tidegate.change", "validate", "guard", "refusal"]
    errors = {name: span.error for name, span in found.items() if span.error}
    assert errors == dict.fromkeys(("tidegate.change", "guard", "refusal"), "all VIPs would go.")
    assert {found[name].attributes["error.type"] for name in errors} == {"guard"}
    assert found["refusal"].parent == found["guard"].context


def test_other_traces_are_named_and_linked_both_ways() -> None:
    """A control system whose write was put into force with a later one sees what became of it."""
    joined = (
        Joined(OTHER, 900, 3, ("pools/a",), 1),
        Joined(Context(11, 12), 950, 4, ("pools/b",), 1, "broken.", "schema"),
    )
    root, *rest = spans(change(parent=WRITER, received=800, joined=joined))
    first, second = (span for span in rest if span.name == names.JOINED.name)
    assert (first.parent, first.context.trace_id, first.began) == (OTHER, 7, 900)
    assert first.links == second.links == (Link(root.context),)
    assert root.links == (Link(first.context), Link(second.context))
    assert (first.error, second.error) == ("", "broken.")
    assert second.attributes["error.type"] == "schema"


def test_the_first_packet_is_counted_from_the_swap() -> None:
    """A packet may meet the new table before the system call that points to it has returned."""
    (met,) = (s for s in spans(change(first_packet=1105)) if short(s) == "first_packet")
    (swap,) = (s for s in spans(change()) if short(s) == "swap")
    assert (met.began, met.ended) == (swap.began, 1105)
