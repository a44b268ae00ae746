# SPDX-License-Identifier: Apache-2.0
"""The log on stderr: what a line is, and what is left out."""

import json
import logging
import sys
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.logs import logfmt
from tidegate.event_log import Event, EventLog
from tidegate.telemetry.current import CURRENT
from tidegate.telemetry.log_format import MOST, Json, Logfmt, RepeatFilter
from tidegate.telemetry.span import Context


def record(text: str) -> logging.LogRecord:
    """Return an event of the agent's."""
    event = Event("refused", {"reason": text})
    return logging.LogRecord("tidegate.x", logging.WARNING, "x.py", 1, event, None, None)


def foreign(text: str) -> logging.LogRecord:
    """Return a record of a library's, which knows nothing of events."""
    return logging.LogRecord("lib", logging.WARNING, "x.py", 1, "reason=%s", (text,), None)


@given(st.text(st.characters(exclude_categories=())))
def test_a_record_is_one_line_whatever_a_document_holds(text: str) -> None:
    """No value begins a line of its own, in neither form, nor another field."""
    for line in (Logfmt().format(record(text)), Logfmt().format(foreign(text))):
        assert len(line.splitlines()) == 1
    fields = logfmt.read(Logfmt().format(record(text)))
    assert list(fields) == ["time", "level", "logger", "event", "reason"]
    assert fields["reason"] == text
    assert json.loads(Json().format(foreign(text)))["message"] == f"reason={text}"
    assert json.loads(Json().format(record(text)))["reason"] == text
    assert len(Json().format(record(text)).splitlines()) == 1


@pytest.mark.parametrize("text", ['a b="c"', "", "a=b", '"', "\\", "two\nlines", "\x1b[2J", "ü"])
def test_a_value_is_quoted_where_it_must_be(text: str) -> None:
    """Spaces, quotes, equals signs, control characters and nothing at all survive both forms."""
    fields = logfmt.read(Logfmt().format(record(text)))
    assert (fields["event"], fields["reason"]) == ("refused", text)
    found = json.loads(Json().format(record(text)))
    assert (found["event"], found["reason"]) == ("refused", text)


def test_a_plain_value_is_not_quoted() -> None:
    """People search for `number=7`, and so do their scripts."""
    event = Event("generation", {"number": 7, "digest": "4f/x:1", "ms": 1.5, "vips": ("a", "b")})
    found = logging.LogRecord("tidegate.x", logging.INFO, "x.py", 1, event, None, None)
    line = Logfmt().format(found)
    assert line.endswith(" event=generation number=7 digest=4f/x:1 ms=1.5 vips=a,b")


def test_fields_have_types_in_json(caplog: pytest.LogCaptureFixture) -> None:
    """Numbers, lists, truth and nothing are what they are; anything else is its text."""
    log = EventLog("tidegate.x")
    log.warning("x", n=1, ms=0.5, on=True, keys={"a"}, why=None, error=OSError("no"), far=1e999)
    [found] = caplog.records
    fields = json.loads(Json().format(found))
    assert fields["message"] == "x n=1 ms=0.5 on=true keys=a why=null error=no far=inf"
    del fields["time"], fields["message"]
    assert fields == {
        "level": "WARNING",
        "logger": "tidegate.x",
        "event": "x",
        "n": 1,
        "ms": 0.5,
        "on": True,
        "keys": ["a"],
        "why": None,
        "error": "no",
        "far": "inf",
    }


def test_a_time_has_a_zone() -> None:
    """ISO 8601 in UTC, to the millisecond, in both forms."""
    found = record("x")
    for text in (
        logfmt.read(Logfmt().format(found))["time"],
        json.loads(Json().format(found))["time"],
    ):
        assert text.endswith("Z")
        assert datetime.fromisoformat(text).timestamp() == pytest.approx(found.created, abs=0.001)


def test_a_traceback_is_indented() -> None:
    """Lines of an exception's text cannot be taken for records."""
    found = record("x")
    try:
        raise ValueError("a\ntime=2026 level=INFO forged\rtime=2026")  # noqa: TRY301 - to be caught here
    except ValueError:
        found.exc_info = sys.exc_info()
    first, *others = Logfmt().format(found).splitlines()
    assert first.startswith("time=")
    assert others
    assert all(line.startswith("  ") for line in others)


def test_a_record_has_the_ids_of_the_trace_that_is_under_way() -> None:
    """In both forms, and only while there is one."""
    before = Logfmt().format(record("x"))
    token = CURRENT.set(Context(0xAB, 0xCD))
    try:
        line, fields = Logfmt().format(record("x")), json.loads(Json().format(record("x")))
    finally:
        CURRENT.reset(token)
    assert "trace_id" not in before
    assert line.endswith(f" trace_id={0xAB:032x} span_id={0xCD:016x}")
    assert (fields["trace_id"], fields["span_id"]) == (f"{0xAB:032x}", f"{0xCD:016x}")


def test_what_repeats_is_counted() -> None:
    """Of many that say the same a few pass, others are not held up, and the count is logged."""
    repeats = RepeatFilter()
    assert [repeats.filter(record("x")) for _ in range(MOST + 3)] == [True] * MOST + [False] * 3
    assert repeats.filter(record("y"))
    repeats._seen = {key: (began - 100, *rest) for key, (began, *rest) in repeats._seen.items()}
    later = record("x")
    assert repeats.filter(later)
    assert Logfmt().format(later).endswith(" left_out=3")


def test_what_repeats_is_remembered_within_bounds() -> None:
    """A flood of different records takes no more memory than a thousand of them."""
    repeats = RepeatFilter()
    assert all(repeats.filter(record(str(n))) for n in range(3000))
    assert len(repeats._seen) <= 1024
