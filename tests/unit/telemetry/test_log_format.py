# SPDX-License-Identifier: Apache-2.0
"""The log on stderr: what a line is, and what is left out."""

import json
import logging
import sys

from hypothesis import given
from hypothesis import strategies as st

from tidegate.telemetry.current import CURRENT
from tidegate.telemetry.log_format import MOST, Json, KeyValue, Repeats
from tidegate.telemetry.span import Context


def record(text: str) -> logging.LogRecord:
    """A record of the agent's."""
    return logging.LogRecord("tidegate.x", logging.WARNING, "x.py", 1, "reason=%s", (text,), None)


@given(st.text())
def test_a_record_is_one_line_whatever_a_document_holds(text: str) -> None:
    """No value begins a line of its own, in neither form."""
    assert len(KeyValue().format(record(text)).splitlines()) == 1
    assert json.loads(Json().format(record(text)))["message"] == f"reason={text}"
    assert len(Json().format(record(text)).splitlines()) == 1


def test_a_traceback_is_indented() -> None:
    """Lines of an exception's text cannot be taken for records."""
    told = record("x")
    try:
        raise ValueError("a\ntime=2026 level=INFO forged")  # noqa: TRY301 - to be caught here
    except ValueError:
        told.exc_info = sys.exc_info()
    first, *others = KeyValue().format(told).splitlines()
    assert first.startswith("time=")
    assert others
    assert all(line.startswith("  ") for line in others)


def test_a_record_has_the_ids_of_the_trace_that_is_under_way() -> None:
    """In both forms, and only while there is one."""
    before = KeyValue().format(record("x"))
    token = CURRENT.set(Context(0xAB, 0xCD))
    try:
        line, fields = KeyValue().format(record("x")), json.loads(Json().format(record("x")))
    finally:
        CURRENT.reset(token)
    assert "trace_id" not in before
    assert line.endswith(f" trace_id={0xAB:032x} span_id={0xCD:016x}")
    assert (fields["trace_id"], fields["span_id"]) == (f"{0xAB:032x}", f"{0xCD:016x}")


def test_what_repeats_is_counted() -> None:
    """Of many that say the same a few are told, others are not held up, and the count is told."""
    repeats = Repeats()
    assert [repeats.filter(record("x")) for _ in range(MOST + 3)] == [True] * MOST + [False] * 3
    assert repeats.filter(record("y"))
    repeats._seen = {key: (began - 100, *rest) for key, (began, *rest) in repeats._seen.items()}
    later = record("x")
    assert repeats.filter(later)
    assert KeyValue().format(later).endswith(" left_out=3")


def test_what_repeats_is_remembered_within_bounds() -> None:
    """A flood of different records takes no more memory than a thousand of them."""
    repeats = Repeats()
    assert all(repeats.filter(record(str(n))) for n in range(3000))
    assert len(repeats._seen) <= 1024
